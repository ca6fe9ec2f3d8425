"""What a full forward pass says about sampled tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from cua_agent.models.policy import PolicyModel

TOLERANCE = 1e-4
"""Largest difference of a log-probability between a server and a full forward pass, float32."""


def full_logprobs(
    policy: PolicyModel, ids: list[int], images: list[npt.NDArray[np.uint8]], temperature: float
) -> torch.Tensor:
    """Log-probabilities float32 [L, vocabulary] of what follows each token, over what may be sampled."""
    pixel_values, grids = policy.pixels(images) if images else (None, None)
    positions = torch.from_numpy(policy.positions(ids, images))[:, None]
    with torch.no_grad():
        logits: torch.Tensor = policy.model(
            input_ids=torch.tensor([ids]), position_ids=positions, pixel_values=pixel_values, image_grid_thw=grids
        ).logits[0]
    allowed = logits.float().index_fill(-1, torch.tensor(policy.special.banned), -torch.inf)
    return (allowed / temperature).log_softmax(-1)
