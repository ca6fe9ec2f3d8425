"""Requests are checked as strictly as the SDK's own types say: field by field against them, and over HTTP."""

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import httpx
import pytest
from gbox_sdk._utils import PropertyInfo
from gbox_sdk.types.v1 import (
    box_create_android_params,
    box_create_linux_params,
    box_execute_commands_params,
    box_terminate_params,
)
from gbox_sdk.types.v1.boxes import (
    action_click_params,
    action_common_options_param,
    action_drag_params,
    action_long_press_params,
    action_move_params,
    action_press_button_params,
    action_press_key_params,
    action_screenshot_options_param,
    action_screenshot_params,
    action_scroll_params,
    action_settings_update_params,
    action_swipe_params,
    action_tap_params,
    action_type_params,
    detected_element_param,
)
from pydantic import BaseModel
from typing_extensions import get_type_hints, is_typeddict

from cua_agent.envs.local_gbox import bodies
from cua_agent.envs.local_gbox.server import LocalGBox, running

SAME_SHAPE = [
    (bodies.CreateAndroid, box_create_android_params.BoxCreateAndroidParams),
    (bodies.AndroidConfig, box_create_android_params.Config),
    (bodies.CreateLinux, box_create_linux_params.BoxCreateLinuxParams),
    (bodies.LinuxConfig, box_create_linux_params.Config),
    (bodies.Terminate, box_terminate_params.BoxTerminateParams),
    (bodies.Command, box_execute_commands_params.BoxExecuteCommandsParams),
    (bodies.Settings, action_settings_update_params.ActionSettingsUpdateParams),
    (bodies.ActionOptions, action_common_options_param.ActionCommonOptionsParam),
    (bodies.ScreenshotOptions, action_screenshot_options_param.ActionScreenshotOptionsParam),
    (bodies.DetectedElement, detected_element_param.DetectedElementParam),
    (bodies.ClickAt, action_click_params.Click),
    (bodies.ClickTarget, action_click_params.ClickByNaturalLanguage),
    (bodies.ClickTarget, action_click_params.ClickByElement),
    (bodies.TapAt, action_tap_params.Tap),
    (bodies.TapTarget, action_tap_params.TapByNaturalLanguage),
    (bodies.TapTarget, action_tap_params.TapByElement),
    (bodies.LongPressAt, action_long_press_params.LongPress),
    (bodies.LongPressTarget, action_long_press_params.LongPressByNaturalLanguage),
    (bodies.LongPressTarget, action_long_press_params.LongPressByElement),
    (bodies.Move, action_move_params.ActionMoveParams),
    (bodies.Type, action_type_params.ActionTypeParams),
    (bodies.SwipeTowards, action_swipe_params.SwipeSimple),
    (bodies.SwipeBetween, action_swipe_params.SwipeAdvanced),
    (bodies.DragBetween, action_drag_params.DragSimple),
    (bodies.DragAlong, action_drag_params.DragAdvanced),
    (bodies.ScrollBy, action_scroll_params.ScrollAdvanced),
    (bodies.ScrollTowards, action_scroll_params.ScrollSimple),
    (bodies.PressKey, action_press_key_params.ActionPressKeyParams),
    (bodies.PressButton, action_press_button_params.ActionPressButtonParams),
    (bodies.Screenshot, action_screenshot_params.ActionScreenshotParams),
    (bodies.Clip, action_screenshot_params.Clip),
    (bodies.ScrollCapture, action_screenshot_params.ScrollCapture),
]


def wire_fields(params: Any) -> dict[str, tuple[Any, bool]]:
    """The SDK type's fields by their names on the wire: the type, and whether it is required."""
    fields = {}
    for name, hint in get_type_hints(params, include_extras=True).items():
        required = typing.get_origin(hint) is typing.Required
        kind = get_args(hint)[0] if required else hint
        aliases = [extra.alias for extra in getattr(kind, "__metadata__", ()) if isinstance(extra, PropertyInfo)]
        fields[aliases[0] if aliases else name] = (kind, required)
    return fields


def words_of(hint: Any) -> set[str]:
    """Every literal word that a type allows, inside of lists, unions and annotations as well."""
    if typing.get_origin(hint) is typing.Literal:
        return {word for word in get_args(hint) if isinstance(word, str)}
    if is_typeddict(hint) or (inspect.isclass(hint) and issubclass(hint, BaseModel)):
        return set()
    return {word for part in get_args(hint) for word in words_of(part)}


@pytest.mark.parametrize(("ours", "theirs"), SAME_SHAPE, ids=lambda kind: kind.__name__)
def test_bodies_have_the_fields_and_words_of_the_sdks_types(ours: type[BaseModel], theirs: Any) -> None:
    fields = {str(field.alias): field for field in ours.model_fields.values()}
    assert set(fields) == set(wire_fields(theirs))
    for name, (hint, required) in wire_fields(theirs).items():
        assert fields[name].is_required() == required, name
        if (ours, name) != (bodies.PressKey, "keys"):  # a set of its own, below
            assert words_of(fields[name].annotation) == words_of(hint), name


def test_keys_are_the_sdks() -> None:
    assert words_of(action_press_key_params.KeysType) == bodies.KEYS


def test_every_typed_dict_of_the_table_is_compared() -> None:
    modules = {inspect.getmodule(theirs) for _, theirs in SAME_SHAPE}
    places = {"DragPathPoint", "SwipePath", "DragAdvancedPath"}  # plain {x, y}: `bodies.Spot`
    named = {kind for module in modules for kind in vars(module).values() if is_typeddict(kind)}
    missing = {kind.__name__ for kind in named if kind not in {theirs for _, theirs in SAME_SHAPE}}
    assert all(any(place in name for place in places) for name in missing), missing


@pytest.fixture(scope="module")
def server() -> Iterator[LocalGBox]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def http(server: LocalGBox) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, headers={"Authorization": f"Bearer {server.api_key}"}) as client:
        yield client


@pytest.fixture(scope="module")
def box(http: httpx.Client) -> str:
    return str(http.post("boxes/android", json={}).raise_for_status().json()["id"])


TAP = {"x": 1, "y": 1}
REFUSED: list[tuple[str, Any, str]] = [
    ("click", {**TAP, "button": "double"}, "button: Input should be 'left', 'right' or 'middle'"),
    ("click", {**TAP, "double": "yes"}, "double: Input should be a valid boolean"),
    ("click", {"x": 1}, "y: Field required"),
    ("click", {}, "x: Field required"),
    ("click", {**TAP, "target": "OK"}, "x: Extra inputs are not permitted"),
    ("click", [1, 1], "body: "),
    ("click", {"target": {"id": "1"}}, "target.DetectedElement.centerX: Field required"),
    ("tap", {"x": "1", "y": 1}, "x: Input should be a valid number"),
    ("tap", {"x": True, "y": 1}, "x: Input should be a valid number"),
    ("tap", {**TAP, "button": "left"}, "button: Extra inputs are not permitted"),
    ("tap", {**TAP, "options": {"screenshot": {"phases": ["during"]}}}, "phases.0: Input should be 'before', 'after'"),
    ("tap", {**TAP, "options": {"screenshot": {"delay": "31s"}}}, "delay: Input should be less than or equal to 30"),
    ("tap", {**TAP, "options": {"screenshot": {"delay": 0.5}}}, '0.5 is not a duration such as "500ms"'),
    ("tap", {**TAP, "options": {"screenshots": True}}, "options.screenshots: Extra inputs are not permitted"),
    ("tap", {**TAP, "options": {"model": "gpt-3"}}, "options.model: Input should be 'gpt-5', 'gpt-4o'"),
    ("tap", {**TAP, "include_screenshot": True}, "include_screenshot: Extra inputs are not permitted"),
    ("move", {"x": 1, "y": None}, "y: Input should be a valid number"),
    ("long-press", {**TAP, "duration": "1 s"}, "duration: Value error, '1 s' is not a duration"),
    ("long-press", {**TAP, "duration": "1.5s"}, "duration: Value error, '1.5s' is not a duration"),
    ("type", {"text": 5}, "text: Input should be a valid string"),
    ("type", {"text": "a", "mode": "insert"}, "mode: Input should be 'append' or 'replace'"),
    ("swipe", {"start": TAP}, "end: Field required"),
    ("swipe", {"direction": "upleft"}, "direction: Input should be 'up'"),
    ("swipe", {"direction": "up", "distance": "far"}, "distance"),
    ("swipe", {"direction": "up", "distance": -3}, "distance"),
    ("drag", {"path": [TAP]}, "path: List should have at least 2 items"),
    ("drag", {"path": [TAP, TAP], "start": TAP}, "start: Extra inputs are not permitted"),
    ("scroll", {**TAP, "direction": "up"}, "x: Extra inputs are not permitted"),
    ("scroll", {**TAP, "scrollX": 0}, "scrollY: Field required"),
    ("scroll", {"direction": "upLeft"}, "direction: Input should be 'up', 'down', 'left' or 'right'"),
    ("press-key", {"keys": ["Enter"]}, "keys.0: Value error, 'Enter' is not a key; names are lower case"),
    ("press-key", {"keys": ["ctrl"]}, "'ctrl' is not a key"),
    ("press-key", {"keys": "enter"}, "keys: Input should be a valid list"),
    ("press-key", {"keys": []}, "keys: List should have at least 1 item"),
    ("press-button", {"buttons": ["Home"]}, "buttons.0: Input should be 'power'"),
    ("press-button", {"buttons": ["app_switch"]}, "buttons.0: Input should be 'power'"),
    ("screenshot", {"outputFormat": "png"}, "outputFormat: Input should be 'base64' or 'storageKey'"),
    ("screenshot", {"clip": {"x": 0, "y": 0, "width": 5}}, "clip.height: Field required"),
    ("screenshot", {"options": {}}, "options: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("action", "body", "message"), REFUSED)
def test_refused_actions(http: httpx.Client, box: str, action: str, body: Any, message: str) -> None:
    answer = http.post(f"boxes/{box}/actions/{action}", json=body)
    assert answer.status_code == 422, answer.text
    assert set(answer.json()) == {"statusCode", "error", "message"}
    assert message in answer.json()["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("POST", "boxes/android", {"config": {"expiresIn": 60}}, "config.expiresIn: Value error, 60 is not a duration"),
        ("POST", "boxes/android", {"config": {"labels": {"a": 1}}}, "config.labels.a: Input should be a valid string"),
        ("POST", "boxes/android", {"config": {"expires_in": "5m"}}, "config.expires_in: Extra inputs"),
        ("POST", "boxes/android", {"timeout": "6m"}, "timeout: Input should be less than or equal to 300"),
        ("POST", "boxes/android", {"wait": 1}, "wait: Input should be a valid boolean"),
        ("POST", "boxes/linux", {"config": {"deviceType": "virtual"}}, "config.deviceType: Extra inputs"),
        ("POST", "boxes/{box}/terminate", {"force": True}, "force: Extra inputs are not permitted"),
        ("POST", "boxes/{box}/commands", {}, "command: Field required"),
        ("POST", "boxes/{box}/commands", {"command": ["ls"]}, "command: Input should be a valid string"),
        ("PUT", "boxes/{box}/actions/settings", {"scale": 0.1}, "scale: Input should be greater than 0.1"),
        ("PUT", "boxes/{box}/actions/settings", {"scale": 1.5}, "scale: Input should be less than or equal to 1"),
        ("POST", "model", {"model": "gpt-5", "screenshot": "", "action": {}}, "model: Input should be 'gbox-handy-1'"),
        (
            "POST",
            "model",
            {"model": "gbox-handy-1", "screenshot": "a", "action": {"type": "tap", "target": "OK"}},
            "action: Input tag 'tap' found using 'type' does not match any of the expected tags",
        ),
    ],
)
def test_other_refused_requests(
    http: httpx.Client, box: str, method: str, path: str, body: Mapping[str, Any], message: str
) -> None:
    answer = http.request(method, path.format(box=box), json=body)
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["message"]


def test_a_refused_action_does_nothing(server: LocalGBox, http: httpx.Client, box: str) -> None:
    executed = server.ledger()["summary"]["executed"]
    for body in ({**TAP, "button": "double"}, {"x": 500, "y": 1}, {"target": "no such thing"}):
        assert http.post(f"boxes/{box}/actions/click", json=body).status_code in (400, 422)
    assert server.ledger()["summary"]["executed"] == executed


def test_text_that_is_no_json(http: httpx.Client, box: str) -> None:
    answer = http.post(
        f"boxes/{box}/actions/tap", content=b'{"x": 1, "y": ', headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert "JSON decode error" in answer.json()["message"]
    not_finite = http.post(
        f"boxes/{box}/actions/tap", content=b'{"x": NaN, "y": 1}', headers={"content-type": "application/json"}
    )
    assert not_finite.status_code == 422
    assert "x: Input should be a finite number" in not_finite.json()["message"]


SERVED = {
    "/boxes/android": {"post"},
    "/boxes/linux": {"post"},
    "/boxes": {"get"},
    "/boxes/{box_id}": {"get"},
    "/boxes/{box_id}/terminate": {"post"},
    "/boxes/{box_id}/display": {"get"},
    "/boxes/{box_id}/commands": {"post"},
    "/boxes/{box_id}/actions/settings": {"get", "put", "delete"},
    "/model": {"post"},
    **{
        f"/boxes/{{box_id}}/actions/{action}": {"post"}
        for action in (
            *("screenshot", "click", "tap", "move", "long-press", "type", "swipe", "drag", "scroll"),
            *("press-key", "press-button"),
        )
    },
}


def test_the_whole_table_is_served(server: LocalGBox) -> None:
    paths = httpx.get(f"{server.origin}/openapi.json").raise_for_status().json()["paths"]
    served = {path: set(methods) for path, methods in paths.items()}
    assert served.pop("/ledger") == served.pop("/storage/{key}") == {"get"}
    assert served == {f"/api/v1{path}": methods for path, methods in SERVED.items()}


def test_paths_and_methods_that_are_not_served(http: httpx.Client, box: str) -> None:
    unknown = http.post(f"boxes/{box}/actions/touch", json={"points": []})
    assert unknown.status_code == 404
    assert "the local GBox serves no such endpoint" in unknown.json()["message"]
    assert http.get(f"boxes/{box}/actions/tap").status_code == 405


@pytest.mark.parametrize("key", [None, "Bearer wrong", "local", "Basic local"])
def test_the_key_is_asked_for_everywhere(server: LocalGBox, box: str, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key}
    with httpx.Client(base_url=server.base_url, headers=headers) as stranger:
        for method, path in (("GET", "boxes"), ("POST", "boxes/android"), ("POST", f"boxes/{box}/terminate")):
            answer = stranger.request(method, path)
            assert (answer.status_code, answer.json()["error"]) == (401, "Unauthorized")
