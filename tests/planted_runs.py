"""Recorded runs of twelve steps on the built-in phone in which a task fails at step 10, for a cause that is known.

python -m tests.planted_runs strict|low|hangs FOLDER
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal

from cua_agent.actions import Action, Point, ReportTaskComplete, Tap, Target
from cua_agent.agent import AgentConfig, StandaloneGBoxCUAAgent
from cua_agent.envs.base import Environment, StepResult
from cua_agent.envs.guard import GuardedEnvironment
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.oracle import Expert
from cua_agent.envs.pocket.state import make_state
from cua_agent.envs.pocket.tasks import training_tasks
from cua_agent.envs.pocket.validators import BRIGHTNESS, get_command
from cua_agent.envs.pool import EnvironmentPool, PoolPolicy
from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.parsing import render_tool_call
from cua_agent.rewards import SuccessOnly
from cua_agent.tasks import CUATask, Probe, Validator
from cua_agent.trajectory import Trajectory
from tests.agent_fakes import ByteCodec, response
from trainers.config import LoggingConfig
from trainers.episodes.log import EpisodeLog
from trainers.episodes.steps import StepLog
from trainers.protocol import Batch, Collected, EpisodeSpec, Group, GroupSpec
from trainers.rollouts.collection import play_groups
from trainers.timeline.log import RUN, TimelineLog, step_row

Story = Literal["strict", "low", "hangs"]
STEPS, PLANTED_STEP, MEMBERS = 12, 10, 4
LOW = 100
"""How far below what it aims at the model of the second story touches, of 1000; half a list row is 71."""
GUARD_S = 0.3
CODEC = ByteCodec()
TASKS = {task.id: task for task in training_tasks()}
BRIGHT, WIFI, CONTACT = (
    next(task for name, task in TASKS.items() if name.startswith(kind))
    for kind in ("brightness/", "toggle/wi-fi-on", "contact/")
)


@dataclass(frozen=True)
class BrightnessIsExactly:
    """The brightness is `wanted`."""

    wanted: int

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {BRIGHTNESS: await probe(get_command(BRIGHTNESS))}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        return float((await probe(get_command(BRIGHTNESS))).strip() == f"{self.wanted}.0")


class Phone(PocketEnvironment):
    """A phone that stops answering when its contacts are looked at."""

    def __init__(self, *, hangs: bool = False) -> None:
        super().__init__()
        self.hangs = hangs

    async def step(self, action: Action) -> StepResult:
        if self.hangs and self.state.screen == "Contacts":
            await asyncio.sleep(3600)
        return await super().step(action)


@dataclass
class ExpertEngine:
    """Says what an expert would do on `phone`, who aims `low`; `careless` reports at once."""

    phone: PocketEnvironment
    goal: Validator
    low: int = 0
    careless: bool = False
    expert: Expert | None = field(default=None, init=False)
    version: int = 0

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        self.expert = self.expert or Expert(self.goal, self.phone.before)
        action = ReportTaskComplete() if self.careless else self.expert.action(self.phone.state)
        if isinstance(action, Tap) and isinstance(action.at, Target):
            at = await self.phone.locate(action.at.name)
            assert at is not None
            action = Tap(Point(at.x, min(1000, at.y + self.low)))
        return response(render_tool_call(action), version=self.version)

    def release(self, conversation_id: str) -> None: ...

    def update_weights(self, version: int) -> None: ...

    async def close(self) -> None: ...


def planted_run(directory: Path, story: Story) -> Path:
    """Play and record the run; in its steps but the tenth, an expert plays that is careless once a group."""
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps({"started": "2026-01-01T00:00:00", "resumed_from": None}))
    (directory / "config.yaml").write_text(f"max_steps: {STEPS}\n")
    log, steps = EpisodeLog(directory, "0", LoggingConfig(), SuccessOnly()), StepLog(directory)
    asyncio.run(_play(directory, story, log, steps))
    log.close()
    return directory


async def _play(directory: Path, story: Story, log: EpisodeLog, steps: StepLog) -> None:
    timeline = TimelineLog(directory, RUN, 1.0)
    for step in range(1, STEPS + 1):
        planted = story if step == PLANTED_STEP else None
        began = time.time()
        specs = [GroupSpec(task, _seed(step), f"g{3 * step + place:06d}") for place, task in enumerate(_tasks())]
        groups = await _groups(specs, planted, log, step - 1)
        kept = [group for group in groups if len({rows[0].reward for rows in group.episodes}) > 1]
        collected_at = time.time()
        times = {"rollout_s": collected_at - began, "train_s": 0.1, "sync_s": 0.05}
        collected = Collected(kept, [group for group in groups if group not in kept])
        rows = [row for group in kept for row in group.rows]
        steps.step(step, step - 1, collected, Batch(rows, [row.reward - 0.5 for row in rows]))
        played = [rows[0].reward for group in groups for rows in group.episodes]
        row = {"step": step, "policy_version": step, "success_rate": sum(played) / max(1, len(played))}
        with (directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**row, **times, "step_s": sum(times.values())}) + "\n")
        timeline.append(step_row(step, collected_at, {**times, "capacity_s": 3 * times["rollout_s"]}))


def _seed(step: int) -> int:
    """One of a phone on which every task takes some touches, without a dialog in the way."""
    for seed in count(100 * step):
        state = make_state(seed, "shuffled")
        if not (state.toggles["Wi-Fi"] or state.dialog or state.pending_dialog) and state.brightness != 25:
            return seed
    raise AssertionError


def _tasks() -> tuple[CUATask, ...]:
    return BRIGHT, WIFI, CONTACT


def task_of(story: Story) -> CUATask:
    """The task that fails at step 10."""
    return {"strict": BRIGHT, "low": WIFI, "hangs": CONTACT}[story]


async def _groups(specs: list[GroupSpec], planted: Story | None, log: EpisodeLog, version: int) -> list[Group]:
    """A round on three phones; the planted cause concerns one task."""
    phones: dict[int, Phone] = {}

    async def start() -> Environment:
        phone = Phone()
        guarded = GuardedEnvironment(phone, GUARD_S)
        phones[id(guarded)] = phone
        return guarded

    async def run(environment: Environment, spec: EpisodeSpec) -> list[Trajectory]:
        phone, task = phones[id(environment)], spec.task
        concerned = planted is not None and task.id == task_of(planted).id
        careless = spec.episode_id.partition(".")[0].endswith("-2") and not concerned
        low = LOW if concerned and planted == "low" else 0
        engine = ExpertEngine(phone, task.validation, low, careless, version)
        phone.hangs = concerned and planted == "hangs" and not careless
        if concerned and planted == "strict":
            task = replace(task, validation=BrightnessIsExactly(round(task.validation.percent * 2.55)))
        config = AgentConfig(grounding="coordinates", max_turns=8, max_length=20_000, keep_screenshots=True)
        agent = StandaloneGBoxCUAAgent(CODEC, engine, environment, config)
        with log.playing(spec, agent, version) as device:
            episode = await agent.play(task, spec.seed, group_id=spec.group_id, episode_id=spec.episode_id)
        log.ended(spec, episode, version, CODEC.decode, device)
        if episode.failure is not None:
            raise episode.failure
        return episode.trajectories

    async with EnvironmentPool(start, 3, PoolPolicy()) as pool:
        groups, _ = await play_groups(pool, run, specs, MEMBERS, 1)
    return groups


if __name__ == "__main__":
    chosen, folder = sys.argv[1:]
    print(planted_run(Path(folder), chosen))  # type: ignore[arg-type]
