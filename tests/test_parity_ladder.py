"""Every rung holds on every phase, and every deliberate fault fails the rung that is there for it."""

import sys
from pathlib import Path

import pytest

from tests.parity_faults import FAULTS
from tests.parity_rig import record_toy, toy_parts
from trainers.parity.evidence import load_episodes, load_evidence
from trainers.parity.ladder import climb, replay_on
from trainers.parity.plan import Plan, make_plan
from trainers.parity.replay import SIDES
from trainers.parity.report import failures
from trainers.parity.rungs import Measurement, measure, measure_episodes

pytest.importorskip("areal")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[1]
WORKER = (sys.executable, "-m", "tests.parity_faults")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan on a random model that every side has replayed, once as it is and once with each fault."""
    directory = tmp_path_factory.mktemp("parity")
    (directory / "ladder").mkdir()
    plan = make_plan(record_toy(directory / "recording"), directory / "ladder", toy_parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        for side in SIDES:
            replay_on(side, plan, lambda _: None, WORKER)
    return plan


def test_every_phase_computes_what_the_legacy_backend_computes(plan: Plan) -> None:
    result = climb(plan, "toy")
    assert failures(result) == []
    assert result.passed and len(result.measurements) == 3 * 2 * (7 * 6 + 1)


@pytest.mark.parametrize(("name", "side"), [(name, side) for name, fault in FAULTS.items() for side in fault.sides])
def test_a_fault_fails_the_right_rung_first(plan: Plan, name: str, side: str) -> None:
    fault, phase = FAULTS[name], int(side.removeprefix("phase"))
    ours, theirs = plan.evidence("legacy", fault.piece), plan.evidence(f"{side}-{name}", fault.piece)
    found: list[Measurement]
    if plan.is_greedy(fault.piece):
        found = [measure_episodes(phase, fault.piece, load_episodes(ours), load_episodes(theirs))]
    else:
        found = measure(phase, fault.piece, load_evidence(ours), load_evidence(theirs))
    failed = [m for m in found if not m.passed]
    assert all(fault.noticed in m.note if fault.noticed else not m.note for m in failed)
    assert min(m.rung.number for m in failed) == fault.rung
