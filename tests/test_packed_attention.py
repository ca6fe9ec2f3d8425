"""Rows packed behind one another do not see each other, and no mask of T x T entries is made for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cua_agent.models.loaders import load_policy
from cua_agent.models.packed_attention import PACKED_SDPA, packed_causal_attention, packed_rows, takes_packed_rows
from tests.policy_rows import ragged_batch
from tests.tiny_random import build
from trainers.config import LossConfig
from trainers.grpo import forward
from trainers.grpo.batching import micro_batches
from trainers.grpo.forward import score_tokens


@pytest.mark.parametrize("lengths", [(5,), (3, 3, 2), (1, 4, 4, 1)])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_every_sequence_is_a_causal_attention_of_its_own(lengths: tuple[int, ...], key_heads: int) -> None:
    torch.manual_seed(0)
    total, width = sum(lengths), 8
    query, key, value = (torch.randn(1, heads, total, width) for heads in (4, key_heads, key_heads))
    places = packed_rows(lengths, query.device)
    mask = places.pop("attention_mask")
    found, _ = packed_causal_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3, **places)
    parts, start = [], 0
    for length in lengths:
        q, k, v = (t[0, :, start : start + length] for t in (query, key, value))
        k, v = (t.repeat_interleave(4 // key_heads, dim=0) for t in (k, v))
        scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
        start += length
    torch.testing.assert_close(found, torch.cat(parts)[None])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


def test_packed_rows_score_as_padded_ones_and_need_no_mask(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(str(weights))
    assert takes_packed_rows(policy.base_model)
    [micro] = micro_batches(policy, ragged_batch(policy), LossConfig(), 1 << 20)
    masks: list[Any] = []
    layer = policy.base_model.model.language_model.layers[0].self_attn
    assert layer.config._attn_implementation == PACKED_SDPA
    layer.register_forward_pre_hook(lambda _, __, given: masks.append(given["attention_mask"]), with_kwargs=True)
    packed = score_tokens(policy, micro, 0.8)
    assert [tuple(mask.shape) for mask in masks] == [(1, 1, 1, 1)]
    monkeypatch.setattr(forward, "takes_packed_rows", lambda _: False)
    padded = score_tokens(policy, micro, 0.8)
    torch.testing.assert_close(packed.logprobs, padded.logprobs)
    torch.testing.assert_close(packed.entropy, padded.entropy)


def test_eager_attention_stays_eager(weights: Path) -> None:
    assert not takes_packed_rows(load_policy(str(weights), attn_implementation="eager").base_model)
