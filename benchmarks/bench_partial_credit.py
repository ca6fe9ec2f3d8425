"""Whether partial credit teaches what success alone cannot: a family of tasks that no group solves at the start.

    python benchmarks/bench_partial_credit.py --steps 15 --seeds 0 1

A phone shows its Settings; its brightness, on a page behind them, is to go from 0 to 100 %, four taps on "+". The
built-in model taps once or twice and reports that it is done. Each seed trains twice from there: by success alone
(`reward.partial=0`), and with half of the credit for the brightness that was reached (`reward.partial=0.5`). The world
stands in this file and comes in through the door for worlds of one's own. JSON: --out FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.table import Table

from cua_agent.envs.base import Environment, Observation
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.validators import BRIGHTNESS, get_command
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.tasks import CUATask, EvalSplit, Probe

ROOT = Path(__file__).resolve().parents[1]
MAX_TURNS = 10
WORDINGS: Mapping[EvalSplit, str] = {
    "seeds": "Set the brightness to 100%.",
    "templates": "Make sure the brightness is 100%.",
}
RUN = (
    *("env=bench_partial_credit:FullBrightness", "backend=legacy", "experiment=quick", "lora.enabled=true"),
    *(
        "optim.learning_rate=1e-3",
        "rollout.group_size=8",
        "rollout.groups_per_step=8",
        f"rollout.max_turns={MAX_TURNS}",
    ),
    *("eval.episodes=64", "threads=1", "logging.tensorboard=false"),
)


@dataclass(frozen=True)
class BrightnessReached:
    """The brightness, of all that there is."""

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:  # noqa: ARG002 - the goal is absolute
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:  # noqa: ARG002
        return int(await probe(get_command(BRIGHTNESS))) / 255


class DimPhone(PocketEnvironment):
    """A phone whose Settings are open and whose brightness is 0."""

    async def reset(self, task: CUATask, seed: int) -> Observation:
        await super().reset(task, seed)
        self.state.brightness, self.state.screen = 0, "Settings"
        self.state.dialog = self.state.pending_dialog = None
        return self._observe()


@dataclass(frozen=True)
class FullBrightness:
    """The brightness is to be raised to the end."""

    def check(self) -> None:
        """It needs nothing."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EnvironmentFactory]:
        async def new_phone() -> Environment:
            return DimPhone()

        yield new_phone

    def training_tasks(self) -> list[CUATask]:
        return self.eval_tasks("seeds")

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        name = f"brightness/{split}"
        return [CUATask(name, name, WORDINGS[split], "hard", "brightness", MAX_TURNS, BrightnessReached())]


@dataclass(frozen=True)
class Measured:
    """A run: held-out success and score at both ends, and what its training saw."""

    partial: float
    seed: int
    success: tuple[float, float]
    score: tuple[float, float]
    first_success: int | None
    updates: int
    minutes: float


def train(directory: Path, partial: float, seed: int, steps: int, overrides: list[str]) -> Measured:
    """A run in a process of its own, unless it is there already."""
    run = directory / f"partial{partial:g}-seed{seed}"
    if not (run / "summary.json").is_file():
        keys = [f"reward.partial={partial:g}", f"seed={seed}", f"max_steps={steps}", *overrides]
        where = [f"output_dir={directory}", f"run_name={run.name}"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent)))}
        command = [sys.executable, str(ROOT / "train.py"), *RUN, *keys, *where]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return measured(run, partial, seed)


def measured(run: Path, partial: float, seed: int) -> Measured:
    """What the run in the directory `run` came to."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    first, last = (next(row for row in order if row["split"] == "seeds") for order in (evaluations, evaluations[::-1]))
    return Measured(
        partial,
        seed,
        (first["success_rate"], last["success_rate"]),
        (first["score_mean"], last["score_mean"]),
        next((row["step"] for row in rows if row["success_rate"] > 0), None),
        sum(row["groups_kept"] > 0 for row in rows),
        json.loads((run / "summary.json").read_text())["wall_s"] / 60,
    )


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="training steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the runs")
    parser.add_argument("--partial", type=float, nargs="+", default=[0.5, 0.0], help="values of reward.partial")
    parser.add_argument("--runs", type=Path, default=Path("outputs/partial_credit"), help="directory of the runs")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    options = parser.parse_args()
    table = Table("reward.partial", "seed", "success", "score", "first success", "updates", "minutes")
    runs = [
        train(options.runs.absolute(), partial, seed, options.steps, options.overrides)
        for seed in options.seeds
        for partial in options.partial
    ]
    for run in runs:
        ends = ["{:.1f} to {:.1f} %".format(*(100 * end for end in pair)) for pair in (run.success, run.score)]
        first = str(run.first_success or "never")
        table.add_row(f"{run.partial:g}", str(run.seed), *ends, first, str(run.updates), f"{run.minutes:.1f}")
    Console().print(table)
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(run) for run in runs], indent=1))


if __name__ == "__main__":
    main()
