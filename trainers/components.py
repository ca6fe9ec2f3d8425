"""What a trainer of either backend is made of, built from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from cua_agent.agent import AgentConfig, StandaloneGBoxCUAAgent
from cua_agent.envs.base import Environment
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.envs.registry import open_world
from cua_agent.inference.base import InferenceEngine
from cua_agent.inference.local import LocalEngine
from cua_agent.models.families import check_coordinates
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from cua_agent.models.sources import check_trainable, find_model
from cua_agent.prompts import first_prompt, system_prompt
from cua_agent.tasks import CUATask, EvalSplit
from cua_agent.trajectory import Trajectory
from trainers.config import ConfigError, SamplingConfig, TrainConfig
from trainers.episodes.log import EpisodeLog
from trainers.protocol import EpisodeRunner, EpisodeSpec
from trainers.rollouts.difficulty import TaskDifficulty
from trainers.rollouts.replay import SuccessPool
from trainers.rollouts.task_sampler import training_tasks
from trainers.run.checkpoint import save_weights


@dataclass(frozen=True)
class Components:
    """The policy and the world it acts in.

    `environments` opens what environments share (a browser), for one event loop at a time; `runner_for` makes what
    plays episodes with an engine; they are recorded in `episodes`, if anywhere. `difficulty` is what the run knows of
    its tasks: whoever keeps the books enters it, whoever draws tasks reads it. `successes` are kept by whoever plays.
    """

    policy: PolicyModel
    environments: Callable[[], AbstractAsyncContextManager[EnvironmentFactory]]
    runner_for: Callable[[InferenceEngine], EpisodeRunner]
    train_tasks: Sequence[CUATask]
    eval_tasks: Mapping[EvalSplit, Sequence[CUATask]]
    episodes: EpisodeLog | None = None
    difficulty: TaskDifficulty = field(default_factory=lambda: difficulty_of(SamplingConfig()))
    successes: SuccessPool = field(default_factory=lambda: SuccessPool(TrainConfig()))

    def close(self) -> None:
        """Nothing more is played; safe to call twice."""
        if self.episodes is not None:
            self.episodes.close()


def build_components(config: TrainConfig, *, sharded: bool = False, episodes: EpisodeLog | None = None) -> Components:
    """Load everything that `config` names; `sharded` as for `build_policy`; what is played is recorded in `episodes`.
    Raises `ConfigError`; for the model `ModelNotFound` or `UnsupportedModel`."""
    train_tasks = training_tasks(config.env)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)  # LoRA dropout
    check_context(config, train_tasks)
    policy = build_policy(config, sharded=sharded)
    return Components(
        policy=policy,
        environments=partial(open_world, config.env.world, config.env.timeout_s),
        runner_for=partial(agent_runner, policy, config, episodes=episodes),
        train_tasks=train_tasks,
        eval_tasks=held_out_tasks(config),
        episodes=episodes,
        difficulty=difficulty_of(config.sampling),
        successes=SuccessPool(config),
    )


def difficulty_of(sampling: SamplingConfig) -> TaskDifficulty:
    """Nothing is known of any task yet."""
    return TaskDifficulty(sampling.half_life, sampling.floor)


def check_model(config: TrainConfig) -> None:
    """Raise `ConfigError`, `ModelError` or `ServerMismatch` when the model cannot be what `config` makes of it; nothing
    is loaded."""
    lora, model = config.lora, config.model
    source = find_model(model.path)
    check_trainable(model.path, source, adapter=lora.enabled or source.adapter is not None)
    if source.quantisation is not None and config.backend == "areal" and config.phase > 1:
        raise ConfigError(
            f"model.path={model.path}: {source.quantisation} weights with backend=areal phase={config.phase}: FSDP "
            "cannot shard quantised weights; set phase=1 or backend=legacy"
        )
    check_coordinates(
        model.path,
        source.family,
        grounding=model.grounding,
        observation=model.observation,
        coordinates=model.coordinates,
    )
    if model.observation == "screenshot" and not source.reads_images:
        raise ConfigError(f"model.path={model.path}: it reads no images; allowed with it: model.observation=text")
    if config.inference.name == "vllm":
        if not source.reads_images:
            raise ConfigError(f"model.path={model.path}: it reads no images; allowed with it: inference=local")
        from cua_agent.inference.vllm.servable import check_servable

        check_servable(source, lora.r if lora.enabled else None, lora.target_modules)


def check_context(config: TrainConfig, tasks: Sequence[CUATask]) -> None:
    """Raise `ConfigError` when not even the first turn of the shortest of `tasks` fits into `model.max_length`, a
    screenshot counted as one token; the tokenizer is loaded, and nothing else."""
    from transformers import AutoTokenizer

    model, answer = config.model, config.rollout.max_new_tokens
    tokenizer = AutoTokenizer.from_pretrained(find_model(model.path).location)
    goal = min((task.description for task in tasks), key=len)
    screens = 1 if model.observation == "screenshot" else 0
    prompt = first_prompt(system_prompt(model.prompt, model.grounding), goal, screens)
    needed = len(tokenizer.encode(prompt, add_special_tokens=False)) + answer
    if needed > model.max_length:
        raise ConfigError(
            f"model.max_length={model.max_length}: a first turn takes more than {needed} tokens with "
            f"model.prompt={model.prompt} and rollout.max_new_tokens={answer}; allowed: a larger one, or fewer of the "
            "others"
        )


def build_policy(config: TrainConfig, *, sharded: bool = False) -> PolicyModel:
    """The policy to train, with a fresh adapter when `lora.enabled`. Where it will be `sharded` at once, its weights
    stay on disk until then, if the loader can. Raises what `check_model` does."""
    check_model(config)
    lora, loader, model = config.lora, config.loader, config.model
    return load_policy(
        model.path,
        loader=loader.name,
        dtype=model.dtype,
        device=loader.device,
        device_map=loader.device_map,
        attn_implementation=loader.attn_implementation,
        load_in_4bit=loader.load_in_4bit,
        gradient_checkpointing=loader.gradient_checkpointing,
        offload_activations=loader.offload_activations,
        compiled=loader.compile,
        max_length=max(model.max_length, config.optim.micro_batch_tokens),
        lora=LoraSpec(lora.r, lora.alpha, lora.dropout, lora.target_modules, config.seed) if lora.enabled else None,
        freeze_vision=model.freeze_vision,
        keep_reference=config.loss.kl_coefficient > 0,
        unread=sharded and loader.name == "peft" and loader.device_map is None,
        coordinates=model.coordinates,
        thinking=model.thinking,
    )


def build_engine(config: TrainConfig, policy: PolicyModel) -> InferenceEngine:
    """The engine that `inference` names, serving `policy`. For vLLM it waits for the servers and may raise
    `ServerMismatch`, `CanaryError` or `InferenceFailure`."""
    if config.inference.name == "vllm":
        from cua_agent.inference.vllm.build import connect

        rollout = config.rollout
        return connect(
            config.inference,
            policy,
            save_weights,
            max_length=config.model.max_length,
            max_images=rollout.most_screenshots,
            max_staleness=rollout.max_staleness,
            run=config.run_name or config.experiment,
        )
    return LocalEngine(policy, max_batch=config.inference.max_batch)


def agent_config(config: TrainConfig) -> AgentConfig:
    """How the agent plays a training or evaluation episode."""
    return AgentConfig(
        observation=config.model.observation,
        grounding=config.model.grounding,
        prompt=config.model.prompt,
        context=config.rollout.context,
        last_k=config.rollout.last_k,
        max_turns=config.rollout.max_turns,
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        greedy=config.rollout.greedy,
        max_length=config.model.max_length,
        keep_states=config.advantage.credit == "gigpo",
        timeout_s=config.rollout.episode_timeout_s,
    )


def agent_runner(
    policy: PolicyModel, config: TrainConfig, engine: InferenceEngine, episodes: EpisodeLog | None = None
) -> EpisodeRunner:
    """Plays episodes with `StandaloneGBoxCUAAgent`, recorded in `episodes`; a lost one raises why."""
    how = agent_config(config)

    async def run(environment: Environment, spec: EpisodeSpec) -> list[Trajectory]:
        keep = episodes is not None and episodes.wants(spec)
        agent = StandaloneGBoxCUAAgent(policy, engine, environment, replace(how, keep_screenshots=keep), config.reward)
        play = agent.play(
            spec.task,
            spec.seed,
            group_id=spec.group_id,
            episode_id=spec.episode_id,
            begin=spec.begin,
            leaves_trail=spec.leaves_trail,
        )
        if episodes is None:
            episode = await play
        else:
            version = engine.version
            with episodes.playing(spec, agent, version) as device:
                episode = await play
            episodes.ended(spec, episode, version, policy.decode, device)
        if episode.failure is not None:
            raise episode.failure
        return [_without_screens(row) for row in episode.trajectories] if keep else episode.trajectories

    return run


def _without_screens(row: Trajectory) -> Trajectory:
    """A row whose turns hold no second copy of its images."""
    return replace(row, turns=tuple(replace(turn, screenshot=None) for turn in row.turns))


def held_out_tasks(config: TrainConfig) -> dict[EvalSplit, Sequence[CUATask]]:
    """The evaluation tasks by split."""
    return {"seeds": _held_out("seeds", config), "templates": _held_out("templates", config)}


def _held_out(split: EvalSplit, config: TrainConfig) -> list[CUATask]:
    """The evaluation tasks of the categories trained on; all of the split when it has none of them (held-out tasks
    that stand for templates have categories of their own). A world without templates is evaluated on seeds instead."""
    world = config.env.world
    tasks = world.eval_tasks(split) or world.eval_tasks("seeds")
    return [task for task in tasks if task.category in config.env.tasks] or tasks
