"""200 episodes on a local GBox whose requests fail: does every fault cost what it may cost, and no more?

    python benchmarks/gbox_faults.py --rate 0.2

Trains on every backend against a server of its own, and compares what the trainer learnt from with the server's ledger,
which knows what really happened. Prints a table; exit status 1 when anything was scored, counted or sent that should
not have been, or a box is left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cua_agent.envs.local_gbox.faults import FaultPlan
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.envs.local_gbox.server import LocalGBox, running
from cua_agent.trajectory import Outcome, Trajectory
from trainers.rollouts.trajectory_store import TrajectoryStore

ROOT = Path(__file__).resolve().parents[1]
GROUPS, GROUP_SIZE, MAX_TURNS = 5, 8, 6


@dataclass(frozen=True)
class Finished:
    """A run: its exit status, metrics rows, the episodes that it learnt from, the server's summary, wall minutes."""

    name: str
    status: int
    rows: list[dict[str, Any]]
    episodes: list[Trajectory]
    server: dict[str, Any]
    minutes: float

    def total(self, key: str) -> float:
        return sum(row[key] for row in self.rows)

    def complaints(self, wanted: int) -> list[str]:
        """What must not be, a line each."""
        names = [episode.episode_id for episode in self.episodes]
        failed = [episode for episode in self.episodes if episode.reward == 0.0]
        found = {
            f"exit status {self.status}": self.status != 0,
            f"{int(self.total('episodes'))} of {wanted} episodes": self.total("episodes") < wanted,
            f"counted twice: {[name for name, count in Counter(names).items() if count > 1]}": len(names)
            > len(set(names)),
            f"scored after a fault: {[e.episode_id for e in failed if not ended(e)]}": not all(map(ended, failed)),
            f"sent twice: {self.server['sent_twice']}": self.server["sent_twice"],
            f"boxes left: {self.server['running']}": self.server["running"],
        }
        return [f"{self.name}: {complaint}" for complaint, holds in found.items() if holds]


def ended(episode: Trajectory) -> bool:
    """Whether a failed episode came to an end of its own: a claim, or its last turn."""
    if episode.outcome is Outcome.OUT_OF_TURNS:
        return len(episode.turns) == MAX_TURNS
    return episode.outcome in {Outcome.FALSE_CLAIM, Outcome.FAILURE}


def server_with(rate: float, seed: int) -> AbstractContextManager[LocalGBox]:
    """A server of which a share `rate` of all requests fails, in every way."""
    faults = FaultPlan(rate, seed=seed)
    return running(LocalGBoxOptions(seed=seed, faults=faults, hang_s=6.0, slow_create_s=6.0, retry_after_s=0))


def train(name: str, backend: list[str], directory: Path, options: argparse.Namespace) -> Finished:
    """One run against a fresh server."""
    steps = -(-options.episodes // (GROUPS * GROUP_SIZE))
    overrides = [
        *backend,
        "env=gbox_local",
        f"max_steps={steps}",
        f"rollout.groups_per_step={GROUPS}",
        f"rollout.group_size={GROUP_SIZE}",
        f"rollout.max_turns={MAX_TURNS}",
        f"rollout.concurrency={options.concurrency}",
        "rollout.max_refills=0",
        "rollout.infra_retries=20",
        "env.args.call_timeout_s=3",
        "env.args.command_timeout_s=2",
        "env.args.create_timeout_s=5",
        "eval.baseline=false",
        "eval.every_steps=0",
        "eval.episodes=4",
        "logging.tensorboard=false",
        f"logging.save_trajectories={steps}",
        f"output_dir={directory}",
        f"run_name={name}",
    ]
    began = time.monotonic()
    with server_with(options.rate, options.seed) as server:
        command = [sys.executable, "train.py", *overrides, f"env.args.base_url={server.base_url}"]
        environment = {**os.environ, "GBOX_API_KEY": server.api_key}
        status = subprocess.run(command, cwd=ROOT, check=False, env=environment).returncode
        summary = server.ledger()["summary"]
    lines = (directory / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    store = TrajectoryStore(directory / name / "trajectories", steps)
    episodes = [row for step in store.steps() for row in store.read(step).trajectories]
    return Finished(
        name, status, [json.loads(line) for line in lines], episodes, summary, (time.monotonic() - began) / 60
    )


def report(runs: list[Finished]) -> None:
    """The table."""
    table = Table()
    for column in ("run", "episodes", "lost", "boxes", "box-min", "actions", "twice", "left", "faults", "minutes"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for run in runs:
        server = run.server
        figures = [
            int(run.total("episodes")),
            int(run.total("episodes_infra_error")),
            server["created"],
            f"{run.total('box_minutes'):.0f}",
            server["executed"],
            len(server["sent_twice"]),
            len(server["running"]),
            sum(server["faults"].values()),
            f"{run.minutes:.1f}",
        ]
        table.add_row(run.name, *map(str, figures))
    console = Console(width=110)
    console.print(table)
    for run in runs:
        console.print(f"{run.name}: {', '.join(f'{kind} {count}' for kind, count in run.server['faults'].items())}")


def main() -> int:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.2, help="share of the requests that fail")
    parser.add_argument("--episodes", type=int, default=200, help="scored episodes of a run, at least")
    parser.add_argument("--concurrency", type=int, default=16, help="boxes at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--phases", type=int, nargs="*", default=[3], help="phases of backend=areal beside legacy")
    options = parser.parse_args()
    backends = {"legacy": ["backend=legacy"]}
    backends |= {f"areal-phase-{phase}": ["backend=areal", f"phase={phase}"] for phase in options.phases}
    with tempfile.TemporaryDirectory() as temporary:
        runs = [train(name, backend, Path(temporary), options) for name, backend in backends.items()]
    report(runs)
    complaints = [complaint for run in runs for complaint in run.complaints(options.episodes)]
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
