"""The staleness bound on AReaL's real executor, over latencies, failures, filtered groups, pauses and skipped updates.

No trained token is older than the bound, every batch comes, no group is trained twice, and a resumed run starts with
the first group that no step has seen.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stream_rig import Fate, Kind, Stream, configuration, number, opened
from trainers.config import TrainConfig
from trainers.protocol import Collected

pytest.importorskip("areal")
pytestmark = pytest.mark.slow

MOMENTS = st.sampled_from([0.0, 0.003, 0.01, 0.04])
DELAYS = st.sampled_from([0.0, 0.0, 0.005, 0.02, 0.1])
KINDS: list[Kind] = ["signal", "signal", "none", "none", "replaced", "lost", "crash"]
FATE = st.builds(Fate, st.sampled_from(KINDS), DELAYS, DELAYS)
FATES = st.lists(FATE, max_size=7).map(lambda fates: [Fate(), *fates])
CONFIGS = st.builds(
    configuration,
    staleness=st.integers(0, 3),
    groups=st.integers(1, 3),
    refills=st.integers(0, 2),
    concurrency=st.integers(1, 12),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["publish", "publish", "publish", "skip", "pause", "restart"]), MOMENTS),
    min_size=6,
    max_size=14,
)


class Books:
    """What a test knows of the groups that a run has seen, and what must hold."""

    def __init__(self, config: TrainConfig, fates: list[Fate]) -> None:
        self.bound = config.rollout.max_staleness
        self.places = config.rollout.groups_per_step
        self.fates = fates
        self.trained: list[int] = []
        self.filtered: list[int] = []
        self.stalest = 0

    def batch(self, collected: Collected, version: int) -> None:
        kept = [number(group.spec.group_id) for group in collected.kept]
        assert kept == sorted(kept)
        assert len(kept) <= self.places
        assert not set(kept) & set(self.trained), "a group is trained once"
        for group in collected.kept:
            assert {row.reward for row in group.rows} == {0.0, 1.0}
            for row in group.rows:
                ages = version - row.versions[row.loss_mask == 1]
                assert ages.min() >= 0 and ages.max() <= self.bound
                self.stalest = max(self.stalest, int(ages.max()))
        self.trained += kept
        self.filtered += [number(group.spec.group_id) for group in collected.filtered]

    def position(self, position: int) -> None:
        """Everything before `position` is done with; what it names is not, unless it is about to be counted as lost."""
        done = {*self.trained, *self.filtered}
        assert [index for index in range(position) if index not in done and not self.loses(index)] == []
        assert position not in done

    def loses(self, index: int) -> bool:
        return self.fates[index % len(self.fates)].kind in ("lost", "crash")

    def restart(self, position: int) -> None:
        """A resumed run knows nothing of groups that came after its position."""
        self.trained = [index for index in self.trained if index < position]
        self.filtered = [index for index in self.filtered if index < position]


def act(stream: Stream, action: str, seconds: float) -> None:
    """What a trainer does with a batch: it takes `seconds`, and publishes unless the update was skipped."""
    if action == "pause":
        stream.pause(seconds)
    time.sleep(seconds)
    if action != "skip":
        stream.publish()


@given(config=CONFIGS, fates=FATES, steps=STEPS, token_s=st.sampled_from([0.0, 0.002]))
@settings(max_examples=18, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens_the_bound_holds_and_every_batch_comes(
    config: TrainConfig, fates: list[Fate], steps: list[tuple[str, float]], token_s: float
) -> None:
    logging.getLogger("trainers.areal.rollout.group_workflow").setLevel(logging.CRITICAL)  # crashes are part of it
    books = Books(config, fates)
    version, position, left = 0, 0, list(steps)
    with TemporaryDirectory() as directory:
        while left:
            with opened(config, fates, Path(directory), token_s=token_s, version=version, position=position) as stream:
                while left:
                    action, seconds = left.pop(0)
                    books.batch(stream.collect(), stream.version)
                    act(stream, action, seconds)
                    books.position(stream.stream.position)
                    if action == "restart":
                        break
                version, position = stream.version, stream.stream.position
            books.restart(position)


@pytest.mark.parametrize("refills", [0, 1])
def test_a_long_run_on_uneven_devices_with_few_groups_that_carry_signal_keeps_the_bound(
    refills: int, tmp_path: Path
) -> None:
    """Half of the groups carry none, and turns take between a millisecond and half a second."""
    random = Random(refills)
    fates = [Fate(random.choice(("signal", "none")), delay_s=random.lognormvariate(-4.0, 1.2)) for _ in range(997)]
    config = configuration(staleness=2, groups=3, refills=refills, concurrency=24)
    books = Books(config, fates)
    with opened(config, fates, tmp_path) as stream:
        for _ in range(60):
            books.batch(stream.collect(), stream.version)
            act(stream, "publish", 0.01)
    assert len(books.trained) > 60


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_the_bound_is_used(bound: int, tmp_path: Path) -> None:
    """Rollouts run ahead as far as they may: with episodes that take no time, batches are as old as allowed."""
    config = configuration(staleness=bound, groups=2, refills=0, concurrency=8)
    books = Books(config, [Fate()])
    with opened(config, [Fate()], tmp_path) as stream:
        for _ in range(2 * bound + 4):
            books.batch(stream.collect(), stream.version)
            act(stream, "publish", 0.05)
    assert books.stalest == bound


def test_a_group_slower_than_everything_is_waited_for_before_it_is_too_old(tmp_path: Path) -> None:
    config = configuration(staleness=1, groups=1, refills=0, concurrency=8)
    fates = [Fate(delay_s=0.4), *[Fate()] * 40]
    books = Books(config, fates)
    with opened(config, fates, tmp_path) as stream:
        for _ in range(6):
            books.batch(stream.collect(), stream.version)
            act(stream, "publish", 0.0)
    assert 0 in books.trained


def test_a_run_goes_on_with_the_first_group_that_no_step_has_seen(tmp_path: Path) -> None:
    config = configuration(staleness=1, groups=2, refills=1, concurrency=4)
    fates = [Fate(), Fate("none"), Fate("lost"), Fate(), Fate("replaced")]
    books = Books(config, fates)
    with opened(config, fates, tmp_path / "first") as stream:
        for _ in range(3):
            books.batch(stream.collect(), stream.version)
            stream.publish()
        position = stream.stream.position
        books.position(position)
    seen = list(books.trained)
    with opened(config, fates, tmp_path / "second", version=3, position=position) as stream:
        books.restart(position)
        collected = stream.collect()
        books.batch(collected, 3)
        assert all(row.versions.max() == 3 for group in collected.kept for row in group.rows)
    first = min(number(group.spec.group_id) for group in [*collected.kept, *collected.filtered])
    assert position <= first
    assert max(seen) < position + 2 * config.rollout.groups_per_step * (config.rollout.max_staleness + 1)


def test_two_batches_of_slow_groups_are_both_trained_in_time(tmp_path: Path) -> None:
    """Six slow groups of version 0 need two of the three batches that may still train on them; the first of these has
    to wait for three of them, though newer groups are there."""
    first, second = threading.Event(), threading.Event()
    fates = [*[Fate()] * 3, *[Fate(gate=first)] * 3, *[Fate(gate=second)] * 3, *[Fate()] * 40]
    config = configuration(staleness=2, groups=3, refills=0, concurrency=24)
    books = Books(config, fates)
    with opened(config, fates, tmp_path) as stream:
        for gate in (None, first, second, None):
            books.batch(stream.collect(opens=gate), stream.version)
            if gate is not None:
                gate.set()  # were it not waited for
            stream.publish()
    assert books.trained[:9] == list(range(9))


def test_a_place_without_signal_does_not_displace_a_group_that_gets_too_old(tmp_path: Path) -> None:
    gate = threading.Event()
    slow, none = Fate(gate=gate), Fate("none")
    fates = [Fate(), Fate(), slow, slow, none, Fate(), none, *[Fate()] * 40]
    config = configuration(staleness=1, groups=2, refills=1, concurrency=12)
    books = Books(config, fates)
    with opened(config, fates, tmp_path) as stream:
        for opens in (None, gate, None):
            books.batch(stream.collect(opens=opens), stream.version)
            stream.publish()
    assert books.trained[:4] == [0, 1, 2, 3]
