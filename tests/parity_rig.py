"""The ladder on a random model and a toy world: a recording, and the components that replay it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cua_agent.envs.base import Environment
from cua_agent.inference.base import GenerateRequest, InferenceEngine
from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Outcome, Trajectory, Turn
from tests.legacy_rig import TASKS, squares
from tests.policy_rows import row
from tests.tiny_random import build
from trainers.components import Components, build_policy, difficulty_of
from trainers.config import LoraConfig, ModelConfig, OptimConfig, TrainConfig
from trainers.parity.recording import UPDATES, Recording, load_recording, write_config
from trainers.parity.starts import rescored
from trainers.protocol import Batch, EpisodeSpec
from trainers.rollouts.replay import SuccessPool
from trainers.rollouts.trajectory_store import TrajectoryStore

SHAPES: Sequence[Sequence[tuple[int, int, int]]] = (
    [(64, 64, 3)],
    [(64, 96, 2), (96, 64, 5)],
    [(0, 0, 4)],
    [(64, 64, 1), (64, 64, 2)],
    [(96, 96, 6)],
    [(64, 64, 2), (0, 0, 1), (64, 64, 3)],
)
"""Turns of an episode: (height and width of the screenshot, sampled tokens)."""


CALL = 40


def record_toy(directory: Path) -> Recording:
    """Batches of two groups of three episodes of a random model, on-policy."""
    weights = build(directory.parent / "model")
    config = TrainConfig(
        threads=1,
        model=ModelConfig(path=str(weights), freeze_vision=False),
        optim=OptimConfig(learning_rate=1e-3),
        lora=LoraConfig(r=4),
    )
    write_config(directory, config)
    policy = _policy(config)
    store = TrajectoryStore(directory / "trajectories", keep=UPDATES)
    for step in range(1, UPDATES + 1):
        rows = rescored(policy, _rows(policy, step), config.rollout.temperature)
        store.record(step, Batch(rows, [0.0] * len(rows)))
    return load_recording(directory)


def _rows(policy: PolicyModel, step: int) -> list[Trajectory]:
    rows = []
    for index, turns in enumerate(SHAPES):
        plain = row(policy, 100 * step + index, turns, episode_id=f"{step}-{index}")
        plain.input_ids[np.flatnonzero(plain.loss_mask)[len(turns) :: 3]] = CALL
        reward = float(index % 3 == 0)
        outcome = Outcome.SUCCESS if reward else Outcome.FAILURE
        rows.append(replace(plain, reward=reward, outcome=outcome, group_id=f"{step}-{index // 3}"))
    return rows


def _policy(config: TrainConfig) -> PolicyModel:
    """Its vocabulary is bytes, one of which begins a tool call."""
    policy = build_policy(config)
    policy.special = replace(policy.special, call_id=CALL)
    return policy


def toy_parts(config: TrainConfig) -> Components:
    policy = _policy(config)
    held_out = {"seeds": TASKS, "templates": TASKS[:1]}
    return Components(
        policy,
        squares,  # type: ignore[arg-type]
        lambda engine: Speaker(policy, engine, config.rollout.greedy),
        TASKS,
        held_out,  # type: ignore[arg-type]
        difficulty=difficulty_of(config.sampling),
        successes=SuccessPool(config),
    )


@dataclass
class Speaker:
    """Shows the screen, names the task by a token, and lets the model say a few."""

    policy: PolicyModel
    engine: InferenceEngine
    greedy: bool

    async def __call__(self, environment: Environment, spec: EpisodeSpec) -> list[Trajectory]:
        image = np.asarray((await environment.reset(spec.task, spec.seed)).screenshot)
        ids = [
            7 + TASKS.index(spec.task),
            *[self.policy.special.image_token_id] * self.policy.image_tokens(*image.shape[:2]),
            6,
        ]
        request = GenerateRequest(spec.episode_id, ids, [image], 8, greedy=self.greedy, seed=spec.seed)
        answer = await self.engine.generate(request)
        self.engine.release(spec.episode_id)
        prompt = len(ids)
        return [
            Trajectory(
                input_ids=np.asarray(ids + answer.output_ids),
                loss_mask=np.asarray([0] * prompt + [1] * len(answer.output_ids), np.int32),
                logprobs=np.asarray([0.0] * prompt + answer.logprobs, np.float32),
                versions=np.asarray([-1] * prompt + answer.versions, np.int32),
                images=[image],
                reward=0.0,
                outcome=Outcome.FAILURE,
                task_id=spec.task.id,
                group_id=spec.group_id,
                episode_id=spec.episode_id,
                seed=spec.seed,
                turns=(Turn("", None, "", 0.0, 0.0),),
            )
        ]
