"""Which of a turn's sampled tokens are its action, and which the thought before it."""

from __future__ import annotations

import torch
from torch import Tensor


def action_tokens(input_ids: Tensor, loss_mask: Tensor, call_id: int | None) -> Tensor | None:
    """bool [B, L]: the trained tokens of each turn from its first `call_id` on, which begins a tool call; None where no
    token does. `input_ids` int64 [B, L]; `loss_mask` [B, L] is not 0 on trained tokens, of which an unbroken run is a
    turn."""
    if call_id is None:
        return None
    trained = loss_mask.bool()
    calls = (trained & (input_ids == call_id)).cumsum(-1)
    first = trained & ~trained.roll(1, dims=-1)  # column 0 is never trained, nor therefore wrapped into
    before = torch.where(first, calls - (input_ids == call_id).long(), 0).cummax(-1).values
    return trained & (calls > before)
