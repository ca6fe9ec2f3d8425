"""Rows that look like rollouts of a tiny random policy: ChatML turns with screenshots and random sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Outcome, Trajectory
from tests.tiny_random import screenshot
from trainers.protocol import Batch


def row(policy: PolicyModel, seed: int, turns: Sequence[tuple[int, int, int]], *, episode_id: str = "") -> Trajectory:
    """One row; a turn is (screenshot height, width, number of sampled tokens); height 0: no screenshot."""
    rng = np.random.default_rng(seed)
    allowed = np.setdiff1d(np.arange(len(policy.tokenizer)), policy.special.banned)
    ids: list[int] = policy.encode("<|im_start|>system\nact<|im_end|>\n")
    mask = [0] * len(ids)
    images = []
    for height, width, sampled in turns:
        prompt = "<|im_start|>user\n"
        if height:
            images.append(screenshot(height, width, int(rng.integers(1 << 30))))
            prompt += "<|vision_start|>" + "<|image_pad|>" * policy.image_tokens(height, width) + "<|vision_end|>"
        prompt_ids = policy.encode(prompt + "<|im_end|>\n<|im_start|>assistant\n")
        ids += prompt_ids + rng.choice(allowed, sampled).tolist()
        mask += [0] * len(prompt_ids) + [1] * sampled
    loss_mask = np.array(mask, np.int32)
    return Trajectory(
        input_ids=np.array(ids, np.int64),
        loss_mask=loss_mask,
        logprobs=(loss_mask * rng.uniform(-6, -4, len(ids))).astype(np.float32),
        versions=np.where(loss_mask == 1, 0, -1).astype(np.int32),
        images=images,
        reward=1.0,
        outcome=Outcome.SUCCESS,
        task_id="task",
        group_id="group",
        episode_id=episode_id or f"episode-{seed}",
        seed=seed,
    )


def ragged_batch(policy: PolicyModel) -> Batch:
    """Five rows of different lengths: no screenshot, one, two of different sizes, and one with nothing to train on."""
    shapes = [[(64, 64, 3)], [(64, 96, 2), (96, 64, 5)], [(0, 0, 4)], [(64, 64, 1), (64, 64, 1)], [(64, 64, 0)]]
    rows = [row(policy, seed, turns) for seed, turns in enumerate(shapes)]
    return Batch(rows, [1.0, -0.5, 0.25, -2.0, 1.5])
