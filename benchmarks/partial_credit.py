"""Whether partial credit teaches what success alone cannot: a family of tasks that no group solves at the start.

    python benchmarks/partial_credit.py --steps 25 --seeds 0 1 2

A phone shows its Settings, in any order and with all switches off; four of them are to be turned on. The built-in
model turns on one or two and says that it is done. Each seed trains twice from there, by success alone
(`reward.partial=0`) and with half of the credit for the share of the switches that are on (`reward.partial=0.5`).
The world stands in this file and comes in through the door for worlds of one's own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic.dataclasses import dataclass as pydantic_dataclass
from rich.console import Console
from rich.table import Table

from cua_agent.envs.base import Environment, Observation
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.validators import SWITCHES, get_command
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.tasks import CUATask, EvalSplit, Probe

ROOT = Path(__file__).resolve().parents[1]
WANTED = SWITCHES[:4]
WORDINGS: Mapping[EvalSplit, str] = {
    "seeds": "Turn Wi-Fi on and Bluetooth on. Turn Airplane mode on and Do not disturb on.",
    "templates": "Make sure Wi-Fi is on, Bluetooth is on, Airplane mode is on and Do not disturb is on.",
}
RUN = (
    *("env=partial_credit:SwitchboardWorld", "backend=legacy", "experiment=quick", "threads=1"),
    *("rollout.group_size=8", "rollout.groups_per_step=4", "eval.episodes=64", "logging.tensorboard=false"),
)


@dataclass(frozen=True)
class ShareOn:
    """The share of the wanted switches that are on."""

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:  # noqa: ARG002 - the goal is absolute
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:  # noqa: ARG002
        on = [(await probe(get_command(key))).strip() == "1" for key in WANTED]
        return sum(on) / len(on)


class Switchboard(PocketEnvironment):
    """A phone whose Settings are open and whose switches are all off."""

    async def reset(self, task: CUATask, seed: int) -> Observation:
        await super().reset(task, seed)
        state = self.state
        state.toggles, state.screen = dict.fromkeys(state.toggles, False), "Settings"
        state.dialog = state.pending_dialog = None
        return self._observe()


@pydantic_dataclass(frozen=True)
class SwitchboardWorld:
    """Four switches are to be turned on."""

    def check(self) -> None:
        """It needs nothing."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EnvironmentFactory]:
        async def new_phone() -> Environment:
            return Switchboard()

        yield new_phone

    def training_tasks(self) -> list[CUATask]:
        return self.eval_tasks("seeds")

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        return [CUATask(f"switches/{split}", "switches", WORDINGS[split], "hard", "switches", 12, ShareOn())]


@dataclass(frozen=True)
class Measured:
    """A run: held-out success and score at both ends, and what its training saw."""

    partial: float
    seed: int
    success: tuple[float, float]
    score: tuple[float, float]
    first_success: int | None
    updates: int


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
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25, help="training steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--partial", type=float, nargs="+", default=[0.5, 0.0], help="values of reward.partial")
    parser.add_argument("--out", type=Path, default=Path("outputs/partial_credit"), help="directory of the runs")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    options = parser.parse_args()
    table = Table("reward.partial", "seed", "success", "score", "first success in step", "updates")
    for seed in options.seeds:
        for partial in options.partial:
            run = train(options.out.absolute(), partial, seed, options.steps, options.overrides)
            ends = ["{:.1f} -> {:.1f} %".format(*(100 * end for end in pair)) for pair in (run.success, run.score)]
            table.add_row(f"{partial:g}", str(seed), *ends, str(run.first_success or "never"), str(run.updates))
    Console().print(table)


if __name__ == "__main__":
    main()
