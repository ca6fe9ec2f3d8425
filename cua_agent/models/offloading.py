"""Inputs of checkpointed layers lie in main memory between the forward and the backward pass.

Gradient checkpointing keeps the input of every layer, [1, T, width], on the card: 36 x 128 MiB for 16,384 tokens of an
8B model in bfloat16, however many cards share the model. Here there are those of two layers at a time. It costs as much
pinned main memory as it saves (each input rounded up to a power of two, by PyTorch, which keeps that memory and hands
it out again), up to twice as much where the CPU is a micro-batch ahead, and a copy each way, made while a layer
computes. Nothing is computed that checkpointing would not compute, and the numbers are the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cua_agent.models.architecture import language_model_of


def offload_inputs(model: Any) -> None:
    """Let the decoder layers of `model`, with gradient checkpointing enabled, keep their inputs so; in place, for it
    and its copies. The vision tower's blocks keep theirs, of which there are none while it is frozen."""
    for layer in language_model_of(model).layers:
        layer._gradient_checkpointing_func = offloaded_checkpoint


def offloaded_checkpoint(layer: Callable[..., Any], hidden_states: Tensor, *rest: Any) -> Any:
    """`layer(hidden_states, *rest)` through PyTorch's checkpoint, which is given an anchor in place of `hidden_states`:
    a tensor of the same shape and place in the graph, in the memory of one element."""
    if not torch.is_grad_enabled():
        return layer(hidden_states, *rest)
    kept = _LayerInput(hidden_states)

    def compute(anchor: Tensor, *rest: Any) -> Any:
        return layer(_Restore.apply(anchor, kept), *rest)  # type: ignore[no-untyped-call]

    anchor = _Anchor.apply(hidden_states)  # type: ignore[no-untyped-call]
    return checkpoint(compute, anchor, *rest, use_reentrant=False, context_fn=lambda: (nullcontext(), kept))


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_empty_strided(hidden_states.shape, [0] * hidden_states.dim())

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Restore(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, _anchor: Tensor, kept: _LayerInput) -> Tensor:
        assert kept.on_device is not None
        return kept.on_device.detach()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _LayerInput:
    """The input of one layer: `on_device` until the next layer begins and again while its own is computed again, which
    happens inside this as a context; else as a copy in main memory only.

    `on_device` is the compute stream's memory, which the side stream reads or writes. So the compute stream waits until
    it has `moved` before it reads what came back, and before the memory is given up. (With `record_stream` instead,
    memory would be free for others only when the GPU has got there, and the CPU, which asks for it, is many layers
    ahead.)
    """

    on_device: Tensor | None = None

    def __init__(self, hidden_states: Tensor) -> None:
        self._copies = copies = _copy_stream(hidden_states.device)
        self._previous, copies.newest = copies.newest, weakref.ref(self)
        if (previous := self._previous()) is not None:
            previous.release()
        self._copy = torch.empty(hidden_states.shape, dtype=hidden_states.dtype, pin_memory=copies.stream is not None)
        self.on_device = hidden_states.detach()
        self._moved = copies.move(self.on_device, self._copy)

    def __enter__(self) -> None:
        self.fetch()
        self._copies.wait(self._moved)
        if (previous := self._previous()) is not None:
            previous.fetch()  # the next to be computed again

    def __exit__(self, *_: object) -> None:
        self.release()

    def fetch(self) -> None:
        """Begin to bring it back, unless it is there."""
        if self.on_device is None:
            self.on_device = torch.empty_like(self._copy, device=self._copies.device)
            self._moved = self._copies.move(self._copy, self.on_device)

    def release(self) -> None:
        if self.on_device is not None:
            self._copies.wait(self._moved)
            self.on_device = None

    __del__ = release  # of a graph that is dropped, what was on its way


class _CopyStream:
    """Between `device` and main memory: on CUDA a stream beside the one that computes, elsewhere plain copies."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.newest: Callable[[], _LayerInput | None] = lambda: None

    def move(self, source: Tensor, target: Tensor) -> torch.cuda.Event | None:
        """Begin to copy, after what the compute stream was asked for so far: `source` may be its result, and `target`
        memory that it uses until then."""
        if self.stream is None:
            target.copy_(source)
            return None
        self._compute = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(self._compute)
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            moved: torch.cuda.Event = self.stream.record_event()
        return moved

    def wait(self, moved: torch.cuda.Event | None) -> None:
        """Let the compute stream wait, not the CPU, whichever thread drops the last reference."""
        if moved is not None:
            self._compute.wait_event(moved)


@cache
def _copy_stream(device: torch.device) -> _CopyStream:
    return _CopyStream(device)
