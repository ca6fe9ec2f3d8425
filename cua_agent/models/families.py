"""What the model families were trained on, and so expect and write; each value with its source.

A family is the `model_type` of a checkpoint's config.json. Fine-tunes keep their base's: UI-TARS (0 to 1000) is
`qwen2_vl`, UI-TARS-1.5 (pixels of the resized screenshot) `qwen2_5_vl`. Whether a checkpoint thinks is no matter of the
family: Instruct and Thinking editions share a `model_type`, and their chat templates tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cua_agent.actions import Coordinates
from cua_agent.calls.notation import THINK, THINK_END
from cua_agent.models.errors import UnsupportedModel

_ASSISTANT = "<|im_start|>assistant\n"


@dataclass(frozen=True)
class ImageSizes:
    """How screenshots are cut: pixels of a patch's side, patches of a token's side, and the least and most pixels of a
    resized screenshot. What a checkpoint's preprocessor_config.json says takes precedence."""

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class Family:
    """`coordinates` is None where nobody knows them, `image` for a model without eyes."""

    model_type: str
    coordinates: Coordinates | None = None
    image: ImageSizes | None = None

    @property
    def reads_images(self) -> bool:
        """Whether the models have eyes."""
        return self.image is not None


# preprocessor_config.json of Qwen2-VL-7B-Instruct and of Qwen2.5-VL-7B-Instruct: 4 * 28^2 to 16384 * 28^2 pixels.
_QWEN2_IMAGE = ImageSizes(patch=14, merge=2, min_pixels=3136, max_pixels=12_845_056)
# preprocessor_config.json of Qwen3-VL-4B-Instruct: 64 * 32^2 to 16384 * 32^2 pixels.
_QWEN3_IMAGE = ImageSizes(patch=16, merge=2, min_pixels=65_536, max_pixels=16_777_216)

_TABLE = (
    # Qwen2-VL report, arXiv 2409.12191: positions "normalized within [0, 1000)".
    Family("qwen2_vl", "relative", _QWEN2_IMAGE),
    # Qwen2.5-VL report, arXiv 2502.13923: positions in "the actual dimensions of the input images", which are the
    # resized ones (QwenLM/Qwen3-VL issue 721; UI-TARS, README_coordinates.md).
    Family("qwen2_5_vl", "absolute", _QWEN2_IMAGE),
    # Qwen3-VL README: "relative coordinates ranging from 0 to 1000".
    Family("qwen3_vl", "relative", _QWEN3_IMAGE),
    Family("qwen3_vl_moe", "relative", _QWEN3_IMAGE),
    # Without eyes; never trained to point at anything.
    Family("llama"),
    Family("qwen2"),
    Family("qwen3"),
)
FAMILIES = {family.model_type: family for family in _TABLE}


def check_coordinates(
    path: str, family: Family, *, grounding: str, observation: str, coordinates: Coordinates | None
) -> None:
    """Raises `UnsupportedModel` when positions are asked for (`grounding=coordinates`) whose scale nobody knows, or
    that are pixels of a screenshot which is not shown."""
    if grounding != "coordinates":
        return
    scale = coordinates or family.coordinates
    if scale is None:
        raise UnsupportedModel(
            f"model.grounding=coordinates with model.path={path!r}: the coordinates of a {family.model_type!r} model "
            "are not known; set model.coordinates=relative, or model.grounding=target"
        )
    if scale == "absolute" and observation == "text":
        raise UnsupportedModel(
            "model.coordinates=absolute with model.observation=text: there is no screenshot to measure in; set "
            "model.coordinates=relative, or model.grounding=target"
        )


def reply_prefix(path: str, tokenizer: Any, thinking: bool | None) -> str:
    """What stands in the prompt at the start of each of the model's turns: nothing, an opened thought, or an empty one,
    as the checkpoint's chat template has it.

    `thinking` asks the template to let the model think, or not to; None leaves it to the template. Raises
    `UnsupportedModel` when the template cannot do that.
    """
    prefix = _rendered(tokenizer, thinking)
    if thinking is None:
        return prefix
    switches = _rendered(tokenizer, True) != _rendered(tokenizer, False)
    opened = THINK in prefix and THINK_END not in prefix
    if not switches and opened != thinking:
        does, allowed = ("always thinks", "true") if opened else ("never thinks", "false")
        raise UnsupportedModel(
            f"model.thinking={str(thinking).lower()} with model.path={path!r}: by its chat template it {does}; "
            f"allowed: null, {allowed}"
        )
    return prefix


def _rendered(tokenizer: Any, thinking: bool | None) -> str:
    if not getattr(tokenizer, "chat_template", None):
        return ""
    options = {} if thinking is None else {"enable_thinking": thinking}
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True, **options
    )
    return text.rpartition(_ASSISTANT)[2] if _ASSISTANT in text else ""
