"""What an update does with an unusual batch, the same on every side: long rows, bad numbers, bad rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cua_agent.trajectory import Trajectory
from tests.policy_rows import row
from tests.sides_rig import batch, cut, first_trained, one_group, opened_side, side_config, trained_weights, with_value
from tests.tiny_random import build
from trainers.config import TrainConfig
from trainers.parity.errors import distance
from trainers.parity.replay import SIDES, Opened
from trainers.protocol import Batch

pytest.importorskip("areal")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module", params=SIDES)
def side(request: pytest.FixtureRequest, model: Path) -> Iterator[Opened]:
    config = side_config(model)
    areal = replace(config.areal, packed_tokens=1024)  # less than the longest row
    with opened_side(
        replace(config, areal=areal, optim=replace(config.optim, warmup_steps=99)), request.param
    ) as opened:
        yield opened


def test_a_row_longer_than_a_pass_is_trained(side: Opened, model: Path) -> None:
    longest = side_config(model).model.max_length
    policy = side.components.policy
    long = cut(row(policy, 9, [(64, 64, 40)] * 60), longest)
    shown = int((long.input_ids == policy.special.image_token_id).sum()) // policy.image_tokens(64, 64)
    rows = [*one_group(side), replace(long, reward=3.0, images=long.images[:shown])]
    record = side.trainer.update(batch(rows))
    assert len(long) == longest
    assert not record.skipped
    assert record.metrics["tokens"] == sum(row.loss_mask.sum() for row in rows)


def spoilt(rows: list[Trajectory], what: str, value: float) -> Batch:
    """`rows` as a batch in which one number of the first row is `value`."""
    good = batch(rows)
    if what == "advantage":
        return Batch(rows, [value, *good.advantages[1:]])
    if what == "reward":
        return Batch([replace(rows[0], reward=value), *rows[1:]], good.advantages)
    return Batch([with_value(rows[0], "logprobs", first_trained(rows[0]), value), *rows[1:]], good.advantages)


@pytest.mark.parametrize(
    ("what", "value", "said"),
    [
        ("log-prob", math.nan, "the log-prob of token 29 of episode 'episode-0' is nan"),
        ("log-prob", -math.inf, "the log-prob of token 29 of episode 'episode-0' is -inf"),
        ("log-prob", math.inf, "the log-prob of token 29 of episode 'episode-0' is inf"),
        ("advantage", math.nan, "the advantage of episode 'episode-0' is nan"),
        ("advantage", 1e200, "the advantage of episode 'episode-0' is 1e+200"),
        ("reward", math.inf, "the reward of episode 'episode-0' is inf"),
    ],
)
def test_a_batch_that_is_not_finite_is_skipped_and_says_what_is_not(
    side: Opened, what: str, value: float, said: str
) -> None:
    rows = one_group(side)
    said = said.replace("29", str(first_trained(rows[0])))
    before = trained_weights(side)
    rate = side.trainer.update(batch(rows)).metrics["lr"]
    after = trained_weights(side)
    assert distance(before, after).relative > 0
    record = side.trainer.update(spoilt(rows, what, value))
    assert (record.skipped, record.reason, record.metrics) == (True, said, {})
    assert distance(after, trained_weights(side)).relative == 0
    assert side.trainer.update(batch(rows)).metrics["lr"] == pytest.approx(rate + rate_step(side), rel=1e-9)
    with pytest.raises(ValueError, match=f"^{said.replace('+', '.')}$"):
        side.trainer.loss_and_gradients(spoilt(rows, what, value))


def rate_step(side: Opened) -> float:
    """What the learning rate grows by with every update of the warm-up."""
    return TrainConfig().optim.learning_rate / 100


def test_log_probs_that_are_not_trained_do_not_matter(side: Opened) -> None:
    rows = one_group(side)
    plain = side.trainer.loss_and_gradients(batch(rows))
    odd = side.trainer.loss_and_gradients(batch([with_value(rows[0], "logprobs", 0, math.nan), *rows[1:]]))
    assert odd.metrics == plain.metrics
    assert all(torch.equal(odd.gradients[name], plain.gradients[name]) for name in plain.gradients)


def unknown_token(row: Trajectory) -> Trajectory:
    return with_value(row, "input_ids", 3, 10**6)


def shortened(row: Trajectory) -> Trajectory:
    short = replace(row)
    short.versions = short.versions[:-1]
    return short


def untrained(row: Trajectory) -> Trajectory:
    return replace(row, loss_mask=np.zeros_like(row.loss_mask))


BAD: dict[str, tuple[Callable[[list[Trajectory]], list[Trajectory]], str]] = {
    "empty": (lambda _: [], "none of the batch's 0 trajectories has a token"),
    "untrained": (lambda rows: [untrained(r) for r in rows], "none of the batch's 5 trajectories has a token"),
    "first token": (lambda rows: [with_value(rows[0], "loss_mask", 0, 1), *rows[1:]], "covers the first token"),
    "unknown token": (lambda rows: [unknown_token(rows[0]), *rows[1:]], "token 3 has the id 1000000; allowed: 0 to "),
    "negative token": (lambda rows: [with_value(rows[0], "input_ids", 3, -5), *rows[1:]], "token 3 has the id -5"),
    "no version": (
        lambda rows: [with_value(rows[0], "versions", first_trained(rows[0]), -1), *rows[1:]],
        "which no version of the policy served",
    ),
    "lengths": (lambda rows: [shortened(rows[0]), *rows[1:]], r"versions has \d+ entries, input_ids has \d+"),
    "lost image": (lambda rows: [replace(rows[0], images=[]), *rows[1:]], "4 image placeholders, but its 0 images"),
    "float image": (
        lambda rows: [replace(rows[0], images=[rows[0].images[0].astype(np.float32)]), *rows[1:]],
        r"image 0 is float32 \[64, 64, 3\]; allowed: uint8 \[height, width, 3\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_batch_that_no_episodes_leave_behind_is_refused_in_one_line(side: Opened, kind: str) -> None:
    spoil, said = BAD[kind]
    rows = spoil(one_group(side))
    before = trained_weights(side)
    for learn in (side.trainer.update, side.trainer.loss_and_gradients):
        with pytest.raises(ValueError, match=said) as refused:
            learn(Batch(rows, [1.0] * len(rows)))
        assert "\n" not in str(refused.value)
    assert distance(before, trained_weights(side)).relative == 0
