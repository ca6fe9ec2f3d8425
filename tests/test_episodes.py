"""What is recorded of episodes: rows, masks, screens within their budget, the live state, groups."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cua_agent.actions import Point, ReportTaskComplete, Tap, Target, TypeText
from cua_agent.agent import AgentConfig, StandaloneGBoxCUAAgent
from cua_agent.envs.base import EnvironmentFailure, Observation
from cua_agent.envs.gbox.start import android_start
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.validators import SwitchesAre
from cua_agent.parsing import render_tool_call
from cua_agent.rewards import SuccessOnly, reward_of, reward_parts
from cua_agent.tasks import CUATask, get_training_tasks
from cua_agent.touch import Place
from cua_agent.trajectory import Outcome, Turn
from cua_agent.verdict import heard
from tests.agent_fakes import ByteCodec, ScriptedEngine, ScriptedEnvironment
from tests.toy_world import toy_task, trajectory
from trainers.config import LoggingConfig
from trainers.episodes.log import EpisodeLog
from trainers.episodes.screens import LONGEST, ScreenStore, encoded
from trainers.episodes.steps import StepLog
from trainers.protocol import Batch, Collected, EpisodeSpec, Group, GroupSpec

DONE = render_tool_call(ReportTaskComplete())
TAP = render_tool_call(Tap(Target("Leo")))
CODEC = ByteCodec()
WIFI_ON = next(task for task in get_training_tasks("pocket") if task.id.startswith("toggle/wi-fi-on"))


def play_and_record(
    directory: Path,
    script: Sequence[str | Exception],
    *,
    task: CUATask = WIFI_ON,
    environment: Any = None,
    config: LoggingConfig | None = None,
    episode_id: str = "g000000-0",
) -> list[dict[str, Any]]:
    """The rows that one episode leaves."""
    log = EpisodeLog(directory, "0", config or LoggingConfig(), SuccessOnly())
    spec = EpisodeSpec(task, 3, episode_id.rpartition("-")[0], episode_id)
    agent = StandaloneGBoxCUAAgent(
        CODEC,
        ScriptedEngine(list(script)),
        environment or PocketEnvironment(),
        AgentConfig(max_length=20_000, keep_screenshots=True),
    )
    with log.playing(spec, agent, 7):
        episode = asyncio.run(agent.play(task, 3, group_id=spec.group_id, episode_id=episode_id))
    log.ended(spec, episode, 7, CODEC.decode)
    log.close()
    rows = directory / "episodes" / "0.jsonl"
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def test_a_row_tells_what_was_seen_said_and_asked(tmp_path: Path) -> None:
    (row,) = play_and_record(tmp_path, [TAP, DONE])
    assert (row["id"], row["group"], row["evaluation"], row["task"]) == ("g000000-0", "g000000", False, WIFI_ON.id)
    assert (row["version"], row["seed"], row["goal"]) == (7, 3, WIFI_ON.description)
    assert [turn["text"] for turn in row["turns"]] == [TAP, DONE]
    assert row["turns"][0]["point"] and row["turns"][1]["point"] is None
    nearest = row["turns"][0]["touch"][0]
    assert (nearest["place"]["name"], nearest["right"], nearest["below"]) == ("Leo", 0, 0)
    assert "".join(piece for piece, _, _ in row["turns"][0]["tokens"]) == f"{TAP}<|im_end|>"
    screens = [turn["screen"] for turn in row["turns"]] + [row["final"]]
    assert len(set(screens)) == 2  # the first screen, and the one that the tap led to, which the report left
    with Image.open(tmp_path / "episodes" / "screens" / screens[0]) as kept:
        start = asyncio.run(PocketEnvironment().reset(WIFI_ON, 3)).screenshot
        assert np.array_equal(np.asarray(kept.convert("RGB")), np.asarray(start))
    assert row["verdict"]["validator"] == repr(WIFI_ON.validation)
    assert [q for q, _ in row["verdict"]["asked"] if "wifi" in q] == ["settings get global wifi_on"]


def test_a_lost_episode_is_recorded_with_its_cause(tmp_path: Path) -> None:
    (row,) = play_and_record(tmp_path, [TAP, EnvironmentFailure("the box is gone")])
    assert (row["outcome"], row["failure"], len(row["turns"])) == ("infra_error", "the box is gone", 1)
    live = json.loads((tmp_path / "episodes" / "live-0.json").read_text())
    assert live["lost"][0]["why"] == "the box is gone"


class Bank(ScriptedEnvironment):
    """A world that shows a secret."""

    async def reset(self, task: CUATask, seed: int) -> Observation:
        places = (Place("My account", 0, 0, 1000, 1000),)
        return replace(await super().reset(task, seed), private=True, places=places)


def test_what_a_task_declares_secret_is_nowhere_in_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANK_TOKEN", "of-the-environment")
    said = render_tool_call(TypeText("hunter2-hunter2", Point(500, 500)))
    task = replace(toy_task(), max_steps=5, description="Log in with hunter2-hunter2.", secrets=("hunter2-hunter2",))
    (row,) = play_and_record(tmp_path, [said, "of-the-environment", DONE], task=task, environment=Bank({}))
    assert row["goal"] == "Log in with ***."
    assert row["turns"][0]["tokens"] == [] and row["turns"][0]["screen"] is None
    assert row["turns"][0]["point"] == [500, 500] and row["turns"][0]["touch"] == []
    assert row["turns"][2]["tokens"]
    recorded = b"".join(file.read_bytes() for file in (tmp_path / "episodes").rglob("*") if file.is_file())
    assert b"hunter2" not in recorded and b"of-the-environment" not in recorded


@pytest.mark.parametrize(
    ("config", "episode_id", "recorded"),
    [
        (LoggingConfig(record_groups=0), "g000000-0", False),
        (LoggingConfig(record_groups=3), "g000003-1", True),
        (LoggingConfig(record_groups=3), "g000004-1", False),
        (LoggingConfig(record_evaluations=False), "eval-4", False),
        (LoggingConfig(record_groups=0), "eval-4", True),
    ],
)
def test_keys_tell_which_episodes_are_recorded(
    tmp_path: Path, config: LoggingConfig, episode_id: str, recorded: bool
) -> None:
    log = EpisodeLog(tmp_path, "0", config, SuccessOnly())
    group = episode_id if episode_id.startswith("eval") else episode_id.rpartition("-")[0]
    assert log.wants(EpisodeSpec(WIFI_ON, 3, group, episode_id)) is recorded


def test_a_full_disk_ends_the_recording_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "episodes").write_text("in the way")
    assert play_and_record(tmp_path, [TAP, DONE]) == []
    assert sum("not recorded any further" in line for line in caplog.messages) == 1


def picture(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    return Image.fromarray(noise)


def used(directory: Path) -> int:
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in directory.rglob("*.webp"))


def test_screens_stay_within_their_budget_and_the_oldest_go_first(tmp_path: Path) -> None:
    store = ScreenStore(tmp_path, "0", budget=4e6)
    names = [store.put(picture(number), 1, evaluation=False) for number in range(600)]
    assert all(names)
    assert 3e6 < used(tmp_path) <= 4e6
    kept = [(tmp_path / "screens" / str(name)).exists() for name in names]
    assert not kept[0] and kept[-1] and kept == sorted(kept)


@pytest.mark.slow
def test_two_processes_of_200_steps_stay_within_the_budget(tmp_path: Path) -> None:
    budget, number, best = 3e6, 0, 0
    stores = [ScreenStore(tmp_path, str(process), budget) for process in range(2)]
    for step in range(200):
        evaluation = step % 5 == 0
        for store in stores:
            for _ in range(10 if evaluation else 4):
                store.put(picture(number := number + 1), step, evaluation=evaluation)
        if step % 20 == 0:  # the newest evaluation is the best so far
            best = step
            (tmp_path / "best.json").write_text(json.dumps({"version": best}))
        if step % 10 == 9:
            assert used(tmp_path) <= budget
    kept = list((tmp_path / "screens").glob(f"evaluation{best:06d}-*/*.webp"))
    assert number * 12_288 > 5 * budget and len(kept) == 20


def test_the_best_evaluations_screens_are_never_deleted(tmp_path: Path) -> None:
    store = ScreenStore(tmp_path, "0", budget=2e6)
    best = [store.put(picture(number), 5, evaluation=True) for number in range(20)]
    StepLog(tmp_path.parent).best(3, 5)
    (tmp_path / "best.json").write_text('{"version": 5}')
    for number in range(100, 500):
        store.put(picture(number), 6 + number // 100, evaluation=number % 2 == 0)
    assert all((tmp_path / "screens" / str(name)).exists() for name in best)
    assert used(tmp_path) <= 2e6


def test_where_nothing_may_be_deleted_nothing_more_is_kept(tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text('{"version": 5}')
    store = ScreenStore(tmp_path, "0", budget=1e6)
    names = [store.put(picture(number), 5, evaluation=True) for number in range(400)]
    assert names[0] and names[-1] is None
    assert used(tmp_path) <= 1.1e6


def test_equal_screens_are_one_file_and_large_ones_are_made_smaller(tmp_path: Path) -> None:
    store = ScreenStore(tmp_path, "0", budget=1e6)
    assert store.put(picture(1), 0, evaluation=False) == store.put(picture(1), 0, evaluation=False)
    content = encoded(Image.new("RGBA", (1080, 2400)))
    (tmp_path / "large.webp").write_bytes(content)
    with Image.open(tmp_path / "large.webp") as image:
        assert max(image.size) == LONGEST


def test_groups_tell_their_advantages_and_why_others_were_left(tmp_path: Path) -> None:
    def group(name: str, *rewards: float) -> Group:
        rows = [
            [trajectory(reward, group_id=name, episode_id=f"{name}-{member}")] for member, reward in enumerate(rewards)
        ]
        return Group(GroupSpec(toy_task(), 1, name), rows)

    kept, filtered = group("g1", 0.0, 1.0), group("g2", 0.0, 0.0)
    log = StepLog(tmp_path)
    log.step(4, 3, Collected([kept], [filtered], [], ["g3"]), Batch(kept.rows, [-1.0, 1.0]))
    log.evaluation(4, 4, "seeds")
    rows = [json.loads(line) for line in (tmp_path / "episodes" / "steps.jsonl").read_text().splitlines()]
    assert [(row.get("group"), row.get("state"), row["step"]) for row in rows] == [
        ("g1", "kept", 4),
        ("g2", "filtered", 4),
        ("g3", "dropped", 4),
        (None, None, 4),
    ]
    assert rows[0]["advantages"] == {"g1-0": -1.0, "g1-1": 1.0}
    assert rows[1]["why"] == "no signal: all 2 rewards are 0"
    assert rows[2]["why"] == "came too late for rollout.max_staleness"


def test_a_listening_validator_is_the_validator_to_the_world() -> None:
    listening, verdict = heard(WIFI_ON)
    assert isinstance(listening.validation, SwitchesAre)
    assert android_start(listening.validation, 3) == android_start(WIFI_ON.validation, 3)

    async def episode() -> float:
        phone = PocketEnvironment()
        await phone.reset(listening, 3)
        return await phone.compute_reward()

    asyncio.run(episode())
    assert verdict.start["global wifi_on"] in ("0", "1")
    assert dict(verdict.asked)["settings get global wifi_on"].strip() == verdict.start["global wifi_on"]


@given(
    st.sampled_from([Outcome.SUCCESS, Outcome.FAILURE, Outcome.FALSE_CLAIM, Outcome.OUT_OF_TURNS]),
    st.floats(0, 1),
    st.floats(0, 0.4),
    st.integers(0, 9),
)
def test_the_parts_of_a_reward_add_up(outcome: Outcome, score: float, cost: float, turns: int) -> None:
    values = SuccessOnly(partial=0.3, turn_cost=cost, malformed_cost=cost / 2)
    played = [Turn("", None, "", 0.1, 0.1)] * turns
    reward = reward_of(outcome, score, values, played, toy_task())
    parts = reward_parts(outcome, score, values, played, 0, reward)
    assert sum(parts.values()) == pytest.approx(reward, abs=1e-6)


def test_the_process_that_keeps_no_screens_leaves_no_files(tmp_path: Path) -> None:
    (row,) = play_and_record(tmp_path, [TAP, DONE], config=LoggingConfig(screenshots_mb=0))
    assert row["turns"][0]["screen"] is None and row["final"] is None
    assert not (tmp_path / "episodes" / "screens").exists()
