import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cua_agent.tasks import get_training_tasks
from cua_agent.trajectory import Outcome, Trajectory, Turn
from tests.toy_world import trajectory
from trainers.config import ConfigError, LoggingConfig
from trainers.protocol import Batch, Collected, EvalRecord, Group, GroupSpec, TrainerState, TrainResult, Usage
from trainers.run.metrics import MetricsWriter, StepMetrics, open_trackers
from trainers.run.server_meter import ServerFigures
from trainers.run.step_metrics import (
    Staleness,
    Timing,
    advance,
    advantage_by_turn,
    group_successes,
    repeated,
    step_metrics,
)
from trainers.run.throughput import Throughput

DESIGN_KEYS = (
    "step policy_version loss policy_loss kl entropy grad_norm lr reward_mean reward_std success_rate groups_kept "
    "groups_filtered episodes episodes_infra_error staleness_mean staleness_max logprob_gap rollout_s train_s sync_s "
    "step_s env_utilisation env_wait_s box_minutes tokens tokens_per_s truncated groups_dropped"
)
SPEC = GroupSpec(get_training_tasks()[0], 0, "g")

RESULT = TrainResult(3, "max_steps", 0.5, 0.9, 0.9, 10.0, 4.0, 5.0, 0.7, 1.5, 0)


class Recorder:
    name = "recorder"

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


def test_a_row_has_every_key_of_the_contract() -> None:
    row = StepMetrics(step=1, policy_version=1, outcomes={"success": 3}).row()
    assert set(DESIGN_KEYS.split()) <= set(row)
    assert row["outcome/success"] == 3


def test_truncated_is_the_share_of_the_turns_that_were_cut_off() -> None:
    def row(*truncated: bool) -> Trajectory:
        turns = tuple(Turn("", None, "", 0.0, 0.0, truncated=cut) for cut in truncated)
        none = [np.zeros(0, dtype) for dtype in (np.int64, np.int32, np.float32, np.int32)]
        return Trajectory(*none, [], 0.0, Outcome.FAILURE, "t", "g", "e", 0, turns)

    collected = Collected([Group(SPEC, [[row(True, False), row(False)]])], [Group(SPEC, [[row(True)]])])
    timing, stale = Timing(1.0, 1.0, 1.0, 3.0), Staleness()
    state = advance(TrainerState(turns=4, turns_truncated=1), timing, stale, collected.episodes)
    assert (state.turns, state.turns_truncated) == (8, 3)
    metrics = step_metrics(state, collected, Batch([], []), [], stale, timing, Usage(), Throughput(), ServerFigures())
    assert metrics.truncated == 0.5  # 2 of 4: of both rows of an episode, and of groups without signal
    none = Collected()
    nothing = step_metrics(state, none, Batch([], []), [], stale, timing, Usage(), Throughput(), ServerFigures())
    assert nothing.row()["truncated"] is None


def test_not_a_number_becomes_null() -> None:
    row = StepMetrics(step=1, policy_version=1, loss=float("inf")).row()
    assert row["loss"] is None
    assert row["kl"] is None
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "run", [])
    for step in (1, 2):
        writer.step(StepMetrics(step=step, policy_version=step, loss=0.25))
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, step + 1))


def test_evaluations_name_their_split(tmp_path: Path) -> None:
    recorder = Recorder()
    writer = MetricsWriter(tmp_path, [recorder])
    writer.evaluation(EvalRecord(4, 10, 0.6, 0.6, 2.5, {"open": (3, 5)}, 1), "templates")
    row = json.loads((tmp_path / "eval.jsonl").read_text())
    assert (row["split"], row["step"], row["success_rate"], row["infra_errors"]) == ("templates", 4, 0.6, 1)
    assert row["by_category"] == {"open": [3, 5]}
    assert recorder.logged == [
        (
            4,
            {
                "eval_templates/success_rate": 0.6,
                "eval_templates/reward_mean": 0.6,
                "eval_templates/turns_mean": 2.5,
                "eval_templates/open": 0.6,
            },
        )
    ]


def test_summary_holds_result_and_identity(tmp_path: Path) -> None:
    MetricsWriter(tmp_path, []).summary(replace(RESULT, eval_success_start=float("nan")), backend="legacy", seed=3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["backend"], summary["seed"], summary["steps"]) == ("legacy", 3, 3)
    assert summary["eval_success_start"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_trackers_get_finite_numbers_and_close_once(tmp_path: Path) -> None:
    recorder = Recorder()
    writer = MetricsWriter(tmp_path, [recorder])
    writer.step(StepMetrics(step=5, policy_version=2, loss=0.5))
    step, values = recorder.logged[0]
    assert step == 5
    assert values["train/loss"] == 0.5
    assert "train/kl" not in values
    writer.close()
    writer.close()
    assert recorder.closed == 1


def test_tensorboard_writes_an_event_file(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, open_trackers(LoggingConfig(), tmp_path, {}))
    writer.step(StepMetrics(step=1, policy_version=1, loss=0.5))
    writer.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_says_what_to_install(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config = replace(LoggingConfig(tensorboard=False), **{name: True})
    with pytest.raises(ConfigError, match=f"logging.{name}=true needs the package: pip install {name}"):
        open_trackers(config, tmp_path, {})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_hosted_tracker_gets_project_run_and_values(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, object]] = []
    module = types.ModuleType(name)
    module.init = lambda **kwargs: calls.append(("init", kwargs))  # type: ignore[attr-defined]
    module.log = lambda values, step: calls.append(("log", (step, values["train/loss"])))  # type: ignore[attr-defined]
    module.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    config = replace(LoggingConfig(tensorboard=False, project="p"), **{name: True})
    writer = MetricsWriter(tmp_path, open_trackers(config, tmp_path, {"seed": 1}))
    writer.step(StepMetrics(step=2, policy_version=1, loss=0.5))
    writer.close()
    assert calls == [
        ("init", {"project": "p", "name": tmp_path.name, "config": {"seed": 1}}),
        ("log", (2, 0.5)),
        ("finish", None),
    ]


def test_what_was_repeated_how_groups_went_and_what_turns_were_worth() -> None:
    def episode(name: str, group: str, outcome: Outcome, *actions: str | None) -> Trajectory:
        turns = tuple(Turn("", action, "", 0.0, 0.0) for action in actions)
        return replace(trajectory(outcome=outcome, episode_id=name, group_id=group), turns=turns)

    a = episode("a", "g", Outcome.SUCCESS, "tap", "tap", None, None)  # malformed twice is no action twice
    b = episode("b", "g", Outcome.FAILURE, "tap", "back", "tap")
    c = episode("c", "h", Outcome.SUCCESS, "tap")
    kept, filtered = Group(SPEC, [[a], [b]]), Group(SPEC, [[c]])
    assert repeated(kept.episodes) == 1
    assert group_successes([kept, filtered, Group(SPEC, [[b]])]) == {0: 1, 1: 2}
    batch = Batch([a, b], [1.0, -1.0], [[0.5, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    assert advantage_by_turn(batch) == {"1": 0.25, "2": 0.0, "3-4": pytest.approx((3.0 + 1.0 - 1.0) / 3)}
    assert advantage_by_turn(Batch([a], [0.5])) == {"1": 0.5, "2": 0.5, "3-4": 0.5}
    halves = [replace(a, turns=a.turns[:2]), replace(a, turns=a.turns[2:])]  # rows of one episode
    assert advantage_by_turn(Batch(halves, [1.0, 1.0], [[0.0, 1.0], [2.0, 3.0]])) == {"1": 1.0, "2": 2.0, "3-4": 3.5}
    row = StepMetrics(1, 1, group_successes={0: 1, 2: 3}, advantage_by_turn={"3-4": 0.5}).row()
    assert (row["groups_with_successes/2"], row["advantage/3-4"]) == (3, 0.5)
