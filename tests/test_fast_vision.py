"""The fast vision tower computes what the stock tower computes, for images of any sizes, forward and backward."""

import copy
from pathlib import Path
from tempfile import mkdtemp

import pytest
import tiny_random
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from cua_agent.models.fast_vision import bring_grids, packed_attention, use_fast_vision
from cua_agent.models.loaders import load_policy
from cua_agent.models.pixels import image_bytes, pixel_values
from tests.policy_rows import ragged_batch
from trainers.config import LossConfig
from trainers.grpo.batching import micro_batches
from trainers.grpo.forward import score_tokens

SMALL, WIDE, TALL = (64, 64), (32, 96), (128, 64)


@pytest.fixture(scope="module")
def directory() -> str:
    return str(tiny_random.build(Path(mkdtemp())))


@pytest.fixture(scope="module")
def towers(directory: str) -> list[nn.Module]:
    """The same vision weights twice: stock and fast."""
    stock, fast = (Qwen3VLForConditionalGeneration.from_pretrained(directory) for _ in range(2))
    use_fast_vision(fast)
    return [stock.model.visual, fast.model.visual]


@pytest.fixture(scope="module")
def processor(directory: str) -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor.from_pretrained(directory)


def embed(tower: nn.Module, processor: Qwen2VLImageProcessor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """What the tower gives the language model: merged image tokens and the deepstack features."""
    images = [tiny_random.screenshot(*size, seed=i) for i, size in enumerate(sizes)]
    pixels, grids = image_bytes(processor, images)
    output = tower(pixel_values(processor, pixels, grids), grid_thw=grids)
    return [output.pooler_output, *output.deepstack_features]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(sizes=st.lists(st.sampled_from([SMALL, WIDE, TALL]), min_size=1, max_size=6))
def test_forward_is_the_stock_towers(
    towers: list[nn.Module], processor: Qwen2VLImageProcessor, sizes: list[tuple[int, int]]
) -> None:
    with torch.no_grad():
        stock, fast = (embed(tower, processor, sizes) for tower in towers)
    assert stock[0].shape[0] == sum(height * width // 32**2 for height, width in sizes)
    assert [torch.equal(ours, theirs) for ours, theirs in zip(fast, stock, strict=True)] == [True] * len(stock)


def test_images_that_are_alike_are_computed_once_and_get_their_gradients_together(
    towers: list[nn.Module], processor: Qwen2VLImageProcessor
) -> None:
    a, b = (tiny_random.screenshot(*SMALL, seed=seed) for seed in (0, 1))
    c = tiny_random.screenshot(*WIDE, seed=0)
    pixels, grids = image_bytes(processor, [a, b, a, c, b, a])
    stock, fast = towers
    patches: list[int] = []
    hook = fast.patch_embed.register_forward_pre_hook(lambda _, given: patches.append(len(given[0])))
    results = []
    for tower in (stock, fast):
        tower.zero_grad()
        output = tower(pixel_values(processor, pixels, grids), grid_thw=grids)
        features = [output.last_hidden_state, output.pooler_output, *output.deepstack_features]
        sum((part * torch.arange(len(part))[:, None]).sum() for part in features).backward()
        gradients = [parameter.grad for parameter in tower.parameters() if parameter.grad is not None]
        results.append([*features, *(gradient / gradient.norm().clamp(min=1e-9) for gradient in gradients)])
    hook.remove()
    assert patches == [16 + 16 + 12]  # 4 x 4, 4 x 4, 2 x 6
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [[SMALL] * 3, [SMALL, SMALL, TALL, WIDE, SMALL]])
def test_gradients_are_the_stock_towers(
    towers: list[nn.Module], processor: Qwen2VLImageProcessor, sizes: list[tuple[int, int]]
) -> None:
    gradients = []
    for tower in towers:
        parameters = dict(tower.named_parameters())
        total = sum(part.square().mean() for part in embed(tower, processor, sizes))
        found = torch.autograd.grad(total, list(parameters.values()))
        gradients.append(dict(zip(parameters, found, strict=True)))
    stock, fast = gradients
    for name, gradient in stock.items():
        # Sums over patches run in another order, so the last bits may differ.
        torch.testing.assert_close(fast[name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))
    assert all(gradient.abs().sum() > 0 for gradient in stock.values())


def test_images_do_not_see_each_other(towers: list[nn.Module], processor: Qwen2VLImageProcessor) -> None:
    _, fast = towers
    with torch.no_grad():
        alone = embed(fast, processor, [SMALL])[0]
        together = embed(fast, processor, [SMALL, SMALL, TALL])[0]
    torch.testing.assert_close(together[: len(alone)], alone)


def test_packed_attention_by_hand() -> None:
    """Two sequences of lengths 1 and 2, one head of width 1: the first attends to itself only."""
    query, key = torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1)
    value = torch.tensor([5.0, 1.0, 3.0]).reshape(1, 1, 3, 1)
    boundaries = torch.tensor([0, 1, 3], dtype=torch.int32)
    output, weights = packed_attention(nn.Identity(), query, key, value, scaling=1.0, cu_seq_lens_q=boundaries)
    assert weights is None
    assert output.shape == (1, 3, 1, 1)
    assert output.flatten().tolist() == [5.0, 2.0, 2.0]  # equal scores: the mean within each sequence


def test_the_tower_really_runs_packed(
    towers: list[nn.Module], processor: Qwen2VLImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[torch.Size] = []

    def attention(query: Tensor, *arguments: Tensor, **options: float) -> Tensor:
        batches.append(query.shape)
        return scaled_dot_product_attention(query, *arguments, **options)

    monkeypatch.setattr("cua_agent.models.packed_attention.scaled_dot_product_attention", attention)
    with torch.no_grad():
        embed(towers[1], processor, [SMALL, SMALL, SMALL, TALL])
    depth = len(towers[1].blocks)
    assert [shape[0] for shape in batches] == [3, 1] * depth  # three images at once, then the odd one


def test_a_copy_sees_with_weights_of_its_own(directory: str, processor: Qwen2VLImageProcessor) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(directory)
    use_fast_vision(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = embed(twin.model.visual, processor, [SMALL, SMALL])[0]
        for parameter in model.model.visual.parameters():
            parameter.add_(0.1)
        assert torch.equal(embed(twin.model.visual, processor, [SMALL, SMALL])[0], before)
        assert not torch.equal(embed(model.model.visual, processor, [SMALL, SMALL])[0], before)


def test_the_whole_model_scores_as_transformers_own_does(directory: str) -> None:
    """Placeholders, deeper features and positions, after sampling has asked for them."""
    scores, gradients = [], []
    for attention in ("sdpa", "eager"):
        policy = load_policy(directory, attn_implementation=attention)
        [micro] = micro_batches(policy, ragged_batch(policy), LossConfig(), 1 << 20)
        with torch.inference_mode():
            score_tokens(policy, micro, 1.0)
        scored = score_tokens(policy, micro, 1.0).logprobs
        scored.sum().backward()
        scores.append(scored)
        gradients.append({n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys() and any("deepstack" in name for name in gradients[0])
    for name, wanted in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_frames_and_a_wrong_number_of_placeholders_are_as_transformers_has_them(directory: str) -> None:
    stock, fast = (Qwen3VLForConditionalGeneration.from_pretrained(directory) for _ in range(2))
    use_fast_vision(fast)
    grid = torch.tensor([[2, 4, 4]])
    assert torch.equal(*(tower.fast_pos_embed_interpolate(grid) for tower in (fast.model.visual, stock.model.visual)))
    ids = torch.full((1, 3), stock.config.image_token_id)
    embedded = torch.zeros(1, 3, stock.config.text_config.hidden_size)
    for model in (stock, fast):
        with pytest.raises(ValueError, match="features"):
            model.model.get_placeholder_mask(ids, embedded, image_features=embedded[0, :2])


def test_a_tower_that_is_not_fast_is_brought_its_grids(directory: str) -> None:
    """By name or in order, to where the patches are: here a device that holds nothing."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(directory)
    bring_grids(model)
    tower, seen = model.model.visual, []
    tower.forward = lambda patches, grid_thw: seen.append((patches.device.type, grid_thw.device.type))
    patches, grid = torch.zeros(16, 8, device="meta"), torch.tensor([[1, 4, 4]])
    tower(patches, grid_thw=grid), tower(patches, grid)
    assert seen == [("meta", "meta")] * 2
