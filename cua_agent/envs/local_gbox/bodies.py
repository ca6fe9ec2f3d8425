"""Request bodies, checked as strictly as the SDK's types say: unknown fields, wrong types and wrong words are refused.

Durations ("500ms", "30s", "5m", "1h") become seconds.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema
from pydantic.alias_generators import to_camel

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = r"^(\d+)(ms|s|m|h)$"


def seconds(duration: Any) -> float:
    """Seconds of a duration such as "500ms". Raises `ValueError`."""
    match = re.match(_DURATION, duration) if isinstance(duration, str) else None
    if match is None:
        raise ValueError(f'{duration!r} is not a duration such as "500ms", "30s", "5m" or "1h"')
    return int(match[1]) * _UNITS_S[match[2]]


_DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": _DURATION})
Duration = Annotated[float, BeforeValidator(seconds), _DURATION_SCHEMA]
CreateTimeout = Annotated[float, Field(le=300), BeforeValidator(seconds), _DURATION_SCHEMA]
ScreenshotDelay = Annotated[float, Field(le=30), BeforeValidator(seconds), _DURATION_SCHEMA]

OutputFormat = Literal["base64", "storageKey"]
Phase = Literal["before", "after", "trace"]
MouseButton = Literal["left", "right", "middle"]
Direction = Literal["up", "down", "left", "right"]
SwipeDirection = Literal["up", "down", "left", "right", "upLeft", "upRight", "downLeft", "downRight"]
Distance = Annotated[float, Field(gt=0)] | Literal["tiny", "short", "medium", "long"]
PhoneButton = Literal["power", "volumeUp", "volumeDown", "volumeMute", "home", "back", "menu", "appSwitch"]

_NAMED_KEYS = """control alt shift meta win cmd option arrowUp arrowDown arrowLeft arrowRight home end pageUp pageDown
enter space tab escape backspace delete insert capsLock numLock scrollLock pause printScreen numpadAdd numpadSubtract
numpadMultiply numpadDivide numpadDecimal numpadEnter numpadEqual volumeUp volumeDown volumeMute mediaPlayPause
mediaStop mediaNextTrack mediaPreviousTrack"""
KEYS = frozenset(
    [*"abcdefghijklmnopqrstuvwxyz0123456789;=,-./`[\\]'", *_NAMED_KEYS.split()]
    + [f"f{number}" for number in range(1, 13)]
    + [f"numpad{digit}" for digit in range(10)]
)


def _known_key(name: str) -> str:
    if name not in KEYS:
        raise ValueError(f"{name[:40]!r} is not a key; names are lower case, for example enter, control, arrowUp")
    return name


Key = Annotated[str, BeforeValidator(lambda name: _known_key(str(name)))]


class Body(BaseModel):
    """A request's body: strict, and in camel case on the wire."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=False,
        allow_inf_nan=False,
    )


class AndroidConfig(Body):
    """How a phone is started."""

    device_type: Literal["virtual", "physical"] = "virtual"
    envs: dict[str, str] = {}
    expires_in: Duration = 3600.0
    labels: dict[str, str] = {}


class LinuxConfig(Body):
    """How a Linux box is started."""

    envs: dict[str, str] = {}
    expires_in: Duration = 3600.0
    labels: dict[str, str] = {}


class CreateAndroid(Body):
    """`POST /boxes/android`."""

    config: AndroidConfig = AndroidConfig()
    timeout: CreateTimeout = 30.0
    wait: bool = True


class CreateLinux(Body):
    """`POST /boxes/linux`."""

    config: LinuxConfig = LinuxConfig()
    timeout: CreateTimeout = 30.0
    wait: bool = True


class Terminate(Body):
    """`POST /boxes/{id}/terminate`."""

    wait: bool = True


class Command(Body):
    """`POST /boxes/{id}/commands`; `timeout` in seconds."""

    command: str
    envs: dict[str, Any] = {}
    timeout: Duration = 30.0
    working_dir: str | None = None


class Settings(Body):
    """`PUT /boxes/{id}/actions/settings`."""

    scale: float = Field(gt=0.1, le=1)


class ScreenshotOptions(Body):
    """`delay` is slept only when it is asked for: a simulated screen has nothing to settle."""

    delay: ScreenshotDelay = 0.0
    output_format: OutputFormat = "base64"
    phases: list[Phase] = ["before", "after", "trace"]
    presigned_expires_in: Duration = 1800.0


class ActionOptions(Body):
    """Options of every action."""

    model: Literal["gpt-5", "gpt-4o", "ui-tars", "openai-computer-use"] | None = None
    screenshot: ScreenshotOptions | bool | None = None


class ActionBody(Body):
    """What every action takes. All but `options` is deprecated in the API and ignored when that has a screenshot."""

    options: ActionOptions = ActionOptions()
    include_screenshot: bool = False
    output_format: OutputFormat = "base64"
    presigned_expires_in: Duration = 1800.0
    screenshot_delay: ScreenshotDelay = 0.0


class DetectedElement(Body):
    """An element that the service had found on a screenshot."""

    id: str
    center_x: float
    center_y: float
    height: float
    label: str
    path: str
    source: str
    type: str
    width: float
    x: float
    y: float


class Spot(Body):
    """A pixel of the (scaled) screenshot."""

    x: float
    y: float


Place = Spot | str
"""A pixel, or the name of an element."""


def _has(key: str) -> Discriminator:
    """Tells two forms of a body apart by whether a key is there, so that errors speak of the intended form."""
    return Discriminator(lambda body: "with" if isinstance(body, dict) and key in body else "without")


class TapAt(ActionBody):
    """Tap on a pixel."""

    x: float
    y: float


class TapTarget(ActionBody):
    """Tap on an element."""

    target: DetectedElement | str


class ClickAt(TapAt):
    """Click on a pixel."""

    button: MouseButton = "left"
    double: bool = False


class ClickTarget(TapTarget):
    """Click on an element."""

    button: MouseButton = "left"
    double: bool = False


class LongPressAt(TapAt):
    """Press a pixel for `duration` seconds."""

    duration: Duration = 1.0


class LongPressTarget(TapTarget):
    """Press an element for `duration` seconds."""

    duration: Duration = 1.0


class Move(ActionBody):
    """Move the mouse to a pixel."""

    x: float
    y: float


class Type(ActionBody):
    """Type into the focused field."""

    text: str
    mode: Literal["append", "replace"] = "append"
    press_enter: bool = False


class SwipeTowards(ActionBody):
    """Swipe in a direction."""

    direction: SwipeDirection
    distance: Distance | None = None
    duration: Duration = 0.5
    location: str | None = None


class SwipeBetween(ActionBody):
    """Swipe from one place to another."""

    start: Place
    end: Place
    duration: Duration = 0.5


class DragBetween(ActionBody):
    """Drag from one place to another."""

    start: Place
    end: Place
    duration: Duration = 0.5


class DragAlong(ActionBody):
    """Drag along a path of pixels."""

    path: list[Spot] = Field(min_length=2)
    duration: Duration = 0.05


class ScrollBy(ActionBody):
    """Scroll at a pixel by a number of pixels."""

    x: float
    y: float
    scroll_x: float
    scroll_y: float


class ScrollTowards(ActionBody):
    """Scroll in a direction."""

    direction: Direction
    distance: Distance | None = None
    duration: Duration = 0.5
    location: str | None = None


class PressKey(ActionBody):
    """Press keys one after the other, or together."""

    keys: list[Key] = Field(min_length=1)
    combination: bool = False


class PressButton(ActionBody):
    """Press buttons one after the other."""

    buttons: list[PhoneButton] = Field(min_length=1)


Tap = Annotated[Annotated[TapTarget, Tag("with")] | Annotated[TapAt, Tag("without")], _has("target")]
Click = Annotated[Annotated[ClickTarget, Tag("with")] | Annotated[ClickAt, Tag("without")], _has("target")]
LongPress = Annotated[Annotated[LongPressTarget, Tag("with")] | Annotated[LongPressAt, Tag("without")], _has("target")]
Swipe = Annotated[Annotated[SwipeTowards, Tag("with")] | Annotated[SwipeBetween, Tag("without")], _has("direction")]
Drag = Annotated[Annotated[DragAlong, Tag("with")] | Annotated[DragBetween, Tag("without")], _has("path")]
Scroll = Annotated[Annotated[ScrollTowards, Tag("with")] | Annotated[ScrollBy, Tag("without")], _has("direction")]


class Clip(Body):
    """A part of the screenshot, pixels."""

    x: float = Field(ge=0)
    y: float = Field(ge=0)
    width: float = Field(gt=0)
    height: float = Field(gt=0)


class ScrollCapture(Body):
    """A screenshot of all that scrolling reveals, up to `max_height` pixels."""

    max_height: float = Field(4000, gt=0)
    scroll_back: bool = False


class Screenshot(Body):
    """`POST /boxes/{id}/actions/screenshot`."""

    clip: Clip | None = None
    output_format: OutputFormat = "base64"
    presigned_expires_in: Duration = 1800.0
    save_to_album: bool = False
    scroll_capture: ScrollCapture | None = None


class GroundClick(Body):
    """Find where to click."""

    type: Literal["click"]
    target: str


class GroundDrag(Body):
    """Find where a drag starts and ends."""

    type: Literal["drag"]
    target: str
    destination: str


class GroundScroll(Body):
    """Find where to scroll."""

    type: Literal["scroll"]
    location: str
    direction: Direction


class Ground(Body):
    """The grounding service. `screenshot` is what a screenshot's `uri` or `presignedUrl` holds."""

    model: Literal["gbox-handy-1"]
    screenshot: str
    action: Annotated[GroundClick | GroundDrag | GroundScroll, Field(discriminator="type")]
