"""What a run says and heeds while a step's groups are collected."""

from collections.abc import Callable

import pytest

from tests.legacy_rig import Watcher
from tests.toy_world import toy_task
from trainers.protocol import Collected, Group, GroupSpec
from trainers.run.collecting import CollectingWatch, nothing_to_learn
from trainers.run.stopping import Stopped

SO_FAR = Collected(
    filtered=[Group(GroupSpec(toy_task(), 0, f"g{index}"), []) for index in range(3)], lost=["g0-1: died"]
)


def watch_at(clock: list[float], watcher: Watcher, budget: Callable[[float], str | None]) -> CollectingWatch:
    return CollectingWatch(watcher, budget, lambda: clock[0])


def test_a_long_collecting_says_within_half_a_minute_what_it_waits_for() -> None:
    clock, watcher = [100.0], Watcher()
    watch = watch_at(clock, watcher, lambda _: None)
    for second in range(90):
        clock[0] = 100.0 + second
        watch(1, 4, SO_FAR)
    assert watcher.messages == [
        f"collecting for {second} s: 1 of 4 done; so far 3 groups without signal (equal rewards in a group), "
        "1 episodes lost"
        for second in (20, 40, 80)
    ]


def test_a_collecting_ends_when_its_time_is_up() -> None:
    clock, watcher = [0.0], Watcher()
    watch = watch_at(clock, watcher, lambda lasted_s: "max_minutes" if lasted_s >= 5 else None)
    clock[0] = 4.0
    watch(0, 4, SO_FAR)
    clock[0] = 6.0
    with pytest.raises(Stopped) as stopped:
        watch(0, 4, SO_FAR)
    assert (stopped.value.reason, stopped.value.collecting_s) == ("max_minutes", 6.0)


def test_a_step_without_groups_says_why_also_when_earlier_steps_counted_them() -> None:
    assert nothing_to_learn(SO_FAR) == "3 groups without signal (equal rewards in a group)"
    assert nothing_to_learn(Collected()) == "its places went to groups without signal that earlier steps have counted"
