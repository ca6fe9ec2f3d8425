"""Which calls of a layer go to its compiled form; that it computes the same is seen on a GPU (test_gpu.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cua_agent.models import compiled_layers
from cua_agent.models.compiled_layers import compile_layers
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from tests.policy_rows import ragged_batch
from tests.tiny_random import build
from trainers.config import LossConfig
from trainers.grpo.batching import micro_batches
from trainers.grpo.forward import score_tokens


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The arguments of every call that reaches a compiled layer."""
    calls: list[set[str]] = []

    def compile_(forward: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append(set(kwargs))
            return forward(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compiled_layers, "_compiled", {})
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    return calls


def test_packed_rows_are_compiled_and_sampling_is_not(tmp_path: Path, handed_over: list[set[str]]) -> None:
    weights = build(tmp_path / "model")
    policy, plain = (load_policy(str(weights), lora=LoraSpec(r=4)) for _ in range(2))
    compile_layers(policy.base_model)
    [micro] = micro_batches(policy, ragged_batch(policy), LossConfig(), 1 << 20)
    wanted = score_tokens(plain, micro, 1.0).logprobs
    depth = policy.base_model.config.text_config.num_hidden_layers
    for copy in (policy, policy.frozen_copy()):
        assert torch.equal(score_tokens(copy, micro, 1.0).logprobs, wanted)
    assert handed_over == 2 * depth * [{"attention_mask", "position_embeddings", "cu_seq_lens_q", "max_length_q"}]
    policy.model(input_ids=torch.tensor([policy.encode("tap")]))
    assert len(handed_over) == 2 * depth
