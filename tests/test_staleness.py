"""The staleness rule on its own: every order of events for small sizes, and a search over larger ones."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stream_rig import number, sampled
from tests.toy_world import toy_task
from trainers.areal.rollout.group_results import FinishedGroup
from trainers.areal.rollout.group_window import GroupWindow, TooManyFailures
from trainers.areal.rollout.staleness import hand_out, holds, may_start
from trainers.config import RolloutConfig
from trainers.protocol import EpisodeSpec, Group, GroupSpec

Ages = tuple[int, ...]


@dataclass(frozen=True)
class State:
    """A window, in versions before the present one: of running groups, of ready ones, in order; `waiting` ones have not
    begun. `trains`: a batch was handed out, and its update is not over."""

    waiting: int
    running: Ages = ()
    ready: Ages = ()
    empty: int = 0
    trains: bool = False


@dataclass(frozen=True)
class Sizes:
    """What is searched: everything that a window of these sizes can come to."""

    bound: int
    places: int
    multiple: int = 1

    def start(self) -> State:
        return State(waiting=(self.bound + 1) * self.places)

    def after(self, state: State) -> Iterator[State]:
        """All that may happen next. A refill may be left or not, so that any number of them is covered."""
        if state.waiting:  # a group begins; one is lost before it does and replaced, which changes nothing
            yield replace(state, waiting=state.waiting - 1, running=plus(state.running, 0))
        for age in set(state.running):
            others = replace(state, running=minus(state.running, age))
            yield replace(others, ready=plus(state.ready, age))
            yield replace(others, waiting=state.waiting + 1)  # lost, or without signal and replaced
            yield replace(others, empty=state.empty + 1)
        if state.trains:
            yield self.topped_up(state)  # the update was skipped
            older = [tuple(age + 1 for age in ages) for ages in (state.running, state.ready)]
            yield self.topped_up(replace(state, running=older[0], ready=older[1]))
        elif (handed := self.batch(state)) is not None:
            yield handed

    def batch(self, state: State) -> State | None:
        """The state once a batch is handed out, every promise checked; None when the rule waits."""
        handed = hand_out(
            [-age for age in state.running] + [0] * state.waiting,
            {number: -age for number, age in enumerate(state.ready)},
            state.empty,
            0,
            bound=self.bound,
            places=self.places,
            multiple=self.multiple,
        )
        live = bool(state.running or state.waiting)
        if handed is None:
            assert live, f"nobody can end the waiting: {state}"
            assert self.multiple > 1 or not any(self.could_hand_out(state)), f"it waits for nothing: {state}"
            return None
        gone = {*handed.groups, *handed.dropped}
        assert len(handed.groups) % self.multiple == 0 and len(handed.groups) + handed.empty == self.places
        assert not handed.dropped or (self.multiple > 1 and not live)
        assert all(state.ready[number] <= self.bound for number in handed.groups), f"too old: {state}"
        ready = tuple(age for number, age in enumerate(state.ready) if number not in gone)
        left = replace(state, ready=ready, empty=state.empty - handed.empty + len(handed.dropped), trains=True)
        assert left.empty >= 0
        assert self.can_all_be_trained(left)
        starts = [-age for age in (*left.running, *left.ready)] + [0] * left.waiting
        assert holds(starts, 0, bound=self.bound, places=self.places)
        return left

    def could_hand_out(self, state: State) -> Iterator[bool]:
        """Whether some batch would leave groups that can all be trained, for every number of groups in it; taking those
        that started first is the best choice of so many."""
        earliest = sorted(state.ready, reverse=True)
        for size in range(max(0, self.places - state.empty), min(self.places, len(earliest)) + 1):
            yield self.can_all_be_trained(replace(state, ready=tuple(earliest[size:])))

    def can_all_be_trained(self, state: State) -> bool:
        """Whether each coming batch could take its `places` oldest groups and none would be too old: scheduled step by
        step, as if all carried signal and every update raised the version."""
        ages = sorted([*state.running, *state.ready, *[0] * state.waiting], reverse=True)
        for later in range(1, len(ages) + 1):
            if any(age + later > self.bound for age in ages[: self.places]):
                return False
            ages = ages[self.places :]
        return True

    def topped_up(self, state: State) -> State:
        outstanding = state.waiting + len(state.running) + len(state.ready)
        count = may_start(outstanding, state.empty, bound=self.bound, places=self.places)
        assert count >= 0
        return replace(state, waiting=state.waiting + count, trains=False)

    def reachable(self) -> set[State]:
        seen, left = {self.start()}, [self.start()]
        while left:
            for state in self.after(left.pop()):
                if state not in seen:
                    seen.add(state)
                    left.append(state)
        return seen


def plus(ages: Ages, age: int) -> Ages:
    return tuple(sorted((*ages, age)))


def minus(ages: Ages, age: int) -> Ages:
    return tuple(sorted((Counter(ages) - Counter([age])).elements()))


@pytest.mark.parametrize(("bound", "places"), [*product((0, 1), (1, 2, 3)), (2, 1), (2, 2), (3, 1)])
def test_in_every_order_of_events_the_bound_holds_and_no_batch_waits_without_need(bound: int, places: int) -> None:
    """All states that a window can come to: groups begin, end with signal, without, or lost, while batches are handed
    out and updates are made or skipped. A run that is started anew is at the start again."""
    states = Sizes(bound, places).reachable()
    assert len(states) > bound


@pytest.mark.slow
@pytest.mark.parametrize(("bound", "places", "multiple"), [(2, 3, 1), (3, 2, 1), (2, 2, 2), (1, 4, 2), (1, 3, 3)])
def test_in_every_order_of_events_the_bound_holds_in_larger_windows(bound: int, places: int, multiple: int) -> None:
    Sizes(bound, places, multiple).reachable()


MOVES = ["begin", "begin", "signal", "signal", "none", "lost", "collect", "collect", "publish", "skip", "jump"]


@dataclass
class Run:
    """A `GroupWindow`, and what a trainer and its rollouts do with it."""

    window: GroupWindow
    jumps: bool
    version: int = 0
    next: int = 0
    trains: bool = False
    begun: dict[int, int] = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)

    def move(self, name: str, pick: int) -> None:
        """Do what `name` says, with the `pick`-th of the groups it may happen to, if it can happen."""
        begun = [index for index in self.window.running if index in self.begun]
        waiting = [index for index in self.window.running if index not in self.begun]
        if name == "begin" and waiting:
            self.begun[waiting[pick % len(waiting)]] = self.version
        elif name in ("signal", "none") and begun:
            self.end(begun[pick % len(begun)], name)
        elif name == "lost" and self.window.running:
            self.end([*self.window.running][pick % len(self.window.running)], name)
        elif name == "collect" and not self.trains:
            self.collect()
        elif name in ("publish", "skip") and self.trains:
            self.version += name == "publish"
            self.trains = False
            self.top_up()
        elif name == "jump" and self.jumps:  # updates on batches from elsewhere
            self.version += 1 + pick % 3

    def submit(self, refills: int) -> None:
        self.window.running[self.next] = refills
        self.next += 1

    def top_up(self) -> None:
        for _ in range(self.window.vacant):
            self.submit(0)

    def end(self, index: int, kind: str) -> None:
        spec = GroupSpec(toy_task(), index, f"g{index:06d}")
        start = self.begun.pop(index, self.version)
        row = sampled([start, self.version], 1.0, EpisodeSpec(spec.task, 0, spec.group_id, f"{spec.group_id}-0"))
        finished = FinishedGroup(index, Group(spec, [] if kind == "lost" else [[row]]))
        refills = self.window.settle(finished, {} if kind == "signal" else None, self.version)
        if refills is not None:
            self.submit(refills)

    def end_all(self) -> None:
        """Every running group ends with signal, those that it makes room for as well."""
        while self.window.running:
            index = next(iter(self.window.running))
            self.begun.setdefault(index, self.version)
            self.end(index, "signal")

    def collect(self) -> None:
        self.window.drop_old(self.version)
        self.top_up()
        handed = self.window.hand_out(self.begun, self.version)
        if handed is None:
            assert self.window.running
            return
        collected, groups = handed
        sizes = self.window.rollout
        assert len(groups) % self.window.multiple == 0 and len(groups) <= sizes.groups_per_step
        assert [ready.group for ready in groups] == collected.kept
        assert all(self.version - ready.start <= sizes.max_staleness for ready in groups)
        assert self.jumps or self.window.multiple > 1 or not collected.dropped
        self.trained += [number(ready.group.spec.group_id) for ready in groups]
        self.trains = True
        outstanding = [self.begun.get(index, self.version) for index in self.window.running]
        outstanding += [ready.start for ready in self.window.ready.values()]
        sizes_hold = holds(outstanding, self.version, bound=sizes.max_staleness, places=sizes.groups_per_step)
        assert self.jumps or sizes_hold


@given(
    bound=st.integers(0, 4),
    places=st.integers(1, 3),
    multiple=st.integers(1, 2),
    refills=st.integers(0, 3),
    jumps=st.booleans(),
    moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 99)), max_size=150),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_to_a_window_no_group_is_trained_too_old_and_every_batch_comes(
    bound: int, places: int, multiple: int, refills: int, jumps: bool, moves: list[tuple[str, int]]
) -> None:
    rollout = RolloutConfig(groups_per_step=places * multiple, max_staleness=bound, max_refills=refills)
    run = Run(GroupWindow(rollout, max_failures=10_000, multiple=multiple), jumps)
    for name, pick in [("collect", 0), *moves]:
        run.move(name, pick)
    for _ in range(2 * bound + 3):  # whatever was left, batches go on once groups end
        run.move("publish", 0)
        run.end_all()
        run.collect()
        if not run.trains:  # what waited was too old, and its replacements play
            run.end_all()
            run.collect()
        assert run.trains
    assert len(run.trained) == len(set(run.trained)) > 0


def test_a_group_that_is_done_too_late_is_dropped_counted_and_replaced() -> None:
    """Two versions were published without a batch between them."""
    run = Run(GroupWindow(RolloutConfig(groups_per_step=1, max_staleness=1, max_refills=0), 8), jumps=True)
    run.top_up()
    run.begun = {0: 0, 1: 0}
    run.end(0, "signal")
    run.version = 2
    run.end(1, "signal")
    run.collect()
    assert list(run.window.running) == [2, 3]
    for index in (2, 3):
        run.end(index, "signal")
    handed = run.window.hand_out({}, run.version)
    assert handed is not None
    assert (handed[0].dropped, [group.spec.group_id for group in handed[0].kept]) == (
        ["g000001", "g000000"],
        ["g000002"],
    )


def test_lost_groups_in_a_row_end_the_collecting() -> None:
    run = Run(GroupWindow(RolloutConfig(groups_per_step=1), max_failures=2), jumps=False)
    run.top_up()
    run.end(0, "lost")
    run.end(1, "none")
    run.end(2, "lost")
    with pytest.raises(TooManyFailures, match="2 groups in a row were lost; the last: unknown"):
        run.end(3, "lost")
