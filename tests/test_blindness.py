"""What becomes of a turn whose screenshot is blanked."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel
from tests import tiny_random
from tests.policy_rows import row
from trainers.config import TrainConfig
from trainers.grpo.blindness import MOST_ROWS, blind_gap, blinded
from trainers.grpo.learner import PolicyLearner
from trainers.parity.starts import rescored
from trainers.protocol import Batch


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyModel:
    return load_policy(str(tiny_random.build(tmp_path_factory.mktemp("model"))))


def test_the_last_turn_alone_is_trained_and_its_screenshot_is_grey(policy: PolicyModel) -> None:
    two, unseen = row(policy, 0, [(64, 64, 3), (64, 96, 2)]), row(policy, 1, [(0, 0, 4)])
    [blind] = blinded(Batch([two, unseen], [1.0, 1.0])).trajectories
    assert np.array_equal(blind.images[0], two.images[0]) and set(blind.images[1].flatten()) == {127}
    assert blind.images[1].shape == two.images[1].shape
    assert np.array_equal(np.flatnonzero(blind.loss_mask), np.flatnonzero(two.loss_mask)[3:])
    assert np.array_equal(blind.logprobs, two.logprobs)
    assert len(blinded(Batch([two] * 99, [1.0] * 99)).trajectories) == MOST_ROWS


def test_who_looks_is_told_from_who_does_not(policy: PolicyModel) -> None:
    learner = PolicyLearner(policy, TrainConfig())
    rows = rescored(policy, [row(policy, seed, [(64, 64, 5)]) for seed in range(3)], 1.0)
    assert blind_gap(Batch(rows, [1.0] * 3), learner.loss_and_gradients) > 1.01
    grey = [replace(each, images=[np.full_like(each.images[0], 127)]) for each in rows]
    unmoved = rescored(policy, grey, 1.0)  # what is seen makes no difference to it
    assert blind_gap(Batch(unmoved, [1.0] * 3), learner.loss_and_gradients) == pytest.approx(1, abs=1e-4)
    assert math.isnan(blind_gap(Batch([], []), learner.loss_and_gradients))
    broken = replace(rows[0], logprobs=np.full_like(rows[0].logprobs, np.nan))  # its update is skipped
    assert math.isnan(blind_gap(Batch([broken], [1.0]), learner.loss_and_gradients))
