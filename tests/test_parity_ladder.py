"""Every rung holds on every phase, and every deliberate fault fails the rung that is there for it."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.parity_faults import FAULTS
from tests.parity_rig import record_toy, toy_parts
from trainers.parity.evidence import load_episodes, load_evidence
from trainers.parity.greedy import LiveCase
from trainers.parity.ladder import climb, compare, replay_on
from trainers.parity.plan import Plan, make_plan
from trainers.parity.replay import SIDES, Side
from trainers.parity.report import failures
from trainers.parity.rungs import REPLAYED

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
    pieces = len(plan.pieces)
    assert result.passed and pieces == 17 + 10
    assert len(result.measurements) == 3 * ((pieces - 2) * len(REPLAYED) + 2 * 2) - 3 * (len(REPLAYED) - 1)
    assert {(m.phase, m.piece) for m in result.measurements if m.known} == {
        (3, "full/ours"), (3, "lora/reinforce"), (3, "lora/cispo"),
    }  # fmt: skip


def test_the_cases_reach_every_branch_of_the_loss(plan: Plan) -> None:
    def figures(piece: str) -> Mapping[str, float]:
        return load_evidence(plan.evidence("legacy", piece)).figures.metrics

    for piece in ("full/moved", "full/knobs", "full/dual_clip", "lora/cispo"):
        assert figures(piece)["clip_fraction"] > 0.1 and figures(piece)["ratio_max"] > 3, piece
    for piece in ("full/stale", "full/row_bounds", "full/kl_bounds"):
        assert 0.05 < figures(piece)["correction_fraction"] < 1 and figures(piece)["effective_sample_size"] < 1, piece
    assert 0 < figures("full/dual_clip")["clip_fraction_high"] < figures("full/dual_clip")["clip_fraction"]
    assert figures("full/gspo")["clip_fraction"] > 0


@pytest.mark.parametrize(("name", "side"), [(name, side) for name, fault in FAULTS.items() for side in fault.sides])
def test_a_fault_fails_the_right_rung_first(plan: Plan, name: str, side: Side) -> None:
    fault, theirs = FAULTS[name], plan.evidence(f"{side}-{name}", FAULTS[name].piece)
    live = isinstance(plan.case(fault.piece), LiveCase)
    error = load_episodes(theirs).error if live else load_evidence(theirs).figures.error
    assert fault.noticed in str(error) if fault.noticed else error is None
    failed = [m for m in compare(plan, fault.piece, side, theirs) if not m.passed]
    assert min(m.rung.number for m in failed) == fault.rung
