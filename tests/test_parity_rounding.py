"""The ladder in bfloat16: what is allowed is what bfloat16 itself costs, measured on twins of the legacy side."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity_faults import FAULTS
from tests.parity_rig import record_toy, toy_parts
from tests.test_parity import array, episode, evidence
from trainers.config import TrainConfig
from trainers.parity.evidence import Evidence, load_evidence
from trainers.parity.ladder import climb, compare, costs_of, replay_on
from trainers.parity.plan import Plan, load_plan, make_plan
from trainers.parity.replay import SIDES, Side, on_side
from trainers.parity.report import failures, markdown
from trainers.parity.rounding import FACTOR, TWINS, Costs, as_twin, costs
from trainers.parity.rungs import DIRECTION, GRADIENTS, LOSS, METRICS, REPLAYED, ROWS, SETTINGS, UPDATES, measure

ROOT = Path(__file__).parents[1]
WORKER = (sys.executable, "-m", "tests.parity_faults")
SEEN = [("dual_clip", "phase2"), ("clip", "phase3"), ("areal_dual_clip", "phase3")]
"""Faults on the pieces below, by side."""
FLOAT32, ALONE = TWINS
PLAIN, KL = "full/plain", "full/kl"


def two_pieces(twins: Mapping[tuple[str, str], Evidence]) -> dict[str, Costs]:
    """Of two pieces; a twin that is not given agrees with legacy to the last digit."""
    return costs([PLAIN, KL], lambda side, piece: twins.get((side, piece), evidence()))


def test_a_vector_may_be_off_twice_what_the_farther_twin_is_on_that_piece() -> None:
    found = two_pieces(
        {
            (FLOAT32, PLAIN): evidence(gradients={"w": array(1, 1.02)}),
            (ALONE, PLAIN): evidence(gradients={"w": array(1.01, 1)}),
        }
    )
    assert found[PLAIN].allowed(GRADIENTS, "") == pytest.approx(FACTOR * 0.02 / math.sqrt(2), rel=1e-5)
    turned = 1 - (1 + 1.02) / math.sqrt(2 * (1 + 1.02**2))
    assert found[PLAIN].allowed(DIRECTION, "") == pytest.approx(FACTOR**2 * turned, rel=1e-3)
    assert found[KL].allowed(GRADIENTS, "") == 0


def test_a_figure_may_be_off_twice_what_a_twin_is_on_any_piece() -> None:
    found = two_pieces(
        {
            (FLOAT32, PLAIN): evidence(loss=0.001 + 0.02, metrics={"entropy": 2.5, "kl": 0.1}),
            (ALONE, KL): evidence(metrics={"entropy": 2.1, "kl": 0.11}),
        }
    )
    for cost in found.values():
        assert cost.allowed(LOSS, "") == pytest.approx(FACTOR * 0.02 / 2)
        assert cost.allowed(METRICS, "entropy") == pytest.approx(FACTOR * 0.5 / 2)
        assert cost.allowed(METRICS, "kl") == pytest.approx(FACTOR * 0.01)


def test_a_figure_of_an_update_may_be_off_twice_what_it_costs_in_any_update() -> None:
    ours = {"1/kl": 0.1, "2/kl": 0.2, "2/entropy": 1.0}
    twin = evidence(updates=ours | {"2/kl": 0.21})
    found = costs([PLAIN], lambda side, _: twin if side == FLOAT32 else evidence(updates=ours))[PLAIN]
    assert found.allowed(UPDATES, "1/kl") == found.allowed(UPDATES, "2/kl") == pytest.approx(FACTOR * 0.01)
    assert found.allowed(UPDATES, "2/entropy") == 0


def test_a_phase_passes_within_the_cost_and_fails_beyond() -> None:
    cost = two_pieces({(FLOAT32, PLAIN): evidence(metrics={"entropy": 2.1, "kl": 0.1001})})[PLAIN]

    def metrics(**changes: float) -> Any:
        theirs = evidence(metrics={"entropy": 2.0, "kl": 0.1} | changes)
        return next(m for m in measure(2, PLAIN, evidence(), theirs, cost.allowed) if m.rung == METRICS)

    assert metrics(entropy=2.19).passed and not metrics(entropy=2.21).passed
    # The figure that is worst is the one that exceeds most of what it is allowed, not the one with the largest error.
    worst = metrics(entropy=2.19, kl=0.1005)
    assert (worst.note, worst.passed) == ("kl", False)
    assert worst.allowed == pytest.approx(FACTOR * 1e-4) and worst.share == pytest.approx(2.5)


def test_what_rounding_does_not_move_stays_exact() -> None:
    twin = evidence(rows={"0/input_ids": array(2, 2)}, settings={"0/lr": 5.0})
    cost = two_pieces({(FLOAT32, PLAIN): twin})[PLAIN]
    found = {m.rung: m for m in measure(2, PLAIN, evidence(), twin, cost.allowed)}
    assert not found[ROWS].passed and not found[SETTINGS].passed


@pytest.mark.parametrize(
    ("twin", "why"),
    [
        (evidence(error="RuntimeError: no memory"), "legacy-float32: RuntimeError: no memory"),
        (evidence(gradients={}), "no cost of bfloat16 is known of gradient, cosine"),
        (evidence(metrics={"kl": 0.1}), "no cost of bfloat16 is known of metrics reported by one side only: entropy"),
    ],
)
def test_a_cost_that_is_not_known_allows_nothing(twin: Evidence, why: str, tmp_path: Path) -> None:
    plan = Plan(tmp_path, {PLAIN: "full"}, dtype="bfloat16")
    for side in (*SIDES, *TWINS):
        (twin if side == FLOAT32 else evidence()).save(plan.evidence(side, PLAIN))
    result = climb(plan, "toy")
    assert len(result.measurements) == 3 * len(REPLAYED) and not result.passed
    assert all(not m.passed and m.note == why for m in result.measurements)


def test_twins_differ_from_legacy_in_rounding_only() -> None:
    config = replace(TrainConfig(), model=replace(TrainConfig().model, dtype="bfloat16"))
    rows = [[episode("a"), episode("b")], [episode("c")]]
    assert as_twin("phase2", config, rows) == (config, rows)
    exact, same = as_twin(FLOAT32, on_side(config, FLOAT32), rows)
    alone, reverse = as_twin(ALONE, on_side(config, ALONE), rows)
    assert (exact.backend, alone.backend) == ("legacy", "legacy")
    assert (exact.model.dtype, alone.model.dtype) == ("float32", "bfloat16")
    assert same == rows and [[row.episode_id for row in batch] for batch in reverse] == [["b", "a"], ["c"]]
    assert alone.optim.micro_batch_tokens == 64


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two pieces of a plan in bfloat16, replayed on legacy, its twins and the phases that FSDP holds, there once as
    they are and once with each fault that is for these pieces."""
    pytest.importorskip("areal")
    directory = tmp_path_factory.mktemp("parity")
    (directory / "ladder").mkdir()
    whole = make_plan(record_toy(directory / "recording"), directory / "ladder", toy_parts, "bfloat16")
    assert not any(piece.endswith(("greedy", "live")) for piece in whole.pieces)
    assert load_plan(whole.directory) == whole and whole.sides == (*SIDES, *TWINS)
    few = replace(whole, pieces={piece: whole.pieces[piece] for piece in ("full/moved", "lora/kl")})
    few.save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        for side in ("legacy", *TWINS, "phase2", "phase3"):
            replay_on(side, few, lambda _: None, WORKER)
    return few


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_phases_are_as_near_to_legacy_as_bfloat16_is_to_itself(plan: Plan) -> None:
    result = climb(plan, "toy", ["legacy", "phase2", "phase3"])
    assert failures(result) == []
    text = markdown(result)
    assert "| 2 gradient | what bfloat16 costs |" in text and "| 0 rows | 0 | 0 ok | 0 ok |" in text
    weights = load_evidence(plan.evidence("legacy", "full/moved")).weights
    masters = [torch.from_numpy(weight) for weight in weights.values()]
    assert any((weight != weight.bfloat16()).any() for weight in masters)  # not what the model computes with


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "side"), SEEN)
def test_a_fault_that_exceeds_what_bfloat16_costs_fails_its_rung_or_the_next(plan: Plan, name: str, side: Side) -> None:
    fault = FAULTS[name]
    theirs = plan.evidence(f"{side}-{name}", fault.piece)
    assert load_evidence(theirs).figures.error is None
    found = compare(plan, fault.piece, side, theirs, costs_of(plan)[fault.piece])
    assert min(m.rung.number for m in found if not m.passed) in (fault.rung, fault.rung + 1)
