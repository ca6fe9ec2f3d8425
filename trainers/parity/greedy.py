"""Rung 4: a short live run in which nothing is drawn, so that every backend must say the very same tokens.

Episodes are greedy and rollouts wait for updates. The run is a real one (rollouts, advantages, updates, publishing,
evaluation), with two changes: members of a group play different worlds, and their rewards alternate between 1 and 0.
Greedy members of one world would be alike and teach nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cua_agent.envs.base import Environment
from cua_agent.inference.base import InferenceEngine
from cua_agent.trajectory import Outcome, Trajectory
from trainers.components import Components, build_components
from trainers.config import EnvConfig, EvalConfig, TrainConfig
from trainers.parity.cases import ALL_AT_ONCE, Weights, replayable
from trainers.parity.evidence import Episodes
from trainers.parity.replay import PartsFor, opened
from trainers.protocol import EpisodeRunner, EpisodeSpec

STEPS = 3
_EVALUATED = 4
_RATE = 5.0
"""The learning rate is this many times the recorded one: a few updates have to change what is said."""


def greedy_config(recorded: TrainConfig, weights: Weights) -> TrainConfig:
    """The configuration of a short run that decodes greedily."""
    config = replayable(recorded, weights)
    return replace(
        config,
        max_steps=STEPS,
        max_minutes=None,
        env=EnvConfig(layout=recorded.env.layout),
        rollout=replace(
            config.rollout, greedy=True, max_staleness=0, group_size=2, groups_per_step=2, concurrency=8, max_refills=0
        ),
        loss=replace(config.loss, decoupled=False, kl_coefficient=0.0),
        optim=replace(
            config.optim,
            learning_rate=_RATE * config.optim.learning_rate,
            warmup_steps=0,
            updates_per_batch=1,
            micro_batch_tokens=ALL_AT_ONCE,
        ),
        areal=replace(config.areal, packed_tokens=ALL_AT_ONCE),
        eval=EvalConfig(every_steps=0, episodes=_EVALUATED),
    )


def play(config: TrainConfig, start: Path | None, parts_for: PartsFor = build_components) -> Episodes:
    """Every episode of the run that starts at the weights of the checkpoint `start`."""
    components = parts_for(config)
    said: dict[str, list[dict[str, list[int]]]] = {}
    with opened(config, replace(components, runner_for=_recording(components, said))) as side:
        if start is not None:
            side.trainer.load(start)
        side.trainer.train()
    return Episodes(said)


def _recording(
    components: Components, said: dict[str, list[dict[str, list[int]]]]
) -> Callable[[InferenceEngine], EpisodeRunner]:
    def runner_for(engine: InferenceEngine) -> EpisodeRunner:
        run = components.runner_for(engine)

        async def record(environment: Environment, spec: EpisodeSpec) -> list[Trajectory]:
            evaluated = spec.group_id == spec.episode_id
            member = 0 if evaluated else _member(spec.episode_id)
            rows = await run(environment, replace(spec, seed=spec.seed + member))
            said[_name(spec.episode_id, said)] = [_said(row) for row in rows]
            return rows if evaluated else [_rewarded(row, float(member % 2 == 0)) for row in rows]

        return record

    return runner_for


def _member(episode_id: str) -> int:
    """Its number in the group; a replacement's is that of the lost episode."""
    return int(episode_id.rpartition("-")[2].partition(".")[0])


def _name(episode_id: str, taken: dict[str, list[dict[str, list[int]]]]) -> str:
    """Evaluations play the same episodes again: the second time is another one."""
    number = sum(name.partition("#")[0] == episode_id for name in taken)
    return f"{episode_id}#{number}"


def _said(row: Trajectory) -> dict[str, list[int]]:
    trained = row.loss_mask == 1
    return {"tokens": row.input_ids[trained].tolist(), "versions": row.versions[trained].tolist()}


def _rewarded(row: Trajectory, reward: float) -> Trajectory:
    return replace(row, reward=reward, outcome=Outcome.SUCCESS if reward else Outcome.FAILURE)
