"""What long episodes cost with each `rollout.context`: rows, tokens, and processor seconds of playing and training.

    python benchmarks/bench_context.py --turns 30 --last-k 3

The same tasks of the built-in phone with the built-in model, which nothing ends before `--turns`: a call that reports
success is a turn like others. Contexts take turns; ratios are medians over the repeats to `full`. Training is the loss
and the gradients of all rows, on one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

from rich.console import Console
from rich.table import Table

from cua_agent.agent import Progress
from cua_agent.conversation import Context
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.inference import local
from cua_agent.inference.local import LocalEngine
from cua_agent.trajectory import Trajectory
from trainers.components import Components, build_components
from trainers.config import TrainConfig
from trainers.config.compose import load_config
from trainers.grpo.learner import PolicyLearner
from trainers.protocol import Batch, EpisodeSpec
from trainers.rollouts.collection import play_all
from trainers.rollouts.task_sampler import TaskSampler

CONTEXTS: tuple[Context, ...] = ("full", "last_k", "folded")


@dataclass(frozen=True)
class Cost:
    """Of all episodes: token rows, their tokens and screenshots, tokens prefilled, and processor seconds."""

    rows: int
    tokens: int
    screenshots: int
    prefilled: int
    playing_s: float
    training_s: float


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30, help="of every episode (default: 30)")
    parser.add_argument("--episodes", type=int, default=16, help="at the same time (default: 16)")
    parser.add_argument("--last-k", type=int, default=3, help="screenshots that are kept (default: 3)")
    parser.add_argument("--repeats", type=int, default=3, help="measured ones, after one that warms up (default: 3)")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    args = parser.parse_intermixed_args()
    keys = ["threads=1", "model.max_length=4096", f"rollout.max_turns={args.turns}", f"rollout.last_k={args.last_k}"]
    config = load_config([*keys, *args.overrides])
    components = build_components(config)
    costs: dict[Context, list[Cost]] = {context: [] for context in CONTEXTS}
    for repeat in range(1 + args.repeats):
        for context in CONTEXTS:
            cost = measure(replace(config, rollout=replace(config.rollout, context=context)), components, args)
            costs[context] += [cost] if repeat else []
    Console(width=120).print(report(costs))


def measure(config: TrainConfig, components: Components, args: argparse.Namespace) -> Cost:
    """Play the episodes, and train on them."""
    with prefills() as prefilled:
        started = time.process_time()
        rows = asyncio.run(play(config, args))
        played = time.process_time()
    learner = PolicyLearner(components.policy, config)
    before = time.process_time()
    learner.loss_and_gradients(Batch(rows, [(-1.0) ** number for number in range(len(rows))]))
    return Cost(
        rows=len(rows),
        tokens=sum(map(len, rows)),
        screenshots=sum(len(row.images) for row in rows),
        prefilled=sum(prefilled),
        playing_s=played - started,
        training_s=time.process_time() - before,
    )


async def play(config: TrainConfig, args: argparse.Namespace) -> list[Trajectory]:
    """The rows of all episodes, each of as many turns as asked for."""
    components = build_components(config)
    engine = LocalEngine(components.policy, max_batch=args.episodes)
    specs = [
        EpisodeSpec(replace(spec.task, max_steps=args.turns), spec.seed, spec.group_id, f"{spec.group_id}-0")
        for spec in TaskSampler(components.train_tasks, config.seed).next(args.episodes)
    ]
    with mock.patch.object(Progress, "over", property(lambda _: False)):
        async with components.environments() as factory, EnvironmentPool(factory, args.episodes) as pool:
            played = await play_all(pool, components.runner_for(engine), specs, retries=0)
    await engine.close()
    rows = [row for each in played for row in each.rows or ()]
    turns = sum(len(row.turns) for row in rows)
    assert turns == args.turns * args.episodes, f"{turns} turns: model.max_length ended some episodes, or one was lost"
    return rows


@contextmanager
def prefills() -> Iterator[list[int]]:
    """How many tokens of each conversation the engine prefills inside, every time."""
    lengths: list[int] = []
    divide = local.prefill_batches

    def counted(uncached: Sequence[int], budget: int) -> list[list[int]]:
        lengths.extend(uncached)
        return divide(uncached, budget)

    with mock.patch.object(local, "prefill_batches", counted):
        yield lengths


def report(costs: dict[Context, list[Cost]]) -> Table:
    """Medians over the repeats."""
    table = Table("context", "rows", "tokens", "screenshots", "prefilled", "playing s", "ratio", "training s", "ratio")
    for context, each in costs.items():
        last = each[-1]
        cells = [f"{number:,}" for number in (last.rows, last.tokens, last.screenshots, last.prefilled)]
        for name in ("playing_s", "training_s"):
            own, full = ([getattr(cost, name) for cost in side] for side in (each, costs["full"]))
            ratio = statistics.median(mine / its for mine, its in zip(own, full, strict=True))
            cells += [f"{statistics.median(own):.2f}", f"{ratio:.2f}"]
        table.add_row(context, *cells)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


if __name__ == "__main__":
    main()
