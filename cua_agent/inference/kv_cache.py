"""Keys and values of many conversations, one slot each, in buffers that grow and are addressed by views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class SlotCache(Cache):  # type: ignore[misc]
    """A transformers cache whose rows are at different lengths.

    Every layer has a key and a value buffer [slots, kv_heads, capacity, head_dim]. Before a forward pass `select` names
    the window of consecutive slots that the batch occupies and the column of every new token; `update` writes there and
    returns views of the window, so that nothing is copied per step. What lies beyond a row's length is finite garbage
    that the attention mask hides and later tokens overwrite.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._window = slice(0, 0)
        self._rows = torch.empty(0, dtype=torch.long)
        self._columns = torch.empty(0, dtype=torch.long)
        self._used = 0
        self._shape = (0, 0)  # slots, capacity

    def select(self, first_slot: int, columns: Tensor, used: int, reach: int) -> None:
        """Name the next forward pass's slots, from `first_slot` on, and where its tokens go.

        `columns` int64 [n, Q] are the columns of the new tokens, `used` the number of columns that hold tokens of any
        row afterwards, `reach` the same with padding counted in.
        """
        stop = first_slot + len(columns)
        self._window = slice(first_slot, stop)
        self._rows = torch.arange(len(columns), device=columns.device)[:, None]
        self._columns, self._used = columns, used
        self._reserve(stop, reach)

    @torch.inference_mode()
    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,  # noqa: ARG002 (interface of Cache)
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values [n, kv_heads, Q, head_dim].

        Returns those of the whole window, [n, kv_heads, used, head_dim].
        """
        keys = self._store(self._keys, key_states, layer_idx)
        return keys, self._store(self._values, value_states, layer_idx)

    @torch.inference_mode()
    def permute(self, order: Sequence[int], used: int) -> None:
        """Slot i takes over the first `used` columns of slot `order[i]`."""
        moved = [slot for slot, source in enumerate(order) if slot != source]
        if not moved:
            return
        self._reserve(len(order), used)
        sources = [order[slot] for slot in moved]
        for buffers in (self._keys, self._values):
            for layer in range(len(buffers)):
                buffer = self._fitted(buffers, layer)
                buffer[moved, :, :used] = buffer[sources, :, :used]

    def clear(self) -> None:
        """Free the buffers; the next ones are allocated at the size that was reached."""
        self._keys.clear()
        self._values.clear()

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 (interface of Cache)
        return self._used

    def _reserve(self, slots: int, capacity: int) -> None:
        """Ask for larger buffers, with room to grow; they are reallocated when they are next touched."""
        had_slots, had_capacity = self._shape
        self._shape = (
            slots + slots // 2 if slots > had_slots else had_slots,
            capacity + capacity // 2 if capacity > had_capacity else had_capacity,
        )

    def _store(self, buffers: list[Tensor], states: Tensor, layer: int) -> Tensor:
        if layer == len(buffers):
            buffers.append(states.new_zeros(0, states.shape[1], 0, states.shape[3]))
        window = self._fitted(buffers, layer)[self._window]
        window[self._rows, :, self._columns] = states.transpose(1, 2)
        return window[:, :, : self._used]

    def _fitted(self, buffers: list[Tensor], layer: int) -> Tensor:
        buffer = buffers[layer]
        slots, capacity = self._shape
        if buffer.shape[0] < slots or buffer.shape[2] < capacity:
            grown = buffer.new_zeros(slots, buffer.shape[1], capacity, buffer.shape[3])
            grown[: buffer.shape[0], :, : buffer.shape[2]] = buffer
            buffer = buffers[layer] = grown
        return buffer
