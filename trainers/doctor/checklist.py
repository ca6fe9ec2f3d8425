"""The twelve points of the migration guide, each with what the checks say of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cua_agent.installation import hint
from trainers.config import TrainConfig
from trainers.doctor.devices import training_processes
from trainers.doctor.examination import Result
from trainers.doctor.finding import Finding, error, not_checked, ok, warning, worst
from trainers.run.commands import typed

LADDER = Path("outputs/parity/ladder.json")
_CLIMB = hint(
    checkout="make parity",
    installed=f"python -m trainers.parity record --out {LADDER.parent}/recording && python -m trainers.parity ladder "
    f"--recording {LADDER.parent}/recording --out {LADDER.parent}",
)
_PHASES = {1: "AReaL collects, the loop and the loss are ours", 2: "and AReaL's engine trains, the loop is ours"}


@dataclass(frozen=True)
class Point:
    """One point: the names of the checks that it rests on, and what the configuration says besides."""

    words: str
    checks: tuple[str, ...] = ()
    besides: Callable[[TrainConfig], Finding] | None = None


def _backend(config: TrainConfig) -> Finding:
    if config.backend == "legacy":
        return warning("backend=legacy: the loop is our own synchronous one", "backend=areal phase=1, then 2 and 3")
    if config.phase < 3:
        return warning(
            f"phase={config.phase}: {_PHASES[config.phase]}", f"phase={config.phase + 1}, when this one holds"
        )
    return ok("phase=3: AReaL's trainer")


def _asynchronous(config: TrainConfig) -> Finding:
    if config.backend == "legacy":
        return warning("backend=legacy collects synchronously", "backend=areal")
    if config.rollout.max_staleness == 0:
        return warning("rollout.max_staleness=0: rollouts wait for every update", "rollout.max_staleness=2")
    return ok(f"asynchronous, rollout.max_staleness={config.rollout.max_staleness}")


def _distributed(config: TrainConfig) -> Finding:
    processes = training_processes(config)
    if processes == 1:
        return not_checked("one process trains here; torchrun or scheduler=local|ray|slurm: docs/gpu.md")
    return ok(f"{processes} processes train")


def _measured(_: TrainConfig) -> Finding:
    from trainers.parity.ladder import read_ladder

    compare = shlex.join(typed("compare"))
    if not LADDER.is_file():
        return not_checked(f"no result of the parity ladder here: {_CLIMB}, then {compare}")
    climb = read_ladder(LADDER)
    failed = [row for row in climb.measurements if not row.passed]
    if failed:
        return error(f"{LADDER}: {len(failed)} of {len(climb.measurements)} measurements failed", "docs/parity.md")
    return ok(f"{LADDER}: all {len(climb.measurements)} measurements passed; live runs: {compare}")


def _documents(_: TrainConfig) -> Finding:
    return not_checked("yours to write; each run keeps config.yaml and run.json, and docs/migration.md is the way")


POINTS = (
    Point("Install AReaL", ("packages",)),
    Point("Create the AReaL configuration file (YAML)", ("areal",)),
    Point("Adapt the environment interface (GBoxAReaLEnv)", ("keys", "environment", "tasks")),
    Point("Change how the model is loaded (FSDP)", ("device", "model", "memory")),
    Point("Replace the training loop (GRPOTrainer)", ("checkpoint",), _backend),
    Point("Replace rollout collection (asynchronous)", ("canary", "token echo", "weights"), _asynchronous),
    Point("Test the basic function (one task)", ("episode",)),
    Point("Test asynchronous performance (tasks in parallel)", ("plan", "environment")),
    Point("Test distributed training (several GPUs)", ("device",), _distributed),
    Point("Verify the model's performance before and after", (), _measured),
    Point("Tune the configuration", ("plan", "memory", "host memory", "disk")),
    Point("Update the documents", (), _documents),
)


def checked(config: TrainConfig, results: Sequence[Result]) -> Iterator[tuple[str, Finding]]:
    """Each point in words, with its finding: the worst of its checks."""
    found: Mapping[str, Finding] = {result.check.name: result.finding for result in results}
    for point in POINTS:
        findings = [found[name] for name in point.checks if name in found]
        if point.besides is not None:
            findings.append(point.besides(config))
        yield point.words, worst(findings)
