import time
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_random
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cua_agent.models.architecture import set_training
from cua_agent.models.errors import ModelNotFound, UnsupportedModel
from cua_agent.models.loaders import load_policy, special_tokens
from cua_agent.models.policy import PolicyModel

FAMILIES = ["qwen3_vl", "qwen2_5_vl"]


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request: pytest.FixtureRequest) -> PolicyModel:
    return load_policy(str(tiny_random.build(Path(mkdtemp()), request.param)))


def test_text_round_trip_keeps_special_tokens(policy: PolicyModel) -> None:
    text = '<|im_start|>user\nWi-Fi <tool_call>\n{"name": "é"}<|im_end|>'
    ids = policy.encode(text)
    assert policy.decode(ids) == text
    assert ids[-1] == policy.special.end_of_turn_id
    assert len(policy.encode("<|im_end|>")) == 1


def test_banned_tokens(policy: PolicyModel) -> None:
    banned = {policy.decode([i]) for i in policy.special.banned if i < len(policy.tokenizer)}
    assert banned == {"<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"}
    rows = policy.base_model.lm_head.weight.shape[0]
    assert set(range(len(policy.tokenizer), rows)) <= set(policy.special.banned)
    assert rows - len(policy.tokenizer) == tiny_random.UNUSED_ROWS
    assert policy.special.end_of_turn_id not in policy.special.banned


def test_a_turn_ends_where_the_model_was_trained_to_stop(policy: PolicyModel) -> None:
    end_of_text = policy.tokenizer.get_vocab()["<|endoftext|>"]
    assert policy.special.stop_ids == (policy.special.end_of_turn_id, end_of_text)
    named = SimpleNamespace(eos_token_id=[0, end_of_text, *policy.special.banned])
    found = special_tokens(policy.tokenizer, policy.base_model.config, named).stop_ids
    assert found == (policy.special.end_of_turn_id, *sorted({0, end_of_text} - set(policy.special.banned)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(sizes=st.lists(st.tuples(st.integers(8, 400), st.integers(8, 400)), min_size=1, max_size=4))
def test_pixels_equal_the_image_processor_and_the_placeholder_count(
    policy: PolicyModel, sizes: list[tuple[int, int]]
) -> None:
    images = [tiny_random.screenshot(*size, seed=i) for i, size in enumerate(sizes + sizes[:1])]
    values, grids = policy.pixels(images)
    expected = policy.image_processor(images=images, return_tensors="pt", input_data_format="channels_last")
    assert torch.equal(values, expected["pixel_values"])
    assert torch.equal(grids, expected["image_grid_thw"])
    tokens = grids.prod(dim=1) // policy.image_processor.merge_size**2
    assert tokens.tolist() == [policy.image_tokens(*image.shape[:2]) for image in images]


def test_screenshots_must_be_bytes(policy: PolicyModel) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\], got float64 \[64, 64, 3\]"):
        policy.pixels([np.zeros((64, 64, 3))])  # type: ignore[list-item]


def test_positions_refuse_a_missing_image(policy: PolicyModel) -> None:
    with pytest.raises(ValueError, match="4 image placeholders in the row, but its 0 images need 0"):
        policy.positions([1, *[policy.special.image_token_id] * 4], [])


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_is_the_policy_as_it_was_loaded(family: tiny_random.Family) -> None:
    policy = load_policy(str(tiny_random.build(Path(mkdtemp()), family)), keep_reference=True)
    input_ids = torch.tensor([[3, 1, 4, 1, 5]])
    identities = [id(p) for p in policy.model.parameters()]
    with torch.no_grad():
        loaded = policy.model(input_ids=input_ids).logits
        for _, parameter in policy.trainable_parameters():
            parameter.mul_(1.1)
        trained = policy.model(input_ids=input_ids).logits
        with policy.reference():
            assert torch.equal(policy.model(input_ids=input_ids).logits, loaded)
        assert torch.equal(policy.model(input_ids=input_ids).logits, trained)
        with pytest.raises(KeyError), policy.reference():
            raise KeyError("inside")
        assert torch.equal(policy.model(input_ids=input_ids).logits, trained)
    assert not torch.allclose(trained, loaded)
    assert [id(p) for p in policy.model.parameters()] == identities


def test_no_reference_was_kept(policy: PolicyModel) -> None:
    with pytest.raises(RuntimeError, match="keep_reference=True"), policy.reference():
        pass


def test_missing_models_are_one_quick_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in ("/no/such/directory", "not-a-model", "nobody/no-such-model", str(tmp_path)):
        start = time.monotonic()
        with pytest.raises(ModelNotFound) as caught:
            load_policy(path)
        message = str(caught.value)
        assert message.startswith(f"model.path={path!r}: ")
        assert "\n" not in message
        assert "'tiny', 'smollm2', a local directory with config.json, or a hub id" in message
        assert time.monotonic() - start < 60


def test_other_architectures_and_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnsupportedModel, match=r"is a 'gpt2' model; allowed: qwen2_vl, qwen2_5_vl, qwen3_vl"):
        load_policy(str(tmp_path))
    with pytest.raises(ValueError, match=r"model\.dtype='float64'; allowed: float32, bfloat16"):
        load_policy(str(tmp_path), dtype="float64")


@pytest.mark.parametrize("config", ['{"model_type": "no-such-type"}', "{}", "{"])
def test_an_unreadable_configuration_is_one_line(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnsupportedModel) as caught:
        load_policy(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bfloat16(tmp_path: Path) -> None:
    policy = load_policy(str(tiny_random.build(tmp_path)), dtype="bfloat16")
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}


def test_modules_change_their_mode_as_train_and_eval_change_it():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    for training in (False, True):
        set_training(list(model.modules()), training)
        assert [module.training for module in model.modules()] == [training] * 4
        assert torch.equal(model[0](torch.ones(99)), torch.ones(99)) is not training
