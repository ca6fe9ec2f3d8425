"""What the synchronous trainer is made of, built from its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from cua_agent.agent import AgentConfig, StandaloneGBoxCUAAgent
from cua_agent.envs import environment_factory
from cua_agent.envs.base import Environment, EnvironmentFailure
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.inference.base import InferenceEngine, InferenceFailure
from cua_agent.inference.local import LocalEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from cua_agent.tasks import CUATask, EvalSplit, get_eval_tasks
from cua_agent.trajectory import Trajectory
from trainers.checkpoint import MANIFEST, CheckpointError, latest_checkpoint
from trainers.config import TrainConfig
from trainers.rollouts import EpisodeRunner, EpisodeSpec
from trainers.task_sampler import training_tasks


@dataclass(frozen=True)
class Parts:
    """The policy, what serves it, and the world it acts in."""

    policy: PolicyModel
    engine: InferenceEngine
    environments: AbstractAsyncContextManager[EnvironmentFactory]
    run_episode: EpisodeRunner
    train_tasks: Sequence[CUATask]
    eval_tasks: Mapping[EvalSplit, Sequence[CUATask]]


def build_parts(config: TrainConfig) -> Parts:
    """Load everything that `config` names. Raises `ConfigError`; for the model `ModelNotFound` or
    `UnsupportedModel`."""
    train_tasks = training_tasks(config.env)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)  # LoRA dropout
    policy = build_policy(config)
    engine = LocalEngine(policy, max_batch=config.inference.max_batch)
    return Parts(
        policy=policy,
        engine=engine,
        environments=environment_factory(config.env),
        run_episode=agent_runner(policy, engine, config),
        train_tasks=train_tasks,
        eval_tasks={"seeds": _held_out("seeds", config), "templates": _held_out("templates", config)},
    )


def build_policy(config: TrainConfig) -> PolicyModel:
    """The policy to train, with a fresh adapter when `lora.enabled`."""
    lora = config.lora
    return load_policy(
        config.model.path,
        dtype=config.model.dtype,
        device=config.loader.device,
        device_map=config.loader.device_map,
        attn_implementation=config.loader.attn_implementation,
        lora=LoraSpec(lora.r, lora.alpha, lora.dropout, lora.target_modules, config.seed) if lora.enabled else None,
        freeze_vision=config.model.freeze_vision,
        keep_reference=config.loss.kl_coefficient > 0,
    )


def agent_config(config: TrainConfig) -> AgentConfig:
    """How the agent plays a training or evaluation episode."""
    return AgentConfig(
        grounding=config.model.grounding,
        prompt=config.model.prompt,
        context=config.rollout.context,
        last_k=config.rollout.last_k,
        max_turns=config.rollout.max_turns,
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        max_length=config.model.max_length,
    )


def agent_runner(policy: PolicyModel, engine: InferenceEngine, config: TrainConfig) -> EpisodeRunner:
    """Plays episodes with `StandaloneGBoxCUAAgent`; a lost one raises why."""
    how = agent_config(config)

    async def run(environment: Environment, spec: EpisodeSpec) -> list[Trajectory]:
        agent = StandaloneGBoxCUAAgent(policy, engine, environment, how, config.reward)
        episode = await agent.play(spec.task, spec.seed, group_id=spec.group_id, episode_id=spec.episode_id)
        if isinstance(episode.failure, EnvironmentFailure | InferenceFailure):
            raise episode.failure
        if episode.failure is not None:  # out of time: nobody knows what the world is doing
            raise EnvironmentFailure(f"no end after {how.timeout_s:g} s") from episode.failure
        return episode.trajectories

    return run


def find_checkpoint(path: str | None) -> Path | None:
    """The checkpoint that `resume` means: the directory itself, or the newest intact one of a run directory.

    Raises `CheckpointError` when there is none.
    """
    if path is None:
        return None
    directory = Path(path).expanduser()
    if (directory / MANIFEST).is_file():
        return directory
    newest = latest_checkpoint(directory / "checkpoints")
    if newest is None:
        raise CheckpointError(f"resume={path!r} is neither a checkpoint nor a run directory with an intact one")
    return newest


def _held_out(split: EvalSplit, config: TrainConfig) -> list[CUATask]:
    """The evaluation tasks of the categories trained on; all of the split when it has none of them (held-out tasks
    that stand for templates have categories of their own)."""
    tasks = get_eval_tasks(config.env.name, split)
    return [task for task in tasks if task.category in config.env.tasks] or tasks
