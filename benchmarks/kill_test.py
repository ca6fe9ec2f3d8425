"""Kill a run again and again, at random moments and in the midst of saves, and see that nothing is lost or doubled.

    python benchmarks/kill_test.py legacy 1 3 [--kills 20] [--steps 60] [--seed 0] [--uninterrupted 3] [--work DIR]
                                   [--with nothing|boxes|pages|adapters] [key=value ...]

Each side (legacy, or a phase of AReaL) trains one run; whatever is killed is started again by the same command. In the
end it has every row once and no more checkpoints than one run keeps; no process, box, page, adapter or temporary file
is left. On legacy, where nothing depends on time, it equals the uninterrupted run of its seed, row by row; on AReaL
its final success lies within what uninterrupted runs of some seeds, its own among them, reach. Prints a line of JSON
for each side, writes it to `kill_test_<side>.json` in DIR, and exits with 1 when something fails.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kill_surroundings import SURROUNDINGS, Surroundings

from trainers.run.files import read_rows
from trainers.run.lineage import Lineage, evaluation_rows, lineage_of, training_rows

ROOT = Path(__file__).resolve().parents[1]
MARK = "KILL_TEST"
"""Environment variable by which every process of a run is known."""
QUICK = [
    *("rollout.groups_per_step=2", "rollout.group_size=2", "rollout.max_refills=0", "rollout.max_turns=4"),
    *("rollout.max_new_tokens=32", "eval.episodes=16", "eval.every_steps=0", "eval.baseline=false"),
    *("checkpoint.every_steps=2", "checkpoint.keep=2", "threads=1", "logging.tensorboard=false"),
]
CHECKPOINTS_KEPT = {"step_*": 2, "best": 1, "last": 1}
"""How many there may be of each kind, in all directories of the run together."""
STEPS_BEFORE_A_KILL = 5
LONGEST_START_S = 600.0
SAME_ROW = ("step", "policy_version", "success_rate", "reward_mean", "turns_mean", "groups_kept", "episodes")
LOSS_TOLERANCE = 1e-4
"""Who shares a batch with an episode that is played again changes its log-probs in their last digits."""
STUDENT_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""Two-sided 95 % points, by the number of runs."""


@dataclass
class Outcome:
    """What became of one side's run; times are seconds of wall time."""

    side: str
    kills: int = 0
    kills_in_a_save: int = 0
    kills_before_a_row: int = 0
    to_next_row_s: list[float] = field(default_factory=list)
    steps: int = 0
    success: float = math.nan
    uninterrupted: list[float] = field(default_factory=list)
    loss_difference: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """From a kill to the next step that was done."""
        return statistics.median(self.to_next_row_s) if self.to_next_row_s else math.nan

    def interval(self) -> tuple[float, float]:
        """In which one more uninterrupted run lies with 95 %, as far as success can."""
        n, values = len(self.uninterrupted), self.uninterrupted
        half = STUDENT_T[n] * statistics.stdev(values) * math.sqrt(1 + 1 / n)
        return max(statistics.mean(values) - half, 0.0), min(statistics.mean(values) + half, 1.0)


class Runs:
    """The directories and processes of one run that is started again and again."""

    def __init__(self, command: list[str], parent: Path, surroundings: Surroundings) -> None:
        self.command = [*command, *surroundings.keys]
        self.parent = parent
        self.surroundings = surroundings

    def start(self) -> subprocess.Popen[bytes]:
        """The same command, once more."""
        self.parent.mkdir(parents=True, exist_ok=True)
        own = {MARK: str(self.parent), "TMPDIR": str(self.temporary)}
        environment = {**os.environ, **self.surroundings.variables, **own}
        self.temporary.mkdir(exist_ok=True)
        with (self.parent / "log.txt").open("ab") as log:
            return subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    @property
    def temporary(self) -> Path:
        """Where the system's temporary files are for these processes."""
        return self.parent / "tmp"

    def directories(self) -> list[Path]:
        """Run directories, oldest first."""
        found = [file.parent for file in (self.parent / "outputs").glob("*/run.json")]
        return sorted(found, key=lambda path: int(path.name.removeprefix("x").lstrip("-") or 1))

    def rows(self) -> int:
        """How many steps all processes have done so far, lost ones included."""
        return sum(len(read_rows(each / "metrics.jsonl")) for each in self.directories())

    def saving(self) -> bool:
        """Whether a checkpoint is half written."""
        return any((self.parent / "outputs").glob("*/checkpoints/.*.new"))

    def processes(self) -> list[int]:
        """Every live process of these runs."""
        wanted = f"{MARK}={self.parent}".encode()
        return [pid for pid in _pids() if wanted in _environment(pid)]


def _pids() -> Iterator[int]:
    yield from (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is somebody else's
        return []


def kill_once(runs: Runs, chance: random.Random, outcome: Outcome, killed_at: float | None) -> tuple[bool, float]:
    """Start the run and kill it at a random moment; whether it lived until then, and when it was killed."""
    before, process = runs.rows(), runs.start()
    rows_wanted, in_a_save = chance.randrange(STEPS_BEFORE_A_KILL), chance.random() < 0.4
    deadline = time.monotonic() + LONGEST_START_S
    told = killed_at is None
    later_s = chance.uniform(0.0, 20.0 if rows_wanted == 0 else 2.0)
    while process.poll() is None and time.monotonic() < deadline:
        done = runs.rows() - before
        if done and not told and killed_at is not None:
            outcome.to_next_row_s.append(time.monotonic() - killed_at)
            told = True
        if done >= rows_wanted and (not in_a_save or rows_wanted == 0 or runs.saving()):
            break
        time.sleep(0.002 if in_a_save and done >= rows_wanted else 0.05)
    if not (in_a_save and rows_wanted):
        time.sleep(later_s)
    if process.poll() is not None:
        return False, time.monotonic()
    outcome.kills += 1
    outcome.kills_in_a_save += runs.saving()
    outcome.kills_before_a_row += runs.rows() == before
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True, time.monotonic()


def run_with_kills(runs: Runs, kills: int, steps: int, chance: random.Random, outcome: Outcome) -> None:
    """Kill the run `kills` times, let it come to its end, and note what is wrong with what it left."""
    killed_at: float | None = None
    while outcome.kills < kills:
        lived, killed_at = kill_once(runs, chance, outcome, killed_at)
        print(f"{outcome.side}: kill {outcome.kills}, {runs.rows()} rows", flush=True)
        if not lived:
            break
        wait_until_alone(runs, outcome)
    if status := runs.start().wait():
        outcome.problems.append(f"the last start ended with status {status}")
    wait_until_alone(runs, outcome)
    examine(runs, steps, outcome)


def wait_until_alone(runs: Runs, outcome: Outcome) -> None:
    """No process survives the one that was killed, but for a few seconds."""
    deadline = time.monotonic() + 60
    while (left := runs.processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    outcome.problems += [f"process {pid} was left" for pid in left]


def examine(runs: Runs, steps: int, outcome: Outcome) -> None:
    """Rows, success and leftovers."""
    lineage = lineage_of(runs.directories()[-1])
    found = [row["step"] for row in training_rows(lineage)]
    outcome.steps = len(found)
    if found != list(range(1, steps + 1)):
        outcome.problems.append(f"rows of the steps {found}")
    if len(lineage.parts) != len(runs.directories()):
        outcome.problems.append(f"{len(lineage.parts)} of {len(runs.directories())} directories are in the lineage")
    outcome.success = final_success(lineage)
    for kind, most in CHECKPOINTS_KEPT.items():
        kept = list((runs.parent / "outputs").glob(f"*/checkpoints/{kind}"))
        outcome.problems += [f"{len(kept)} checkpoints {kind} are kept"] if len(kept) > most else []
    patterns = ("checkpoints/.*", ".trial-*", "*.part", "trajectories/.*", "spool/*")
    left = [path for pattern in patterns for path in (runs.parent / "outputs").glob(f"*/{pattern}")]
    left += [path for path in runs.temporary.iterdir() if not path.name.startswith("torchinductor")]  # a cache
    outcome.problems += [f"{path.relative_to(runs.parent)} was left" for path in left]
    outcome.problems += [f"{what} was left" for what in runs.surroundings.left()]


def compare_rows(killed: Lineage, whole: Lineage, outcome: Outcome) -> None:
    """The run that was killed did what the one that was not did."""
    for ours, theirs in zip(training_rows(killed), training_rows(whole), strict=False):
        other = [key for key in SAME_ROW if ours[key] != theirs[key]]
        losses = [row["loss"] or 0.0 for row in (ours, theirs)]
        outcome.loss_difference = max(outcome.loss_difference, abs(losses[0] - losses[1]))
        outcome.problems += [f"step {ours['step']} has another {', '.join(other)}"] if other else []
    if outcome.loss_difference > LOSS_TOLERANCE:
        outcome.problems.append(f"losses differ by up to {outcome.loss_difference:.1e}")
    if outcome.success != outcome.uninterrupted[0]:
        outcome.problems.append(f"success {outcome.success:.3f}, without kills {outcome.uninterrupted[0]:.3f}")


def final_success(lineage: Lineage) -> float:
    """Of the last evaluation on held-out seeds; NaN where there was none."""
    found = [row["success_rate"] for row in evaluation_rows(lineage) if row["split"] == "seeds"]
    return found[-1] if found else math.nan


def command(side: str, parent: Path, steps: int, seed: int, keys: list[str]) -> list[str]:
    """How one side's run is started."""
    backend = ["backend=legacy"] if side == "legacy" else ["backend=areal", f"phase={side}"]
    own = ["run_name=x", "resume=auto", f"max_steps={steps}", f"seed={seed}", f"output_dir={parent / 'outputs'}"]
    return [sys.executable, str(ROOT / "train.py"), *backend, *QUICK, *own, *keys]


def test_side(side: str, work: Path, options: argparse.Namespace) -> Outcome:
    """One run with kills, and uninterrupted ones."""
    outcome, chance = Outcome(side), random.Random(f"{options.seed}/{side}")

    def runs_in(name: str, seed: int, surroundings: Surroundings) -> Runs:
        return Runs(command(side, work / name, options.steps, seed, options.keys), work / name, surroundings)

    def uninterrupted(seed: int, surroundings: Surroundings) -> Lineage:
        runs = runs_in(f"{side}-{seed}", seed, surroundings)
        runs.start().wait()
        lineage = lineage_of(runs.directories()[-1])
        outcome.uninterrupted.append(final_success(lineage))
        return lineage

    with SURROUNDINGS[options.surroundings]() as surroundings:
        killed = runs_in(side, 0, surroundings)
        run_with_kills(killed, options.kills, options.steps, chance, outcome)
        if side == "legacy" and options.uninterrupted:
            compare_rows(lineage_of(killed.directories()[-1]), uninterrupted(0, surroundings), outcome)
            return outcome
        for seed in range(options.uninterrupted):  # its own among them: what is played matters, too
            uninterrupted(seed, surroundings)
    if len(outcome.uninterrupted) > 1:
        low, high = outcome.interval()
        if not low <= outcome.success <= high:
            outcome.problems.append(f"success {outcome.success:.3f} is outside of {low:.3f} to {high:.3f}")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="+", help="legacy, 1, 2, 3; and keys for every run")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--uninterrupted", type=int, default=3, choices=(0, *STUDENT_T))
    parser.add_argument("--with", dest="surroundings", choices=list(SURROUNDINGS), default="nothing")
    parser.add_argument("--work", type=Path)
    options = parser.parse_intermixed_args()
    options.keys = [each for each in options.sides if "=" in each]
    work = options.work or Path(tempfile.mkdtemp(prefix="kill-test-"))
    outcomes = []
    for side in [each for each in options.sides if "=" not in each]:
        shutil.rmtree(work / side, ignore_errors=True)
        outcomes.append(test_side(side, work.absolute(), options))
        shown = {**asdict(outcomes[-1]), "median_s": outcomes[-1].median_s}
        (work / f"kill_test_{side}.json").write_text(json.dumps(shown, indent=2) + "\n")
        print(json.dumps(shown), flush=True)
    return 1 if any(outcome.problems for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
