"""A recorded run, written as a training process writes it."""

import json
from dataclasses import replace
from pathlib import Path

from PIL import Image

from cua_agent.agent import Episode
from cua_agent.envs.base import EnvironmentFailure
from cua_agent.rewards import SuccessOnly
from cua_agent.touch import Place, Touch
from cua_agent.trajectory import Outcome, Turn
from cua_agent.verdict import Verdict
from tests.toy_world import toy_task, trajectory
from trainers.config import LoggingConfig
from trainers.episodes.log import EpisodeLog
from trainers.episodes.record import Ended
from trainers.episodes.steps import StepLog
from trainers.protocol import Batch, Collected, EpisodeSpec, Group, GroupSpec
from trainers.watch.recording import Recording

PLANTED = "<script>window.planted = 1</script><img src=x onerror='window.planted = 2'>"


def record_run(directory: Path, *, goal: str = "Tap it.", resumed_from: Path | None = None, first: int = 1) -> Path:
    """A run of one step from `first` on: a kept group of two, a filtered one, and evaluations before and after."""
    directory.mkdir(parents=True)
    about = {"started": "2026-01-01T00:00:00", "resumed_from": None}
    if resumed_from is not None:
        about = {"started": "2026-01-02", "resumed_from": str(resumed_from), "resumed_step": first - 1}
    (directory / "run.json").write_text(json.dumps(about))
    (directory / "config.yaml").write_text("max_steps: 9\n")
    row = {"step": first, "policy_version": first, "success_rate": 0.25, "step_s": 2.0, "rollout_s": 1.0}
    (directory / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (directory / "eval.jsonl").write_text(json.dumps({"split": "seeds", "step": first, "success_rate": 1.0}) + "\n")
    log, steps = EpisodeLog(directory, "0", LoggingConfig(), SuccessOnly()), StepLog(directory)
    rewards = {f"g{first}0": (1.0, 0.0), f"g{first}1": (0.0, 0.0), "eval-0": (0.0,), "eval-0 again": (1.0,)}
    for name, values in rewards.items():
        for member, reward in enumerate(values):
            group = name.partition(" ")[0]
            version = first if "again" in name else first - 1
            write(log, group, f"{group}-{member}" if len(values) > 1 else group, reward, version, goal)
    write(log, f"g{first}1", f"g{first}1-1.1", None, first - 1, goal)
    groups = [group_of(name, *rewards[name]) for name in (f"g{first}0", f"g{first}1")]
    steps.evaluation(first - 1, first - 1, "seeds")
    steps.step(first, first - 1, Collected(groups[:1], groups[1:]), Batch(groups[0].rows, [1.0, -1.0]))
    steps.evaluation(first, first, "seeds")
    return directory


def write(log: EpisodeLog, group: str, name: str, reward: float | None, version: int, goal: str) -> None:
    outcome = Outcome.INFRA_ERROR if reward is None else Outcome.SUCCESS if reward else Outcome.FALSE_CLAIM
    task = replace(toy_task(), description=goal)
    shade = Image.new("RGB", (64, 112), (int(200 * (reward or 0)), 90, 120))
    touch = (Touch(Place(goal, 300, 100, 700, 200), 0, 50),)
    turn = Turn(goal, f"tap target={goal}", f"error: {goal}", 1.5, 0.25, (500, 250), screenshot=shade, touch=touch)
    episode = Episode(
        task, 5, goal, outcome, reward or 0.0, reward or 0.0, [turn], [trajectory(reward or 0.0)], 0.1,
        EnvironmentFailure(goal) if reward is None else None, shade,
        verdict=Verdict(f"Always({goal})", {"wifi": "0"}, [("get wifi", "1"), (goal, goal)], goal),
    )  # fmt: skip
    spec = EpisodeSpec(task, 5, group, name)
    log._writing(lambda: log._write(Ended(spec, episode, version, 1.0, [shade, shade], SuccessOnly(), str)))


def group_of(name: str, *rewards: float) -> Group:
    rows = [[trajectory(reward, group_id=name, episode_id=f"{name}-{i}")] for i, reward in enumerate(rewards)]
    return Group(GroupSpec(toy_task(), 5, name), rows)


def read(directory: Path) -> Recording:
    recording = Recording(directory)
    recording.refresh()
    return recording
