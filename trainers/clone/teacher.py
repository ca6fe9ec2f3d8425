"""Successes of a teacher behind an OpenAI-compatible server, as examples to imitate."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from cua_agent.agent import AgentConfig, StandaloneGBoxCUAAgent
from cua_agent.agent import Episode as Played
from cua_agent.cloning.demonstrations import balanced_task
from cua_agent.cloning.example import Example
from cua_agent.conversation import Codec
from cua_agent.envs.base import Environment
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.envs.registry import open_world
from cua_agent.inference.base import InferenceFailure
from cua_agent.tasks import seed_for
from cua_agent.trajectory import Outcome
from trainers.clone.chat import ChatEngine
from trainers.clone.options import CloneConfig
from trainers.clone.retelling import Said, retold
from trainers.config import ConfigError, TrainConfig
from trainers.protocol import Episode, EpisodeSpec
from trainers.rollouts.collection import play_all
from trainers.rollouts.task_sampler import training_tasks

LONGEST = 1_000_000
"""Tokens of a teacher's episode: they are counted by the student's tokenizer, and the teacher has a context of its
own."""


def teacher_examples(options: CloneConfig, config: TrainConfig, codec: Codec, agent: AgentConfig) -> list[Example]:
    """What the teacher did well in `teacher_episodes` episodes of the training tasks, on starts of use "clone" only, as
    the student would have been told and would have said it. Raises `ConfigError` when the server cannot be asked, or
    nothing was done well."""
    successes = asyncio.run(_play(options, config, codec, agent))
    examples = [example for each in successes for example in _example(each, codec, agent)]
    if not examples:
        raise ConfigError(
            f"teacher={options.teacher}: no success in {options.teacher_episodes} episodes; allowed: a model that "
            "solves some, or more episodes"
        )
    print(f"the teacher did {len(successes)} of {options.teacher_episodes} episodes well", flush=True)
    return examples


async def _play(options: CloneConfig, config: TrainConfig, codec: Codec, agent: AgentConfig) -> list[Played]:
    assert options.teacher is not None
    engine = ChatEngine(codec, options.teacher, options.teacher_model, config.inference.request_timeout_s)
    taught = replace(agent, prompt="full", context="full", keep_screenshots=True, max_length=LONGEST)
    found: list[Played] = []

    async def run(environment: Environment, spec: EpisodeSpec) -> Episode:
        player = StandaloneGBoxCUAAgent(codec, engine, environment, taught, config.reward)
        episode = await player.play(spec.task, spec.seed, group_id=spec.group_id, episode_id=spec.episode_id)
        if episode.failure is not None:
            raise episode.failure
        if episode.outcome is Outcome.SUCCESS:
            found.append(episode)
        return episode.trajectories

    try:
        await engine.model()
        async with (
            open_world(config.env.world, config.env.timeout_s) as factory,
            EnvironmentPool(factory, config.rollout.concurrency) as pool,
        ):
            played = await play_all(pool, run, _specs(options, config), config.rollout.infra_retries)
    except InferenceFailure as error:
        raise ConfigError(f"teacher={options.teacher}: {error}") from error
    finally:
        await engine.close()
    lost = [why for each in played for why in each.lost]
    if lost and all(each.rows is None for each in played):
        raise ConfigError(f"teacher={options.teacher}: every episode was lost; the last: {lost[-1]}")
    return sorted(found, key=lambda episode: episode.seed)


def _specs(options: CloneConfig, config: TrainConfig) -> list[EpisodeSpec]:
    tasks, dice = training_tasks(config.env), random.Random(config.seed)
    starts = (config.seed % 1000 * 1_000_000 + place for place in range(options.teacher_episodes))
    return [
        EpisodeSpec(balanced_task(tasks, dice), seed_for("clone", start), "teacher", f"teacher-{start}")
        for start in starts
    ]


def _example(episode: Played, codec: Codec, agent: AgentConfig) -> list[Example]:
    """None where a screen may not be kept."""
    turns = [
        Said(turn.screenshot, turn.text, turn.result, turn.action)
        for turn in episode.turns
        if turn.screenshot is not None
    ]
    return retold(episode.goal, turns, codec, agent) if len(turns) == len(episode.turns) else []
