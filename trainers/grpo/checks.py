"""What a batch must be before anything learns from it, the same on every backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Trajectory
from trainers.protocol import Batch

_LARGEST = float(np.finfo(np.float32).max)
"""Numbers that are trained on become float32."""

_IMAGE_DIMENSIONS = 3


def check_batch(policy: PolicyModel, batch: Batch) -> None:
    """Raise `ValueError` on a batch that cannot be trained on: see `check_row`; or no token of it is trained."""
    for row in batch.trajectories:
        check_row(policy, row)
    if not any(row.loss_mask.any() for row in batch.trajectories):
        raise ValueError(f"none of the batch's {len(batch.trajectories)} trajectories has a token to train on")


def check_row(policy: PolicyModel, row: Trajectory) -> None:
    """Raise `ValueError` on a row that no episode leaves behind: its arrays differ in length; the placeholders do not
    match the images; the loss mask covers the first token, which nothing predicts, or a token that the policy cannot
    sample or that no version served; a token or an image is none that the model knows."""
    problem = next(_problems(policy, row), None)
    if problem is not None:
        raise ValueError(f"episode {row.episode_id!r}: {problem}")


def not_finite(batch: Batch) -> str | None:
    """What is NaN or infinite among the numbers that `batch` is trained with, and where; None: nothing.

    Such a batch is no error, but nothing to learn from: one number of it would spoil every weight.
    """
    for row, advantage, steps in zip(batch.trajectories, batch.advantages, batch.steps, strict=True):
        name = f"of episode {row.episode_id!r} is"
        bad = np.flatnonzero(~np.isfinite(row.logprobs) & row.loss_mask.astype(bool))
        if bad.size:
            return f"the log-prob of token {bad[0]} {name} {row.logprobs[bad[0]]:g}"
        turns = [("advantage of a turn", advantage + step) for step in steps]
        for what, value in [("advantage", advantage), *turns, ("reward", row.reward)]:
            if not abs(value) <= _LARGEST:
                return f"the {what} {name} {value:g}"
    return None


def check_finite(batch: Batch) -> None:
    """Raise `ValueError` on `not_finite`, where nothing can be skipped."""
    if reason := not_finite(batch):
        raise ValueError(reason)


def update_not_finite(metrics: Mapping[str, float]) -> str | None:
    """What is NaN or infinite of an update's `loss` and `grad_norm`; None: nothing."""
    for key, name in (("loss", "the loss"), ("grad_norm", "the gradient's norm")):
        if not np.isfinite(metrics[key]):
            return f"{name} is {metrics[key]:g}"
    return None


def _problems(policy: PolicyModel, row: Trajectory) -> Iterator[str]:
    for name in ("loss_mask", "logprobs", "versions"):
        if len(getattr(row, name)) != len(row):
            yield f"{name} has {len(getattr(row, name))} entries, input_ids has {len(row)}"
    trained = row.loss_mask.astype(bool)
    yield from _image_problems(policy, row)
    vocabulary: int = policy.base_model.config.get_text_config().vocab_size
    unknown = np.flatnonzero((row.input_ids < 0) | (row.input_ids >= vocabulary))
    if unknown.size:
        place = unknown[0]
        yield f"token {place} has the id {row.input_ids[place]}; allowed: 0 to {vocabulary - 1}"
    if trained[:1].any():
        yield "the loss mask covers the first token, which nothing predicts"
    is_banned = policy.special.is_banned(vocabulary, torch.device("cpu")).numpy()
    impossible = np.unique(row.input_ids[trained & is_banned[row.input_ids]])
    if impossible.size:
        yield f"trains on token {impossible[0]}, which the policy never samples"
    unserved = np.flatnonzero(trained & (row.versions < 0))
    if unserved.size:
        yield f"trains on token {unserved[0]}, which no version of the policy served"


def _image_problems(policy: PolicyModel, row: Trajectory) -> Iterator[str]:
    for index, image in enumerate(row.images):
        if not _is_image(image):
            yield f"image {index} is {image.dtype} {list(image.shape)}; allowed: uint8 [height, width, 3]"
    placeholders = int((row.input_ids == policy.special.image_token_id).sum())
    features = sum(policy.image_tokens(*image.shape[:2]) for image in row.images)
    if placeholders != features:
        yield f"{placeholders} image placeholders, but its {len(row.images)} images give {features}"


def _is_image(image: npt.NDArray[np.generic]) -> bool:
    return image.dtype == np.uint8 and image.ndim == _IMAGE_DIMENSIONS and image.shape[2] == _IMAGE_DIMENSIONS
