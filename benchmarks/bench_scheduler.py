"""How busy the scheduler alone keeps simulated boxes: no model, no screens, one core.

    python benchmarks/bench_scheduler.py --boxes 1000
    python benchmarks/bench_scheduler.py --boxes 64 --steps 100 --evaluate-every 5 --evaluations hold fill beside

Everything that decides who plays next is the real thing: task sequence, groups, the pool of environments, the window of
groups and the staleness rule. A box is a log-normal delay an action (those of bench_async.py), the policy is scripted,
and an update takes a fixed time. The clock is the processor time of this thread plus the delays, which are skipped: so
work of the scheduler keeps boxes waiting as it would in a run, and other work on the machine does not.

Evaluations of 200 episodes: `hold` starts no training group before an evaluation is over, `fill` none before its last
episode has a box; `beside` trains meanwhile, and serves the new version when the evaluation is over.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import selectors
import time
from dataclasses import dataclass, field
from itertools import product
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cua_agent.envs.pool import EnvironmentPool
from cua_agent.trajectory import Outcome, Trajectory
from trainers.areal.rollout.group_results import FinishedGroup
from trainers.areal.rollout.group_window import GroupWindow
from trainers.config import EnvConfig, RolloutConfig
from trainers.protocol import EpisodeSpec
from trainers.rollouts.collection import play_all, play_groups
from trainers.rollouts.task_sampler import TaskSampler, training_tasks

MEDIAN_S, P99_S = 1.0, 8.0
SIGMA = math.log(P99_S / MEDIAN_S) / 2.3263478740408408  # standard normal quantile
GROUP = 8
WARM_UP = 4
EVALUATION = 200


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait: what it would sleep is added to its clock, beside its thread's processor
    time."""

    def __init__(self) -> None:
        self.skipped = 0.0
        super().__init__(_Skipping(self))

    def time(self) -> float:
        return time.thread_time() + self.skipped


class _Skipping(selectors.DefaultSelector):
    def __init__(self, loop: SkippingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self._loop.skipped += timeout
        return super().select(timeout and 0)


class Box:
    """An environment that has nothing to show."""

    def __init__(self, random: Random) -> None:
        self._random = random

    async def act(self) -> None:
        """One action."""
        await asyncio.sleep(self._random.lognormvariate(math.log(MEDIAN_S), SIGMA))

    async def close(self) -> None:
        """Nothing is held."""


@dataclass
class Run:
    """Groups between the task sequence and training, on `boxes`; `signal` is the share of groups that carry any,
    `actions` are the fewest and the most of an episode."""

    boxes: int
    bound: int
    update_s: float
    signal: float
    random: Random = field(default_factory=lambda: Random(0))
    version: int = 0
    evaluate_every: int = 0
    evaluations: str = "fill"
    actions: tuple[int, int] = (4, 15)
    starts: dict[int, int] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        places = max(1, self.boxes // GROUP)
        rollout = RolloutConfig(
            group_size=GROUP, groups_per_step=places, concurrency=self.boxes, max_staleness=self.bound
        )
        self.rollout = rollout
        self.window = GroupWindow(rollout, max_failures=8)
        self.sampler = TaskSampler(training_tasks(EnvConfig()), seed=0)
        self.changed = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def train(self, steps: int) -> tuple[float, float, float]:
        """Seconds of a step, the share of the boxes' time in use, and processor seconds an action, after the
        warm-up."""
        clock = asyncio.get_running_loop().time

        async def new_box() -> Any:
            return Box(self.random)

        async with EnvironmentPool(new_box, self.boxes, clock=clock) as self.pool:
            self._top_up()
            evaluation: asyncio.Task[None] | None = None
            for step in range(WARM_UP + steps):
                if step == WARM_UP:
                    began, worked, busy = clock(), time.thread_time(), self.pool.stats().busy_s
                while self.window.hand_out(self.starts, self.version) is None:
                    self.changed.clear()
                    await self.changed.wait()
                await asyncio.sleep(self.update_s)
                if evaluation is not None:
                    await evaluation
                    evaluation = None
                self.version += 1
                self.window.drop_old(self.version)
                self._top_up()
                if self.evaluate_every and step % self.evaluate_every == 0:
                    evaluation = asyncio.create_task(self._evaluate())
                    if self.evaluations != "beside":
                        await evaluation
            lasted, worked = clock() - began, time.thread_time() - worked
            busy = self.pool.stats().busy_s - busy
            running = [*self.tasks, *([] if evaluation is None else [evaluation])]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        actions = busy / (MEDIAN_S * math.exp(SIGMA**2 / 2))
        return lasted / steps, busy / (lasted * self.boxes), worked / actions

    async def _evaluate(self) -> None:
        """Play the episodes of an evaluation."""
        waiting = EVALUATION

        async def run(box: Any, episode: EpisodeSpec) -> list[Trajectory]:
            nonlocal waiting
            waiting -= 1
            if waiting == 0 and self.evaluations == "fill":
                self.may_start.set()
            for _ in range(self.random.randint(*self.actions)):
                await box.act()
            return [_row(episode, self.version)]

        task = self.sampler.at(0).task
        if self.evaluations != "beside":
            self.may_start.clear()
        specs = [EpisodeSpec(task, number, f"eval-{number}", f"eval-{number}") for number in range(EVALUATION)]
        await play_all(self.pool, run, specs, retries=0)
        self.may_start.set()

    def _top_up(self) -> None:
        for _ in range(self.window.vacant):
            self._start(refills=0)

    def _start(self, refills: int) -> None:
        index = self.sampler.position
        [spec] = self.sampler.next(1)
        self.window.running[index] = refills
        task = asyncio.create_task(self._play(index, spec))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _play(self, index: int, spec: Any) -> None:
        async def run(box: Any, episode: EpisodeSpec) -> list[Trajectory]:
            self.starts.setdefault(index, self.version)
            for _ in range(self.random.randint(*self.actions)):
                await box.act()
            return [_row(episode, self.starts[index])]

        await self.may_start.wait()
        [group], lost = await play_groups(self.pool, run, [spec], GROUP, retries=0)
        tensors: dict[str, Any] | None = {} if self.random.random() < self.signal else None
        refills = self.window.settle(FinishedGroup(index, group, lost), tensors, self.version)
        self.starts.pop(index)
        if refills is not None:
            self._start(refills)
        self.changed.set()


def _row(episode: EpisodeSpec, version: int) -> Trajectory:
    ones = np.ones(1, dtype=np.int32)
    return Trajectory(
        input_ids=np.zeros(1, dtype=np.int64),
        loss_mask=ones,
        logprobs=np.zeros(1, dtype=np.float32),
        versions=ones * version,
        images=[],
        reward=0.0,
        outcome=Outcome.FAILURE,
        task_id=episode.task.id,
        group_id=episode.group_id,
        episode_id=episode.episode_id,
        seed=episode.seed,
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[16, 64, 1000], help="episodes at a time")
    parser.add_argument("--steps", type=int, default=20, help="training steps of each run")
    parser.add_argument("--staleness", type=int, default=2, help="bound")
    parser.add_argument("--update", type=float, default=5.0, help="seconds of an update")
    parser.add_argument("--signal", type=float, default=0.9, help="share of groups with signal")
    parser.add_argument("--actions", type=int, nargs=2, default=(4, 15), help="fewest and most of an episode")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the delays; figures are means")
    parser.add_argument("--evaluate-every", type=int, default=0, metavar="N", help="steps (default: never)")
    parser.add_argument("--evaluations", nargs="+", choices=["hold", "fill", "beside"], default=["fill"])
    options = parser.parse_args()
    table = Table()
    for column in ("boxes", "groups a step", "evaluations", "step s", "in use", "processor ms an action"):
        table.add_column(column, justify="right")
    every = options.evaluate_every
    for boxes, how in product(options.boxes, options.evaluations):
        measured = []
        for seed in options.seeds:
            run = Run(
                boxes,
                options.staleness,
                options.update,
                options.signal,
                random=Random(seed),
                evaluate_every=every,
                evaluations=how,
                actions=tuple(options.actions),
            )
            with asyncio.Runner(loop_factory=SkippingLoop) as runner:
                measured.append(runner.run(run.train(options.steps)))
        step_s, in_use, worked_s = map(fmean, zip(*measured, strict=True))
        figures = (f"{step_s:.2f}", f"{in_use:.1%}", f"{1000 * worked_s:.3f}")
        table.add_row(str(boxes), str(run.rollout.groups_per_step), how if every else "none", *figures)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
