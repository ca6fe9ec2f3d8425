"""Inputs of checkpointed layers in main memory: the same numbers, and nothing of their size left on the device."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from cua_agent.models.architecture import language_model_of
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.offloading import _CopyStream
from cua_agent.models.policy import PolicyModel
from tests.policy_rows import ragged_batch
from tests.tiny_random import build
from trainers.config import LossConfig
from trainers.grpo.batching import micro_batches
from trainers.grpo.forward import score_tokens

LAYERS = 5
WITH_ADAPTER_OR_WITHOUT = pytest.mark.parametrize("lora", [LoraSpec(r=4), None], ids=["lora", "full"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model", layers=LAYERS)


def policy_of(weights: Path, lora: LoraSpec | None, *, offloaded: bool) -> PolicyModel:
    """In training mode; an adapter is not the zero that it begins as."""
    policy = load_policy(str(weights), lora=lora, gradient_checkpointing=True, offload_activations=offloaded)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in policy.trainable_parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    policy.model.train()
    return policy


def losses_of(policy: PolicyModel) -> list[Tensor]:
    """Of micro-batches of different lengths, all of whose graphs exist at the same time."""
    micros = list(micro_batches(policy, ragged_batch(policy), LossConfig(), 150))
    assert len(micros) > 1
    return [score_tokens(policy, micro, 1.0).logprobs.sum() for micro in micros]


def gradients(policy: PolicyModel) -> dict[str, Tensor]:
    """Of all trained parameters, which are left without."""
    found = {}
    for name, parameter in policy.trainable_parameters():
        assert parameter.grad is not None
        found[name], parameter.grad = parameter.grad, None
    return found


@WITH_ADAPTER_OR_WITHOUT
def test_loss_and_gradients_are_those_without_to_the_bit(weights: Path, lora: LoraSpec | None) -> None:
    plain, offloaded = (policy_of(weights, lora, offloaded=each) for each in (False, True))
    wanted, found = losses_of(plain), losses_of(offloaded)
    for loss, other in zip(wanted, found, strict=True):
        assert torch.equal(loss, other)
    for loss, other in zip(wanted, found, strict=True):
        loss.backward()
        expected = gradients(plain)
        assert any(gradient.any() for gradient in expected.values())
        for again in (True, False):
            other.backward(retain_graph=again)
            computed = gradients(offloaded)
            assert all(torch.equal(expected[name], gradient) for name, gradient in computed.items())


def inputs_seen(policy: PolicyModel) -> tuple[list[StorageWeakRef], list[int]]:
    """The memory of every layer's input, and how many of them existed when a layer began; both grow as layers do."""
    seen: list[StorageWeakRef] = []
    alive: list[int] = []

    def note(_: Any, arguments: tuple[Tensor, ...]) -> None:
        seen.append(StorageWeakRef(arguments[0].untyped_storage()))
        alive.append(count(seen))

    for layer in language_model_of(policy.base_model).layers:
        layer.register_forward_pre_hook(note)
    return seen, alive


def count(memory: list[StorageWeakRef]) -> int:
    return len({reference.cdata for reference in memory if not reference.expired()})


@WITH_ADAPTER_OR_WITHOUT
def test_the_newest_input_alone_waits_for_the_backward_pass(weights: Path, lora: LoraSpec | None) -> None:
    held = []
    for offloaded in (False, True):
        policy = policy_of(weights, lora, offloaded=offloaded)
        [micro] = micro_batches(policy, ragged_batch(policy), LossConfig(), 1 << 20)
        seen, alive = inputs_seen(policy)
        loss = score_tokens(policy, micro, 1.0).logprobs.sum()
        held.append(count(seen))
        if offloaded:
            assert max(alive) <= 2  # transformers itself holds the first
            alive.clear()
        loss.backward()
        assert len(seen) == 2 * LAYERS
        if offloaded:
            assert max(alive) <= 2
        assert count(seen) == 0
    assert held == [LAYERS, 1]


class LateCopies(_CopyStream):
    """A side stream that copies at the last moment: when the compute stream waits for it. What is given up before, and
    what is read before, is seen."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.pending: list[tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = []
        self.done = 0

    def move(self, source: Tensor, target: Tensor) -> Any:
        target.fill_(torch.nan)
        self.pending.append((weakref.ref(source), weakref.ref(target)))
        return len(self.pending)

    def wait(self, moved: Any) -> None:
        for found, wanted in self.pending[self.done : moved]:
            source, target = found(), wanted()
            assert source is not None and target is not None, "memory was given up before it was copied"
            target.copy_(source)
        self.done = max(self.done, moved)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> LateCopies:
    copies = LateCopies()
    monkeypatch.setattr("cua_agent.models.offloading._copy_stream", lambda _: copies)
    return copies


def test_nothing_is_read_or_given_up_before_it_is_copied(weights: Path, copies: LateCopies) -> None:
    plain, offloaded = (policy_of(weights, LoraSpec(r=4), offloaded=each) for each in (False, True))
    on_the_way: list[int] = []
    for layer in language_model_of(offloaded.base_model).layers:
        layer.register_forward_pre_hook(lambda *_: on_the_way.append(len(copies.pending) - copies.done))
    wanted, found = losses_of(plain), losses_of(offloaded)
    assert on_the_way == len(found) * LAYERS * [1]  # what the layer itself was given
    on_the_way.clear()
    for loss, other in zip(wanted, found, strict=True):
        loss.backward(), other.backward()
        computed = gradients(offloaded)
        assert all(torch.equal(gradient, computed[name]) for name, gradient in gradients(plain).items())
    assert on_the_way == len(found) * [*(LAYERS - 1) * [1], 0]  # what the layer below was given, and nothing below all


def test_a_graph_that_is_dropped_takes_its_inputs_along(weights: Path, copies: LateCopies) -> None:
    policy = policy_of(weights, None, offloaded=True)
    seen, _ = inputs_seen(policy)
    first, second, *_ = losses_of(policy)
    last = language_model_of(policy.base_model).layers[-1]
    torch.autograd.grad(first, last.mlp.down_proj.weight)  # the layer below is on its way back by now
    del first, second, _
    assert count(seen) == 0
    assert copies.done == len(copies.pending)


def test_what_is_not_trained_is_not_copied(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(weights, None, offloaded=True)
    wanted = losses_of(policy)
    monkeypatch.setattr("cua_agent.models.offloading._LayerInput", None)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(losses_of(policy), wanted, strict=True))
    losses_of(policy.frozen_copy())
