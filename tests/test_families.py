"""What a model family expects: how positions are written, how screenshots are cut, whether a thought is opened."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_random
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from cua_agent.actions import Coordinates, Tap
from cua_agent.models.errors import UnsupportedModel
from cua_agent.models.families import FAMILIES, check_coordinates
from cua_agent.models.loaders import load_policy
from cua_agent.models.pixels import coordinate_space, image_processor
from cua_agent.parsing import parse_tool_call
from trainers.components import build_policy
from trainers.config.compose import load_config

WIDTH, HEIGHT = 1080, 2400
USER_TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
INSTRUCT = USER_TURN + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THINKING = USER_TURN + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
HYBRID = (
    USER_TURN + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def processor(model_type: str, **changes: Any) -> Qwen2VLImageProcessor:
    sizes = FAMILIES[model_type].image
    assert sizes is not None
    pixels = {"min_pixels": sizes.min_pixels, "max_pixels": sizes.max_pixels}
    return Qwen2VLImageProcessor(patch_size=sizes.patch, merge_size=sizes.merge, **{**pixels, **changes})


@pytest.mark.parametrize(
    ("model_type", "changes", "written", "pixel"),
    [
        # 1080 x 2400 becomes 39 * 28 = 1092 by 86 * 28 = 2408 pixels: 540 / 1092 and 900 / 2408 of the screen.
        ("qwen2_5_vl", {}, (540, 900), (534, 896)),
        ("qwen2_5_vl", {}, (0, 0), (0, 0)),
        ("qwen2_5_vl", {}, (1092, 2408), (1078, 2397)),
        # At most a million pixels: 23 * 28 = 644 by 53 * 28 = 1484; its middle is the screen's.
        ("qwen2_5_vl", {"max_pixels": 1_000_000}, (322, 742), (540, 1198)),
        ("qwen2_vl", {}, (540, 900), (582, 2157)),
        ("qwen3_vl", {}, (540, 900), (582, 2157)),
        ("qwen3_vl_moe", {}, (500, 500), (539, 1198)),
    ],
)
def test_a_position_lands_where_the_family_means_it(
    model_type: str, changes: dict[str, int], written: tuple[int, int], pixel: tuple[int, int]
) -> None:
    space = coordinate_space(processor(model_type, **changes), FAMILIES[model_type].coordinates, HEIGHT, WIDTH)
    call = {"name": "computer_use", "arguments": {"action": "left_click", "coordinate": list(written)}}
    for text in (f"<tool_call>{json.dumps(call)}</tool_call>", f"Action: click(start_box='{written}')"):
        action = parse_tool_call(text, space)
        assert isinstance(action, Tap)
        assert action.at.to_pixels(WIDTH, HEIGHT) == pixel


@pytest.mark.parametrize("wanted", [None, "relative", "absolute"])
@pytest.mark.parametrize(("family", "own"), [("qwen3_vl", "relative"), ("qwen2_5_vl", "absolute")])
def test_the_familys_scale_holds_unless_a_key_says_otherwise(
    family: tiny_random.Family, own: Coordinates, wanted: Coordinates | None, tmp_path: Path
) -> None:
    policy = load_policy(str(tiny_random.build(tmp_path, family)), coordinates=wanted)
    assert policy.coordinates == (wanted or own)
    side = 32 if family == "qwen3_vl" else 28
    space = (2 * side, 3 * side) if policy.coordinates == "absolute" else None
    assert policy.coordinate_space(3 * side + 1, 2 * side + 1) == space


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_positions_of_a_model_that_was_never_taught_any_are_refused(model_type: str) -> None:
    family = FAMILIES[model_type]
    with pytest.raises(UnsupportedModel, match=r"set model\.coordinates=relative, or model\.grounding=target"):
        check_coordinates("m", family, grounding="coordinates", observation="text", coordinates=None)
    check_coordinates("m", family, grounding="coordinates", observation="text", coordinates="relative")
    check_coordinates("m", family, grounding="target", observation="text", coordinates=None)


def test_pixels_of_a_screenshot_that_is_not_shown_are_refused() -> None:
    family = FAMILIES["qwen2_5_vl"]
    with pytest.raises(UnsupportedModel, match="there is no screenshot to measure in"):
        check_coordinates("m", family, grounding="coordinates", observation="text", coordinates=None)
    check_coordinates("m", family, grounding="coordinates", observation="screenshot", coordinates=None)


def test_a_run_refuses_them_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.components.load_policy", lambda *_, **__: pytest.fail("loaded"))
    model = tiny_random.build_text(tmp_path)
    config = load_config([f"model={model}", "model.observation=text", "model.grounding=coordinates"])
    with pytest.raises(UnsupportedModel, match=r"the coordinates of a 'llama' model are not known"):
        build_policy(config)


def test_what_a_preprocessor_config_leaves_out_is_the_familys(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Qwen2VLImageProcessor"}')
    sizes = FAMILIES["qwen3_vl"].image
    assert sizes is not None
    found = image_processor(str(tmp_path), sizes)
    assert (found.patch_size, found.merge_size, found.min_pixels, found.max_pixels) == (16, 2, 65_536, 16_777_216)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 3136, "longest_edge": 50176}}')
    found = image_processor(str(tmp_path), sizes)
    assert (found.patch_size, found.min_pixels, found.max_pixels) == (16, 3136, 50_176)


def test_patches_that_the_vision_tower_does_not_take_are_refused(tmp_path: Path) -> None:
    model = tiny_random.build(tmp_path)
    Qwen2VLImageProcessor(patch_size=14).save_pretrained(model)
    with pytest.raises(UnsupportedModel, match=r"patch_size=14 and merge_size=2, config\.json 16 and 2"):
        load_policy(str(model))


@pytest.mark.parametrize(
    ("template", "thinking", "prefix"),
    [
        (None, None, ""),
        (None, False, ""),
        (INSTRUCT, None, ""),
        (INSTRUCT, False, ""),
        (THINKING, None, "<think>\n"),
        (THINKING, True, "<think>\n"),
        (HYBRID, None, ""),
        (HYBRID, True, ""),
        (HYBRID, False, "<think>\n\n</think>\n\n"),
    ],
)
def test_a_turn_begins_as_the_chat_template_begins_it(
    template: str | None, thinking: bool | None, prefix: str, tmp_path: Path
) -> None:
    assert load_policy(with_template(tmp_path, template), thinking=thinking).reply_prefix == prefix


@pytest.mark.parametrize(
    ("template", "thinking", "said"),
    [
        (None, True, "it never thinks; allowed: null, false"),
        (INSTRUCT, True, "it never thinks; allowed: null, false"),
        (THINKING, False, "it always thinks; allowed: null, true"),
    ],
)
def test_a_template_that_cannot_is_said_so(template: str | None, thinking: bool, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=f"model.thinking={str(thinking).lower()} .*{said}"):
        load_policy(with_template(tmp_path, template), thinking=thinking)


def with_template(directory: Path, template: str | None) -> str:
    model = tiny_random.build_text(directory, "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    return str(model)
