from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import pytest
import tiny_random
import torch

from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec, cards_of
from cua_agent.models.policy import PolicyModel


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def checkpoint(request: pytest.FixtureRequest) -> str:
    return str(tiny_random.build(Path(mkdtemp()), request.param))


def logits(policy: PolicyModel) -> torch.Tensor:
    image = tiny_random.screenshot(64, 96, seed=0)
    placeholders = "<|image_pad|>" * policy.image_tokens(64, 96)
    ids = policy.encode(f"look <|vision_start|>{placeholders}<|vision_end|> well")
    pixel_values, grids = policy.pixels([image])
    positions = torch.from_numpy(policy.positions(ids, [image]))[:, None]
    with torch.no_grad():
        result: torch.Tensor = policy.model(
            input_ids=torch.tensor([ids]), position_ids=positions, pixel_values=pixel_values, image_grid_thw=grids
        ).logits
    return result


def shift(policy: PolicyModel) -> None:
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(0.05)


def test_fresh_adapter_equals_the_base_model_exactly(checkpoint: str) -> None:
    assert torch.equal(logits(load_policy(checkpoint, lora=LoraSpec())), logits(load_policy(checkpoint)))


def test_only_the_language_model_adapter_is_trainable(checkpoint: str) -> None:
    policy = load_policy(checkpoint, lora=LoraSpec(r=4))
    names = [name for name, _ in policy.trainable_parameters()]
    layers = policy.base_model.config.text_config.num_hidden_layers
    assert len(names) == layers * 7 * 2
    assert all("lora_" in name and "language_model" in name for name in names)


def test_reference_is_the_model_without_its_adapter(checkpoint: str) -> None:
    policy = load_policy(checkpoint, lora=LoraSpec())
    base = logits(policy)
    shift(policy)
    trained = logits(policy)
    with policy.reference():
        assert torch.equal(logits(policy), base)
    assert torch.equal(logits(policy), trained)
    assert not torch.allclose(trained, base)


def test_initialisation_follows_the_seed_and_leaves_the_global_random_state(checkpoint: str) -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first, again, other = (load_policy(checkpoint, lora=LoraSpec(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    a, b, c = (dict(policy.trainable_parameters()) for policy in (first, again, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_targets_that_match_nothing_are_one_clear_line(checkpoint: str) -> None:
    with pytest.raises(ValueError, match=r"lora\.target_modules='nothing' cannot be adapted"):
        load_policy(checkpoint, lora=LoraSpec(target_modules="nothing"))


@pytest.mark.parametrize(
    ("devices", "cards"), [(["cpu", "meta"], []), (["cuda:1", "cuda:1", "cpu"], [1]), (["cuda:2", "cuda:0"], [0, 2])]
)
def test_an_adapter_asks_only_the_gpus_of_its_model(devices: list[str], cards: list[int]) -> None:
    parameters = [SimpleNamespace(device=torch.device(name)) for name in devices]
    assert cards_of(SimpleNamespace(parameters=lambda: parameters)) == cards  # type: ignore[arg-type]
