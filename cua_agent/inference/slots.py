"""Which conversation lives in which slot of the KV cache.

Conversations that decode occupy the slots [0, active); behind them are those whose episode acts on its environment or
waits for a prefill, and empty slots. Every batch is therefore a window of consecutive slots: a view, not a copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cua_agent.inference.base import GenerateRequest, GenerateResponse, StopReason
from cua_agent.inference.kv_cache import SlotCache


@dataclass(eq=False)
class Turn:
    """A request being served.

    `limit` is how many tokens may be sampled, `positions` int64 [3, prompt + limit] the M-RoPE ids of the prompt and of
    every token that may follow, `uniforms` float64 [limit] the random numbers that pick those tokens.
    """

    request: GenerateRequest
    future: asyncio.Future[GenerateResponse]
    positions: npt.NDArray[np.int64]
    uniforms: npt.NDArray[np.float64]
    limit: int
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def awaited_on(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Whether somebody still waits for the turn on `loop`."""
        return not self.future.done() and self.future.get_loop() is loop

    def fail(self, failure: Exception | None) -> None:
        """End with `failure`, or as cancelled; whoever waited on a loop that is closed is gone already."""
        if self.future.done() or self.future.get_loop().is_closed():
            return
        if failure is None:
            self.future.cancel()
        else:
            self.future.set_exception(failure)

    def finish(self, stop_reason: StopReason) -> None:
        """Hand the answer to whoever waits."""
        self.future.set_result(GenerateResponse(self.output_ids, self.logprobs, self.versions, stop_reason))


@dataclass(eq=False)
class Conversation:
    """All tokens of an episode so far; those of the first `cached` and the first `cached_images` are in the cache."""

    id: str
    ids: list[int] = field(default_factory=list)
    images: Sequence[npt.NDArray[np.uint8]] = ()
    cached: int = 0
    cached_images: int = 0
    slot: int | None = None
    turn: Turn | None = None
    last_used: int = 0

    @property
    def uncached(self) -> int:
        """Tokens that the next forward pass has to be fed."""
        return len(self.ids) - self.cached

    def forget(self) -> None:
        """Drop the keys and values; the next turn computes them anew."""
        self.cached = self.cached_images = 0

    def begin(self, turn: Turn) -> None:
        """Take up `turn`, keeping what is cached when its prompt extends exactly that."""
        ids, images = turn.request.input_ids, turn.request.images
        if len(ids) <= self.cached or ids[: self.cached] != self.ids[: self.cached] or not self._same_images(images):
            self.forget()
        self.ids, self.images, self.turn = list(ids), images, turn

    def _same_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> bool:
        pairs = list(zip(self.images[: self.cached_images], images, strict=False))
        return len(pairs) == self.cached_images and all(a is b or np.array_equal(a, b) for a, b in pairs)


class SlotTable:
    """Assigns up to `size` slots and keeps the decoding conversations in front by swapping cache rows."""

    def __init__(self, cache: SlotCache, size: int) -> None:
        self._cache = cache
        self._size = size
        self._rows: list[Conversation | None] = []
        self._active = 0
        self._clock = 0

    @property
    def active(self) -> list[Conversation]:
        """The decoding conversations, in the order of their slots, from slot 0."""
        return [row for row in self._rows[: self._active] if row is not None]

    def claim(self, row: Conversation) -> bool:
        """Make sure that `row` has a slot; the least recently used idle conversation may lose its own to it."""
        if row.slot is not None:
            return True
        slot = self._free_slot()
        if slot is None:
            return False
        self._rows[slot], row.slot = row, slot
        return True

    def activate(self, rows: Iterable[Conversation]) -> tuple[int, list[Conversation]]:
        """Move idle `rows` behind the active ones and count them in; returns their first slot and their order there."""
        first, joining = self._active, sorted(rows, key=_slot)  # in slot order, few have to move
        order = list(range(len(self._rows)))
        for row in joining:
            self._swap(order, _slot(row), self._active)
            self._active += 1
        self._move(order)
        return first, joining

    def deactivate(self, rows: Iterable[Conversation]) -> None:
        """Move active `rows` behind the ones that stay active; their caches stay."""
        order = list(range(len(self._rows)))
        for row in sorted(rows, key=_slot, reverse=True):
            self._active -= 1
            self._swap(order, _slot(row), self._active)
            self._clock += 1
            row.last_used = self._clock
        self._move(order)

    def interrupt(self) -> list[Conversation]:
        """Nobody decodes any more and no cache is worth keeping; returns who did decode."""
        interrupted = self.active
        self._active = 0
        for row in self._rows:
            if row is not None:
                row.forget()
        return interrupted

    def clear(self) -> None:
        """Take every slot back."""
        self.interrupt()
        for row in self._rows:
            if row is not None:
                row.slot = None
        self._rows.clear()

    def remove(self, row: Conversation) -> None:
        """Give the slot of `row` back."""
        if row.slot is None:
            return
        if row.slot < self._active:
            self.deactivate([row])
        self._rows[_slot(row)] = None
        row.slot = None
        row.forget()

    def _free_slot(self) -> int | None:
        for slot in range(self._active, len(self._rows)):
            if self._rows[slot] is None:
                return slot
        if len(self._rows) < self._size:
            self._rows.append(None)
            return len(self._rows) - 1
        idle = [row for row in self._rows[self._active :] if row is not None and row.turn is None]
        if not idle:
            return None
        evicted = min(idle, key=lambda row: row.last_used)
        slot = _slot(evicted)
        self.remove(evicted)
        return slot

    def _swap(self, order: list[int], a: int, b: int) -> None:
        order[a], order[b] = order[b], order[a]
        self._rows[a], self._rows[b] = self._rows[b], self._rows[a]
        for slot in (a, b):
            row = self._rows[slot]
            if row is not None:
                row.slot = slot

    def _move(self, order: list[int]) -> None:
        used = [row.cached for row, source in zip(self._rows, order, strict=True) if row and row.slot != source]
        self._cache.permute(order, max(used, default=0))


def _slot(row: Conversation) -> int:
    assert row.slot is not None, f"conversation {row.id} has no slot"
    return row.slot
