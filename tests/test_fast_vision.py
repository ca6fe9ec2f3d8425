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

from cua_agent.models.fast_vision import packed_attention, use_fast_vision
from cua_agent.models.pixels import image_bytes, pixel_values

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
