"""Every rung holds on every phase, and every deliberate fault fails the rung that is there for it."""

import os
from pathlib import Path

import pytest

from tests.parity_rig import WORKER, record_toy, toy_parts
from trainers.parity.ladder import climb, replay_on
from trainers.parity.plan import Plan, make_plan
from trainers.parity.replay import SIDES
from trainers.parity.report import failures

pytest.importorskip("areal")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan on a random model that the legacy side has replayed."""
    directory = tmp_path_factory.mktemp("parity")
    (directory / "ladder").mkdir()
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return make_plan(record_toy(directory / "recording"), directory / "ladder", toy_parts)


def test_every_phase_computes_what_the_legacy_backend_computes(plan: Plan) -> None:
    for side in SIDES:
        done: list[str] = []
        replay_on(side, plan, done.append, WORKER)
        assert done == list(plan.pieces), (plan.directory / f"{side}.log").read_text()[-3000:]
    result = climb(plan, "toy")
    assert failures(result) == []
    assert result.passed and len(result.measurements) == 3 * 2 * (7 * 5 + 1)
