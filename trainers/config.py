"""Typed configuration: what Hydra's merged tree becomes before anything heavy is loaded.

The defaults, allowed values and one-line help of every key live here and nowhere else: `conf/` holds only what
differs from them, and `docs/configuration.md` and `train.py --help` are made from them.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from trainers.config_validation import STRICT, ConfigError, build, check_model_path, check_resume_path

__all__ = ["ConfigError", "TrainConfig", "from_mapping"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from error
    return pattern


Name = Annotated[str, Field(strict=False, pattern=r"^\w[\w.+=-]*$")]
PathText = Annotated[str, Field(strict=False, min_length=1)]
Regex = Annotated[str, AfterValidator(_compiles)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class LatencyConfig:
    """Delay that every action on `pocket` costs: stands for a cloud box's round trip."""

    kind: Literal["none", "constant", "lognormal"] = Field(default="none", description="distribution of the delay")
    mean_s: float = Field(default=0.0, ge=0, description="mean delay of an action in seconds")
    sigma: float = Field(
        default=1.0, gt=0, description="lognormal: sigma of the underlying normal; 1 gives a heavy tail"
    )

    @model_validator(mode="after")
    def _consistent(self) -> LatencyConfig:
        if (self.kind == "none") != (self.mean_s == 0):
            raise ValueError(f"kind={self.kind} with mean_s={self.mean_s:g}; a delay needs a kind and mean_s > 0")
        return self


@dataclass(frozen=True, config=STRICT)
class EnvConfig:
    """The world the agent acts in."""

    name: Literal["pocket", "miniwob"] = Field(
        default="pocket", description="simulated phone, or MiniWoB++ in Chromium"
    )
    layout: Literal["fixed", "themed", "shuffled"] = Field(
        default="shuffled", description="pocket: order of the home screen"
    )
    scale: int = Field(default=1, ge=1, le=8, description="pocket: screenshot pixels per logical pixel")
    latency: LatencyConfig = Field(default_factory=LatencyConfig)
    tasks: tuple[str, ...] = Field(default=(), description="task categories to train and evaluate on; empty: all")
    browser_path: PathText = Field(
        default="/usr/bin/chromium-headless-shell", description="miniwob: the browser's executable"
    )


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The vision-language model and how it is spoken to."""

    path: PathText = Field(default="tiny", description="tiny (built in), a local directory, or a hub id")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of weights and activations")
    grounding: Literal["target", "coordinates"] = Field(
        default="target", description="name the element, or give its position"
    )
    prompt: Literal["brief", "full"] = Field(
        default="brief", description="how much of the tool schema the prompt spells out"
    )
    freeze_vision: bool = Field(default=True, description="train the language model only, not the vision tower")
    max_length: int = Field(default=2048, ge=64, description="most tokens of one training row")


@dataclass(frozen=True, config=STRICT)
class LoaderConfig:
    """How the model gets into memory."""

    name: Literal["peft"] = Field(default="peft", description="transformers and peft")
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")] = Field(
        default="cpu", description="cpu, mps, cuda or cuda:N"
    )
    device_map: str | None = Field(
        default=None, description="accelerate's device_map, for models larger than one device"
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa", description="attention kernel"
    )


@dataclass(frozen=True, config=STRICT)
class LoraConfig:
    """Low-rank adapters instead of full weights."""

    enabled: bool = Field(default=False, description="train an adapter; false: all weights")
    r: int = Field(default=16, ge=1, description="rank")
    alpha: int = Field(default=32, ge=1, description="scale of the adapter, divided by r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: Regex = Field(
        default=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        description="regular expression over module names",
    )


@dataclass(frozen=True, config=STRICT)
class InferenceConfig:
    """The engine that samples the agent's turns."""

    name: Literal["local"] = Field(default="local", description="in process, continuous batching")
    max_batch: int = Field(default=64, ge=1, description="episodes decoded together")


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """How episodes are collected."""

    group_size: int = Field(default=8, ge=2, description="episodes per group (same task, same start)")
    groups_per_step: int = Field(default=8, ge=1, description="groups per training step")
    max_turns: int = Field(default=12, ge=1, description="upper bound over every task's own limit of turns")
    max_new_tokens: int = Field(default=48, ge=1, description="most sampled tokens of a turn")
    concurrency: int = Field(default=64, ge=1, description="episodes at a time; 1 is one after the other")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    max_staleness: int = Field(default=0, ge=0, description="bound on policy versions behind; legacy always stays at 0")
    context: Literal["full", "last_k"] = Field(default="full", description="screenshots kept in the conversation")
    last_k: int = Field(default=3, ge=1, description="screenshots kept with context=last_k")
    max_refills: int = Field(default=1, ge=0, description="further rounds of groups when too many gave no signal")
    infra_retries: int = Field(default=3, ge=0, description="replacements of one episode lost to infrastructure")


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    """Reward of an episode by its outcome."""

    success: float = Field(default=1.0, description="the goal holds")
    false_claim: float = Field(default=0.0, description="reported complete, but the goal does not hold")
    failure: float = Field(default=0.0, description="the world ended the episode, goal not reached")
    out_of_turns: float = Field(default=0.0, description="ran out of turns")


@dataclass(frozen=True, config=STRICT)
class AdvantageConfig:
    """Group-relative advantages."""

    normalise_by_std: bool = Field(default=True, description="divide by the group's standard deviation")
    min_group_std: float = Field(default=1e-4, ge=0, description="groups below have no signal and are filtered")


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """The policy-gradient loss."""

    kind: Literal["ppo_clip", "policy_gradient"] = Field(default="ppo_clip", description="objective")
    clip_epsilon: float = Field(default=0.2, gt=0, lt=1, description="PPO's clip range")
    kl_coefficient: float = Field(
        default=0.0, ge=0, description="weight of the KL to the frozen reference; 0: no reference"
    )
    kl_estimator: Literal["k1", "k3"] = Field(default="k3", description="estimator of that KL")
    entropy_coefficient: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    normalisation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        default="token_mean", description="what the summed token losses are divided by"
    )
    constant_length: int = Field(default=256, ge=1, description="divisor per trajectory with normalisation=constant")


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    """AdamW and its schedule."""

    learning_rate: float = Field(default=2e-4, gt=0, description="peak learning rate")
    betas: tuple[Momentum, Momentum] = Field(default=(0.9, 0.95), description="AdamW's two momenta")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    warmup_steps: int = Field(default=2, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(default=0.3, gt=0, description="gradient clipping")
    updates_per_batch: int = Field(default=1, ge=1, description="optimiser steps on each batch")
    micro_batch_tokens: int = Field(default=4096, ge=64, description="token budget of one forward pass")


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    """Evaluation on held-out seeds and templates."""

    every_steps: int = Field(default=5, ge=0, description="steps between evaluations; 0: only at the start and the end")
    episodes: int = Field(default=200, ge=1, description="episodes of one evaluation")
    baseline: bool = Field(default=True, description="evaluate before the first step")
    target_success: float | None = Field(default=None, gt=0, le=1, description="stop early at this success rate")
    patience: int | None = Field(default=None, ge=1, description="evaluations without a new best before stopping")


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """What is kept to resume from."""

    every_steps: int = Field(default=0, ge=0, description="steps between checkpoints; 0: only the best and the last")
    keep: int = Field(default=2, ge=1, description="periodic checkpoints kept")


@dataclass(frozen=True, config=STRICT)
class LoggingConfig:
    """Where metrics go besides the run directory's own files."""

    tensorboard: bool = Field(default=True, description="write event files to tensorboard/")
    wandb: bool = Field(default=False, description="log to Weights & Biases")
    trackio: bool = Field(default=False, description="log to trackio")
    project: Name = Field(default="cua-grpo", description="project name at wandb or trackio")
    save_trajectories: int = Field(default=1, ge=0, description="recorded batches kept (the newest); 0: none")


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """A whole run."""

    backend: Literal["legacy"] = Field(default="legacy", description="legacy: our own synchronous loop")
    experiment: Name = Field(default="default", description="preset: a file of conf/experiment")
    max_steps: int = Field(default=20, ge=1, description="training steps")
    max_minutes: float | None = Field(default=None, gt=0, description="limit on training time, evaluations not counted")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of tasks, sampling and initialisation")
    output_dir: PathText = Field(default="outputs", description="parent of the run directory")
    run_name: Name | None = Field(
        default=None, description="name of the run directory; null: time, backend, experiment, seed"
    )
    resume: PathText | None = Field(default=None, description="checkpoint or run directory to go on from")
    threads: int = Field(default=2, ge=1, description="torch threads on the CPU")
    env: EnvConfig = Field(default_factory=EnvConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    loader: LoaderConfig = Field(default_factory=LoaderConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    advantage: AdvantageConfig = Field(default_factory=AdvantageConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)


def from_mapping(tree: dict[str, object]) -> TrainConfig:
    """Build and validate a `TrainConfig` from a plain nested mapping; absent keys take their defaults.

    Raises `ConfigError` on an unknown key, an illegal value, or a local model or checkpoint path that is not there.
    """
    config = build(TrainConfig, tree)
    check_model_path(config.model.path)
    check_resume_path(config.resume)
    return config
