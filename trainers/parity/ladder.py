"""The ladder: every side replays the plan in a process of its own, and what they came to is compared."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainers.parity.evidence import load_episodes, load_evidence
from trainers.parity.greedy import LiveCase
from trainers.parity.plan import Plan
from trainers.parity.replay import REFERENCE, SIDES, Side
from trainers.parity.rounding import NO_COSTS, Costs, costs
from trainers.parity.rungs import Measurement, Rung, measure, measure_live, measure_refusal, unmeasured
from trainers.run.directory import environment_information

WORKER = (sys.executable, "-m", "trainers.parity.worker")


@dataclass(frozen=True)
class Climb:
    """All measurements of a ladder; `source` and `about` say what they were made on, and by which code."""

    source: str
    measurements: tuple[Measurement, ...]
    about: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every measurement passed."""
        return bool(self.measurements) and all(m.passed for m in self.measurements)

    @property
    def rungs(self) -> list[Rung]:
        """Those that were measured."""
        return list(dict.fromkeys(m.rung for m in self.measurements))

    def of(self, phase: int, rung: Rung) -> list[Measurement]:
        """The measurements of a rung and a phase."""
        return [m for m in self.measurements if m.phase == phase and m.rung == rung]

    def worst(self, phase: int, rung: Rung) -> Measurement | None:
        """The largest deviation of a rung and a phase, in what is allowed."""
        return max(self.of(phase, rung), key=lambda m: (m.share, m.error), default=None)


def replay_on(side: Side, plan: Plan, on_piece: Callable[[str], None], worker: Sequence[str] = WORKER) -> None:
    """Replay the whole plan on one side, in a new process; `on_piece` is told what is done. What it says besides is
    in `<side>.log`. A process that dies leaves the rest of its evidence missing, which the ladder reports."""
    log = plan.directory / f"{side}.log"
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*worker, side, str(plan.directory)], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert process.stdout is not None  # piped above
            for line in process.stdout:
                if line.strip() in plan.pieces:
                    on_piece(line.strip())
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise


def climb(plan: Plan, source: str, sides: Sequence[Side] = SIDES) -> Climb:
    """Compare the evidence of every phase in `sides` with that of the legacy side."""
    cost = costs_of(plan)
    found: list[Measurement] = []
    for side in (side for side in sides if side != REFERENCE):
        for piece in plan.pieces:
            found += compare(plan, piece, side, plan.evidence(side, piece), cost.get(piece, NO_COSTS))
    return Climb(source, tuple(found), environment_information())


def costs_of(plan: Plan) -> dict[str, Costs]:
    """What rounding costs on each piece; nothing in float32."""
    if plan.dtype == "float32":
        return {}
    return costs(plan.pieces, lambda side, piece: load_evidence(plan.evidence(side, piece)))


def compare(plan: Plan, piece: str, side: Side, theirs: Path, cost: Costs = NO_COSTS) -> list[Measurement]:
    """All rungs of one piece: the evidence of `side` in `theirs` against that of the legacy side."""
    phase, case, ours = int(side.removeprefix("phase")), plan.case(piece), plan.evidence(REFERENCE, piece)
    if isinstance(case, LiveCase):
        return measure_live(phase, piece, load_episodes(ours), load_episodes(theirs))
    if side in case.refused_by:
        return [measure_refusal(phase, piece, load_evidence(theirs), case.keys)]
    if cost.broken:
        return unmeasured(phase, piece, cost.broken)
    return measure(phase, piece, load_evidence(ours), load_evidence(theirs), cost.allowed)


def to_json(ladder: Climb) -> str:
    """The ladder for `read_ladder` and for other programs; an infinite error is null."""
    rows = [{**asdict(m), "error": m.error if math.isfinite(m.error) else None} for m in ladder.measurements]
    passed = {"passed": ladder.passed}
    return json.dumps({**passed, "source": ladder.source, "about": ladder.about, "measurements": rows}, indent=1)


def read_ladder(file: Path) -> Climb:
    """Raises `ValueError` when the file is not a ladder's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            Measurement(
                Rung(**row["rung"]), row["phase"], row["piece"], math.inf if row["error"] is None else row["error"],
                row["note"], row["known"], row.get("rounding", 0.0),
            )
            for row in content["measurements"]
        ]  # fmt: skip
        return Climb(content["source"], tuple(rows), content["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"ladder={file}: not the result of a ladder: {error}") from error
