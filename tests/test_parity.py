"""The ladder's arithmetic: errors, rungs, table, cases; on numbers made by hand."""

import json
import math
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.trajectory import Outcome, Trajectory
from trainers.config import ConfigError, LossConfig, TrainConfig
from trainers.parity.cases import CASES, drifted, mixed_with_text, with_losses
from trainers.parity.errors import Distance, distance, mismatches
from trainers.parity.evidence import Episodes, Evidence, Figures, load_episodes, load_evidence
from trainers.parity.greedy import LIVE_CASES
from trainers.parity.ladder import Climb, climb, read_ladder, to_json
from trainers.parity.optimiser import counters, moments, settings
from trainers.parity.plan import Plan
from trainers.parity.recording import load_recording, record_run, write_config
from trainers.parity.report import failures, markdown, table
from trainers.parity.rows import loss_scale
from trainers.parity.rungs import (
    DIRECTION,
    EPISODES,
    GRADIENTS,
    LADDER,
    LOSS,
    METRICS,
    MOMENTS,
    RATES,
    REPLAYED,
    ROWS,
    SETTINGS,
    STEPS,
    UPDATES,
    WEIGHTS,
    Measurement,
    measure,
    measure_live,
    measure_refusal,
)
from trainers.protocol import Batch, TrainerState
from trainers.rollouts.trajectory_store import TrajectoryStore
from trainers.run.checkpoint_files import STATE

IMAGE = 99


def array(*values: float) -> Any:
    return np.array(values, np.float32)


def episode(name: str, group: str = "g", reward: float = 0.0, turns: int = 2) -> Trajectory:
    """A row of turns, each: two image placeholders, one prompt token, two sampled tokens."""
    length = 5 * turns
    mask = np.tile([0, 0, 0, 1, 1], turns).astype(np.int32)
    return Trajectory(
        input_ids=np.tile([IMAGE, IMAGE, 1, 2, 3], turns).astype(np.int64),
        loss_mask=mask,
        logprobs=(-mask * np.arange(length)).astype(np.float32),
        versions=np.where(mask == 1, 0, -1).astype(np.int32),
        images=[np.full((2, 2, 3), turn, np.uint8) for turn in range(turns)],
        reward=reward,
        outcome=Outcome.SUCCESS if reward else Outcome.FAILURE,
        task_id="task",
        group_id=group,
        episode_id=name,
        seed=0,
    )


def test_distance_is_relative_to_the_first_and_over_all_tensors() -> None:
    ours = {"a": array(3, 0), "b": array(4)}
    assert distance(ours, {"a": array(3, 1), "b": array(4)}) == Distance(
        pytest.approx(1 / 5), pytest.approx(1 - 25 / (5 * math.sqrt(26)))
    )
    twice = distance(ours, {"a": array(6, 0), "b": array(8)})
    assert twice.relative == 1 and twice.turned < 1e-15
    assert distance(ours, {"a": array(-3, 0), "b": array(-4)}).turned == pytest.approx(2)


def test_a_small_turn_keeps_its_digits() -> None:
    assert distance({"a": array(1, 0)}, {"a": array(1, 1e-6)}).turned == pytest.approx(0.5e-12, rel=1e-5)


@pytest.mark.parametrize(
    "theirs", [{}, {"b": array(1, 2)}, {"a": array(1)}, {"a": array(1, math.nan)}, {"a": array(0, 0)}]
)
def test_what_cannot_be_compared_is_infinitely_far(theirs: dict[str, Any]) -> None:
    assert distance({"a": array(1, 2)}, theirs) == Distance(math.inf, math.inf)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5))
def test_nothing_is_far_from_itself(values: list[float]) -> None:
    assert distance({"a": array(*values)}, {"a": array(*values)}) == Distance(0, 0)
    assert mismatches({"a": array(*values)}, {"a": array(*values)}) == 0


def test_mismatches_count_entries() -> None:
    ours = {"a": array(1, 2, 3), "b": array(1)}
    assert mismatches(ours, {"a": array(1, 0, 0), "b": array(1)}) == 2
    assert mismatches(ours, {"a": array(1, 2), "b": array(1)}) == 3
    assert mismatches(ours, {"a": array(1, 2, 3)}) == 1
    assert mismatches(ours, {**ours, "c": array(1, 1)}) == 2
    assert mismatches(ours, {"a": ours["a"].astype(np.float64), "b": array(1)}) == 3
    assert mismatches({"a": array()}, {}) == 1


def evidence(**changes: Any) -> Evidence:
    figures: dict[str, Any] = {
        "loss": 0.001,
        "scale": 2.0,
        "moved": 0.1,
        "metrics": {"entropy": 2.0, "kl": 0.1},
        "settings": {"0/lr": 1e-3, "0/params": ["a", "b", "c"]},
        "updates": {"1/lr": 1e-3, "1/entropy": 2.0, "policy version": 1.0},
        "error": None,
    }
    figures |= {key: changes.pop(key) for key in list(changes) if key in figures}
    tensors = {"rows": {"0/input_ids": array(1, 2)}} | {
        name: {"w": array(1, 1)} for name in ("gradients", "weights", "moments")
    }
    return Evidence(Figures(**figures), **(tensors | changes))


def test_equal_evidence_passes_every_rung() -> None:
    found = measure(2, "full/plain", evidence(), evidence())
    assert tuple(m.rung for m in found) == REPLAYED
    assert all(m.passed and m.error == 0 for m in found)


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"rows": {"0/input_ids": array(1, 3)}}, {ROWS}),
        ({"loss": 0.001 + 3e-6}, {LOSS}),  # 1.5e-6 of the scale
        ({"loss": 0.001 + 1e-6}, set()),
        ({"loss": math.nan}, {LOSS}),
        ({"metrics": {"entropy": 2.0001, "kl": 0.1}}, {METRICS}),
        ({"metrics": {"entropy": 2.00001, "kl": 0.100009}}, set()),
        ({"metrics": {"entropy": math.nan, "kl": 0.1}}, {METRICS}),
        ({"metrics": {"entropy": 2.0}}, {METRICS}),
        ({"gradients": {"w": array(1, 1.0001)}}, {GRADIENTS}),
        ({"gradients": {"w": array(1, 1.001)}}, {GRADIENTS, DIRECTION}),
        ({"settings": {"0/lr": 1e-3 + 1e-12, "0/params": ["a", "b", "c"]}}, {SETTINGS}),
        ({"settings": {"0/lr": 1e-3, "0/params": ["a", "c"]}}, {SETTINGS}),
        ({"settings": {"0/lr": 1e-3}}, {SETTINGS}),
        ({"updates": {"1/lr": 1e-3 + 1e-12, "1/entropy": 2.0, "policy version": 1.0}}, {RATES}),
        ({"updates": {"1/lr": 1e-3, "1/entropy": 2.0, "policy version": 2.0}}, {RATES}),
        ({"updates": {"1/lr": 1e-3, "1/entropy": 2.001, "policy version": 1.0}}, {UPDATES}),
        ({"updates": {"1/lr": 1e-3, "1/kl": 2.0, "policy version": 1.0}}, {UPDATES}),
        ({"moments": {"w": array(1, 1.001)}}, {MOMENTS}),
        ({"moments": {}}, {MOMENTS}),
        ({"weights": {"w": array(1, 1.0001)}}, {WEIGHTS}),
        ({"moved": 0.0}, {WEIGHTS}),
        ({"error": "KeyError: 'x'"}, set(REPLAYED)),
    ],
)
def test_what_is_off_fails_its_own_rung(changes: dict[str, Any], failing: set[Any]) -> None:
    assert {m.rung for m in measure(1, "p", evidence(), evidence(**changes)) if not m.passed} == failing


def test_a_measurement_names_what_differs() -> None:
    theirs = evidence(settings={"0/lr": 2e-3, "0/params": ["a"]}, metrics={"entropy": 2.5})
    notes = {m.rung: m.note for m in measure(2, "p", evidence(), theirs)}
    assert notes[SETTINGS] == "0/lr: 0.001 on legacy, 0.002 here; 0/params: 3 names on legacy, ['a'] here"
    assert notes[METRICS] == "reported by one side only: kl"
    assert (
        next(m for m in measure(2, "p", evidence(), evidence(metrics={"entropy": 3.0, "kl": 0.1}))[3:]).note
        == "entropy"
    )


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("ConfigError: loss.kind=policy_gradient: allowed with backend=areal phase=3: ppo_clip", True),
        ("ConfigError: optim.learning_rate=1: no", False),
        ("KeyError: 'loss.kind'", False),
        (None, False),
    ],
)
def test_only_the_refusal_that_is_documented_is_a_known_difference(said: str | None, known: bool) -> None:
    found = measure_refusal(3, "lora/reinforce", evidence(error=said), ["loss.kind"])
    assert (found.known, found.passed) == (known, known)


def test_the_optimiser_is_read_from_a_checkpoint(tmp_path: Path) -> None:
    state = {"step": torch.tensor(3.0), "exp_avg": torch.tensor([1.0, 2.0]), "exp_avg_sq": torch.tensor([4.0, 9.0])}
    group = {"lr": 0.1, "initial_lr": 0.2, "betas": (0.9, 0.95), "fused": True, "params": ["w", "b"]}
    optimizer = {"state": {"w": state}, "param_groups": [group]}
    torch.save({"optimizer": optimizer, "scheduler": {"last_epoch": 4}}, tmp_path / "optimizer.pt")
    (tmp_path / STATE).write_text(json.dumps(asdict(TrainerState(policy_version=5))))
    assert settings(tmp_path) == {"0/initial_lr": 0.2, "0/betas": (0.9, 0.95), "0/params": ["b", "w"]}
    assert mismatches(moments(tmp_path), {"w/exp_avg": array(1, 2), "w/exp_avg_sq": array(2, 3)}) == 0
    assert list(counters(tmp_path).values()) == [3, 4, 5]


def said(*tokens: int, version: int = 0) -> list[dict[str, list[int]]]:
    return [{"tokens": list(tokens), "versions": [version] * len(tokens)}]


GREEDY = {"eval-0#0": said(1, 2), "eval-0#1": said(5), "g000000-0#0": said(3), "eval-0#2": said(1, 3, version=2)}


STEPS_OF_RUN: list[dict[str, float | None]] = [{"loss": 0.5, "kl": None}, {"loss": 0.25, "kl": None}]


def live(ours: Episodes, theirs: Episodes) -> tuple[Measurement, Measurement]:
    tokens, figures = measure_live(3, "full/live", ours, theirs)
    assert (tokens.rung, figures.rung) == (EPISODES, STEPS)
    return tokens, figures


def test_greedy_episodes_must_be_the_same_tokens_under_the_same_versions() -> None:
    ours = Episodes(GREEDY, STEPS_OF_RUN)
    assert all(m.passed for m in live(ours, ours))
    ahead = Episodes({**GREEDY, "g000007-0#0": said(9)}, STEPS_OF_RUN)
    assert all(m.passed for m in live(ours, ahead))
    tokens, figures = live(ours, Episodes({**GREEDY, "eval-0#2": said(1, 2, version=1)}, STEPS_OF_RUN))
    assert (tokens.error, tokens.passed, figures.passed) == (3, False, True)


@pytest.mark.parametrize(
    ("second", "note"),
    [
        ({"loss": 0.26, "kl": None}, "step 2/loss"),
        ({"loss": 0.25, "kl": 0.1}, "step 2/kl"),
        ({"loss": 0.25}, "reported by one side only: step 2/kl"),
    ],
)
def test_steps_of_a_live_run_must_report_the_same(second: dict[str, float | None], note: str) -> None:
    tokens, figures = live(Episodes(GREEDY, STEPS_OF_RUN), Episodes(GREEDY, [STEPS_OF_RUN[0], second]))
    assert tokens.passed and not figures.passed and figures.note == note


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (GREEDY, {key: GREEDY[key] for key in list(GREEDY)[:3]}, "not played: eval-0#2"),
        ({**GREEDY, "eval-0#2": said(1, 2, version=2)}, GREEDY, "training changed no greedy episode"),
    ],
)
def test_greedy_episodes_that_prove_nothing_fail(ours: Any, theirs: Any, why: str) -> None:
    found = live(Episodes(ours), Episodes(theirs))
    assert all(not m.passed and why in m.note for m in found)


def test_evidence_survives_its_files_and_its_absence_is_a_failure(tmp_path: Path) -> None:
    evidence().save(tmp_path / "legacy/full/plain")
    evidence(loss=1.0).save(tmp_path / "phase1/full/plain")
    Episodes(GREEDY).save(tmp_path / "legacy/full/greedy")
    read = load_evidence(tmp_path / "legacy/full/plain")
    assert read.figures == evidence().figures and distance(read.gradients, evidence().gradients) == Distance(0, 0)
    assert load_episodes(tmp_path / "legacy/full/greedy") == Episodes(GREEDY)
    assert "ended without a result" in str(load_evidence(tmp_path / "none").figures.error)
    assert "ended without a result" in str(load_episodes(tmp_path / "none").error)


@pytest.fixture
def result(tmp_path: Path) -> Climb:
    """Phase 1 agrees, phase 2 has another loss, phase 3 died."""
    plan = Plan(tmp_path, {"full/plain": "full", "full/greedy": "full"})
    for side, loss in {"legacy": 0.001, "phase1": 0.001, "phase2": 0.1}.items():
        evidence(loss=loss).save(tmp_path / "evidence" / side / "full/plain")
        Episodes(GREEDY).save(tmp_path / "evidence" / side / "full/greedy")
    return climb(plan, "outputs/run")


def test_the_ladder_reports_every_phase_and_rung(result: Climb) -> None:
    assert not result.passed and len(result.measurements) == 3 * len(LADDER)
    assert {(m.phase, m.rung.number) for m in result.measurements if not m.passed} == {
        (2, 1),
        *((3, rung) for rung in range(5)),
    }
    worst = result.worst(2, LOSS)
    assert worst is not None and worst.error == pytest.approx(0.099 / 2)
    lines = failures(result)
    assert lines[0] == "phase 2, rung 1 (loss), full/plain: 0.05, allowed 1e-06"
    assert "the process ended without a result" in lines[-1]
    assert table(result).row_count == len(LADDER)
    text = markdown(result)
    assert "**FAILED**" in text and "| 1 loss | 1e-06 | 0 ok | 0.05 FAILED | - FAILED |" in text
    assert "## Known differences" not in text
    known = replace(result.measurements[0], note="loss.kind=x: not here", known=True)
    text = markdown(replace(result, measurements=(known, *result.measurements[1:])))
    assert "## Known differences\n\n- phase 1, full/plain: loss.kind=x: not here\n" in text


def test_the_ladder_survives_its_file(result: Climb, tmp_path: Path) -> None:
    (tmp_path / "ladder.json").write_text(to_json(result))
    read = read_ladder(tmp_path / "ladder.json")
    assert read.measurements == result.measurements and not read.passed
    assert json.loads((tmp_path / "ladder.json").read_text())["passed"] is False
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json: not the result of a ladder"):
        read_ladder(tmp_path / "other.json")


def test_the_scale_of_a_loss_does_not_cancel() -> None:
    rows = [episode("a", turns=1), episode("b", turns=2)]  # 2 and 4 trained tokens
    assert loss_scale(Batch(rows, [1.5, -3.0]), TrainConfig()) == pytest.approx((2 * 1.5 + 4 * 3.0) / 6)


def test_text_rows_lose_images_and_placeholders_only() -> None:
    whole, text = mixed_with_text([episode("a"), episode("b")], IMAGE)
    assert len(whole.images) == 2 and len(whole) == 10
    assert text.images == [] and text.input_ids.tolist() == [1, 2, 3, 1, 2, 3]
    assert text.loss_mask.tolist() == [0, 1, 1, 0, 1, 1] and text.logprobs.tolist() == [0, -3, -4, 0, -8, -9]


def test_lost_episodes_leave_a_signal_and_long_ones_become_two_rows() -> None:
    rows = [
        *(episode(f"a{i}", "a", reward) for i, reward in enumerate([1, 0, 0])),
        *(episode(f"b{i}", "b", reward, turns=1) for i, reward in enumerate([1, 1, 0])),
        *(episode(f"c{i}", "c", reward) for i, reward in enumerate([1, 0])),
    ]
    out = with_losses(rows, IMAGE)
    names = [row.episode_id for row in out]
    assert names == ["a0", "a0", "a2", "a2", "b0", "b1", "b2", "c0", "c0", "c1", "c1"]
    assert [row.episode_id for row in out if row.outcome is Outcome.INFRA_ERROR] == ["b0"]
    first, second = out[:2]
    assert (first.weight, second.weight) == (0.5, 0.5)
    assert len(first) == 8 and len(first.images) == 2 and first.loss_mask.tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert len(second) == 10 and len(second.images) == 2 and second.loss_mask.tolist() == [0] * 8 + [1, 1]


def test_drifted_rows_are_off_policy_on_both_sides_with_advantages_of_both_signs() -> None:
    before = [replace(episode(name, turns=4), logprobs=np.full(20, -3.0, np.float32)) for name in "ab"]
    for old, new in zip(before, drifted(before), strict=True):
        trained = old.loss_mask == 1
        ratios = np.exp(old.logprobs - new.logprobs)
        assert (new.logprobs[~trained] == -3).all() and {round(float(r), 1) for r in ratios[trained]} >= {
            0.2,
            0.5,
            0.9,
            1.1,
            2.0,
            4.5,
        }
    certain = replace(episode("c"), logprobs=np.zeros(10, np.float32))
    assert all((row.logprobs <= 0).all() for row in drifted([certain]))


def test_every_case_is_a_legal_configuration_of_every_phase() -> None:
    recorded = TrainConfig(loss=LossConfig(decoupled=True, kl_coefficient=0.5))
    for case in CASES:
        config = case.config(recorded, "lora", longest=300)
        assert config.lora.enabled and config.loss.decoupled == ("loss.decoupled" in case.keys)
        budget = recorded.areal.packed_tokens if case.budget is None else int(300 * case.budget)
        assert config.areal.packed_tokens == budget
        assert (config.loss.kl_coefficient > 0) == (case.name in ("kl", "knobs"))
    names = [case.name for case in (*CASES, *LIVE_CASES)]
    assert len(set(names)) == len(names)


def test_the_default_keys_are_replayed() -> None:
    plain, recorded = next(case for case in CASES if case.name == "plain"), TrainConfig()
    config = plain.config(recorded, "full", longest=5000)
    assert (config.areal, config.optim, config.loss) == (recorded.areal, recorded.optim, recorded.loss)
    assert all(case.config(recorded, "full").areal == recorded.areal for case in LIVE_CASES)


def test_a_live_run_has_groups_that_only_the_right_deviation_filters() -> None:
    [threshold] = [c.advantage.min_group_std for c in (LIVE_CASES[1].config(TrainConfig(), "full"),)]
    assert statistics.pstdev([0.5, 0.0]) < threshold < min(statistics.stdev([0.5, 0.0]), statistics.pstdev([1.0, 0.0]))


def test_a_run_is_recorded_with_what_a_replay_needs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run, replace(TrainConfig(), seed=7))
    store = TrajectoryStore(run / "trajectories", keep=9)
    for step in range(1, 8):
        store.record(step, Batch([episode(f"e{step}")], [1.0]))
    store.record(8, Batch([], []))  # a step without signal
    recording = record_run(run, tmp_path / "out")
    assert recording.config.seed == 7 and recording.checkpoint is None and recording.steps == (3, 4, 5, 6, 7)
    assert [batch.trajectories[0].episode_id for batch in recording.batches()] == ["e3", "e4", "e5", "e6", "e7"]
    with pytest.raises(ConfigError, match="exists already; allowed: a new directory"):
        record_run(run, tmp_path / "out")


def test_what_is_no_recording_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml in it; allowed: a recording or a run directory"):
        load_recording(tmp_path)
    write_config(tmp_path, TrainConfig())
    with pytest.raises(ConfigError, match="no recorded batch in it has a group with signal; train with"):
        load_recording(tmp_path)
