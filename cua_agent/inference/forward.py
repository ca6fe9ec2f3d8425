"""Next-token logits of many conversations at once over a shared KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cua_agent.inference.kv_cache import SlotCache
from cua_agent.inference.slots import Conversation
from cua_agent.models.packed_attention import PACKED_SDPA
from cua_agent.models.policy import PolicyModel
from cua_agent.models.vision_features import VisionFeatures

SUPPORTED_ATTENTION = ("sdpa", "eager", PACKED_SDPA)


@contextmanager
def serving(model: nn.Module) -> Iterator[None]:
    """Without gradients and without dropout; the training mode is restored."""
    with without_training(model), torch.inference_mode():
        yield


@contextmanager
def without_training(model: nn.Module) -> Iterator[None]:
    """Without dropout; the training mode is restored."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


class CachedForward:
    """Feeds the tokens that are not in the cache yet and returns the logits behind each conversation's last token.

    Raises `ValueError` for models whose attention cannot take a mask per row.
    """

    def __init__(self, policy: PolicyModel, cache: SlotCache) -> None:
        config = policy.base_model.config.get_text_config()
        if config._attn_implementation not in SUPPORTED_ATTENTION:
            raise ValueError(
                f"loader.attn_implementation={config._attn_implementation!r} does not serve inference=local; "
                "allowed: sdpa, eager"
            )
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise ValueError("inference=local does not serve models with sliding-window attention")
        self._policy = policy
        self._cache = cache
        self._features = VisionFeatures(policy)

    def weights_changed(self) -> None:
        """Keys and values are of the past, and so is what a vision tower that is trained saw."""
        self._cache.clear()
        if not self._policy.frozen_vision:
            self._features.forget()

    def prefill(self, rows: Sequence[Conversation], first_slot: int) -> Tensor:
        """Logits [n, vocab] after everything known of `rows`, which occupy the slots from `first_slot`.

        Chunks are padded on the right; the padding's keys land behind the row's end and are overwritten later.
        """
        offsets = np.array([row.cached for row in rows])
        lengths = np.array([len(row.ids) for row in rows]) - offsets
        input_ids = np.full((len(rows), lengths.max()), self._policy.special.pad_id, dtype=np.int64)
        positions = np.zeros((3, *input_ids.shape), dtype=np.int64)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            assert row.turn is not None
            input_ids[i, :length] = row.ids[row.cached :]
            positions[:, i, :length] = row.turn.positions[:, row.cached : len(row.ids)]
        images = [image for row in rows for image in row.images[row.cached_images :]]
        logits = self._forward(first_slot, input_ids, positions, offsets, lengths, images)
        for row in rows:
            row.cached, row.cached_images = len(row.ids), len(row.images)
        return logits

    def decode(self, rows: Sequence[Conversation]) -> Tensor:
        """Logits [n, vocab] after one more token of each of `rows`, which occupy the slots from 0."""
        last = np.array([row.cached for row in rows])
        tokens = np.array([[row.ids[-1]] for row in rows])
        positions = np.array([row.turn.positions[0, row.cached] for row in rows if row.turn is not None])
        ones = np.ones_like(last)
        logits = self._forward(0, tokens, np.broadcast_to(positions[:, None], (3, len(rows), 1)), last, ones, ())
        for row in rows:
            row.cached += 1
        return logits

    def _forward(
        self,
        first_slot: int,
        input_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        images: Sequence[npt.NDArray[np.uint8]],
    ) -> Tensor:
        """Row i of `input_ids` [n, Q] has `lengths[i]` tokens behind `offsets[i]` cached; `positions` [3, n, Q]."""
        model, device = self._policy.base_model, self._policy.device
        n, width = input_ids.shape
        used, reach = int((offsets + lengths).max()), int(offsets.max()) + width
        columns = torch.from_numpy(offsets[:, None] + np.arange(width)).to(device)
        self._cache.select(first_slot, columns, used, reach)
        hidden = self._policy.hidden_states_of(
            torch.from_numpy(input_ids).to(device),
            _causal_mask(columns, used, model.dtype),
            torch.tensor(positions, device=device),
            self._features.of(images),
            past_key_values=self._cache,
            use_cache=True,
            cache_position=torch.arange(width, device=device),
        )
        ends = torch.from_numpy(lengths - 1).to(hidden.device)
        logits: Tensor = model.lm_head(hidden[torch.arange(n, device=hidden.device), ends])
        return logits


def _causal_mask(columns: Tensor, used: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [n, 1, Q, used]: the token in column c sees the columns 0..c of its row."""
    hidden = torch.arange(used, device=columns.device) > columns[:, None, :, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=columns.device).masked_fill_(hidden, torch.finfo(dtype).min)
