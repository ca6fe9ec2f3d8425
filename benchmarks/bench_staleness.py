"""What the staleness rule costs in waiting, on simulated devices: the rule against batches of whatever ends first.

    python benchmarks/bench_staleness.py

Nothing is played or trained: episodes are log-normal delays (those of bench_async.py), 64 at a time, and an update
takes a fixed time. Both sides start groups alike. The first steps, which fill the window, are left out. "In use" is the
share of the time that devices work under the rule. Bound 0 is the synchronous backend.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from random import Random

from rich.console import Console
from rich.table import Table

from trainers.areal.rollout.staleness import HandOut, hand_out, may_start

PLACES, GROUP, CONCURRENCY, REFILLS = 8, 8, 64, 1
MEDIAN_S, P99_S = 1.0, 8.0
SIGMA = math.log(P99_S / MEDIAN_S) / 2.3263478740408408  # standard normal quantile
ACTIONS = (4, 15)
WARM_UP = 20

Choose = Callable[[Sequence[int], Mapping[int, int], int, int, int], HandOut | None]
"""A batch of: starts of running groups, of ready ones in the order of their ends, empty places, version, bound."""


def by_the_rule(
    running: Sequence[int], ready: Mapping[int, int], empty: int, version: int, bound: int
) -> HandOut | None:
    """The batch of the trainer."""
    return hand_out(running, ready, empty, version, bound=bound, places=PLACES)


def first_come(_: Sequence[int], ready: Mapping[int, int], empty: int, *__: int) -> HandOut | None:
    """As many groups as there are places, whatever their age."""
    if len(ready) + empty < PLACES:
        return None
    taken = min(empty, PLACES)
    return HandOut(tuple(ready)[: PLACES - taken], (), taken)


@dataclass
class Devices:
    """Groups on `CONCURRENCY` devices: which run and since which version, and which are ready."""

    random: Random
    signal: float
    actions: tuple[int, int] = ACTIONS
    now: float = 0.0
    version: int = 0
    numbers: int = 0
    empty: int = 0
    left: dict[int, int] = field(default_factory=dict)  # episodes still to end, by group
    refills: dict[int, int] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)
    ready: dict[int, int] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)
    playing: list[tuple[float, int]] = field(default_factory=list)

    def submit(self, refills: int = 0) -> None:
        """Queue the episodes of a new group."""
        self.left[self.numbers], self.refills[self.numbers] = GROUP, refills
        self.waiting.extend([self.numbers] * GROUP)
        self.numbers += 1
        self._fill()

    def top_up(self, bound: int) -> None:
        """Queue as many groups as the rule lets start."""
        for _ in range(may_start(len(self.left) + len(self.ready), self.empty, bound=bound, places=PLACES)):
            self.submit()

    def next_end(self) -> None:
        """Go on to the end of the next episode."""
        self.now, group = heapq.heappop(self.playing)
        self.left[group] -= 1
        if not self.left[group]:
            del self.left[group]
            self._group_ended(group)
        self._fill()

    def until(self, moment: float) -> None:
        """Go on to `moment`."""
        while self.playing and self.playing[0][0] <= moment:
            self.next_end()
        self.now = moment

    def running(self) -> list[int]:
        """The starts of running groups."""
        return [self.starts.get(group, self.version) for group in self.left]

    def _group_ended(self, group: int) -> None:
        start = self.starts.pop(group)
        if self.random.random() < self.signal:
            self.ready[group] = start
        elif (refills := self.refills.pop(group)) < REFILLS:
            self.submit(refills + 1)
        else:
            self.empty += 1

    def _fill(self) -> None:
        while self.waiting and len(self.playing) < CONCURRENCY:
            group = self.waiting.popleft()
            self.starts.setdefault(group, self.version)
            delays = (
                self.random.lognormvariate(math.log(MEDIAN_S), SIGMA) for _ in range(self.random.randint(*self.actions))
            )
            heapq.heappush(self.playing, (self.now + sum(delays), group))


@dataclass(frozen=True)
class Measured:
    """Means over the steps after the warm-up; `stalest` is the largest age that was trained, `too_old` the share of the
    groups beyond the bound."""

    step_s: float
    waited_s: float
    stalest: int
    too_old: float


def run(
    choose: Choose, bound: int, train_s: float, signal: float, steps: int, actions: tuple[int, int] = ACTIONS
) -> Measured:
    """A run of `steps` updates after the warm-up; an episode has from the one to the other number of `actions`."""
    devices, waited, began, ages = Devices(Random(0), signal, actions), 0.0, 0.0, [0]
    devices.top_up(bound)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            waited, began, ages = 0.0, devices.now, [0]
        collecting = devices.now
        while (batch := choose(devices.running(), devices.ready, devices.empty, devices.version, bound)) is None:
            devices.next_end()
        waited += devices.now - collecting
        ages += [devices.version - devices.ready.pop(group) for group in batch.groups]
        devices.empty -= batch.empty
        devices.until(devices.now + train_s)
        devices.version += 1
        devices.top_up(bound)
    too_old = sum(age > bound for age in ages) / len(ages)
    return Measured((devices.now - began) / steps, waited / steps, max(ages), too_old)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each run")
    parser.add_argument("--bounds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--updates", type=float, nargs="+", default=[5.0, 20.0], help="seconds of an update")
    parser.add_argument("--signals", type=float, nargs="+", default=[0.9, 0.5], help="shares of groups with signal")
    parser.add_argument("--actions", type=int, nargs=2, default=ACTIONS, help="fewest and most of an episode")
    options = parser.parse_args()
    actions = (options.actions[0], options.actions[1])
    episode_s = sum(actions) / 2 * MEDIAN_S * math.exp(SIGMA**2 / 2)
    table = Table()
    for column in (
        "bound",
        "update s",
        "signal",
        "first come: step s",
        "oldest",
        "too old",
        "rule: step s",
        "oldest",
        "cost",
        "in use",
    ):
        table.add_column(column, justify="right")
    for bound, train_s, signal in product(options.bounds, options.updates, options.signals):
        free = run(first_come, bound, train_s, signal, options.steps, actions)
        ruled = run(by_the_rule, bound, train_s, signal, options.steps, actions)
        cost = ruled.step_s / free.step_s - 1
        figures = [
            f"{free.step_s:.2f}",
            str(free.stalest),
            f"{free.too_old:.1%}",
            f"{ruled.step_s:.2f}",
            str(ruled.stalest),
        ]
        in_use = f"{episode_s * PLACES * GROUP / CONCURRENCY / ruled.step_s:.0%}" if signal == 1 else "-"
        table.add_row(str(bound), f"{train_s:g}", f"{signal:.0%}", *figures, f"{cost:+.1%}", in_use)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
