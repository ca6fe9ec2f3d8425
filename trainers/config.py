"""Typed configuration: what Hydra's merged tree becomes before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LatencyConfig:
    """Delay that every action on `pocket` costs, in seconds: stands for a cloud box's round trip."""

    kind: str = "none"  # none | constant | lognormal
    mean_s: float = 0.0
    sigma: float = 1.0  # of the underlying normal; 1.0 gives the heavy tail of device farms


@dataclass(frozen=True)
class EnvConfig:
    name: str = "pocket"  # pocket | miniwob
    layout: str = "shuffled"  # pocket: fixed | themed | shuffled
    scale: int = 1  # pocket: screenshot pixels per logical pixel
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    tasks: tuple[str, ...] = ()  # categories to train and evaluate on; empty: the default mix
    browser_path: str = "/usr/bin/chromium-headless-shell"  # miniwob


@dataclass(frozen=True)
class ModelConfig:
    path: str = "tiny"  # tiny | a local path | a hub id
    dtype: str = "float32"  # float32 | bfloat16
    grounding: str = "target"  # target | coordinates
    prompt: str = "brief"  # brief | full: how much of the tool schema the system prompt spells out
    max_length: int = 2048  # tokens of one row


@dataclass(frozen=True)
class LoaderConfig:
    name: str = "peft"  # peft (transformers + peft); unsloth comes with its own issue
    device: str = "cpu"
    device_map: str | None = None
    attn_implementation: str = "sdpa"


@dataclass(frozen=True)
class LoraConfig:
    enabled: bool = False
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str = (
        r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    )


@dataclass(frozen=True)
class InferenceConfig:
    name: str = "local"
    max_batch: int = 64  # episodes decoded together


@dataclass(frozen=True)
class RolloutConfig:
    group_size: int = 8
    groups_per_step: int = 8
    max_turns: int = 12  # upper bound over every task's own max_steps
    max_new_tokens: int = 48
    concurrency: int = 64  # episodes at a time; 1 is one after the other
    temperature: float = 1.0
    max_staleness: int = 0
    context: str = "full"  # full | last_k
    last_k: int = 3  # screenshots kept with context=last_k
    max_refills: int = 2  # further rounds of groups when too many gave no signal
    infra_retries: int = 3  # replacements of one episode lost to infrastructure


@dataclass(frozen=True)
class RewardConfig:
    success: float = 1.0
    false_claim: float = 0.0
    failure: float = 0.0
    out_of_turns: float = 0.0


@dataclass(frozen=True)
class AdvantageConfig:
    normalise_by_std: bool = True
    min_group_std: float = 1e-4  # groups below have no signal and are filtered


@dataclass(frozen=True)
class LossConfig:
    kind: str = "ppo_clip"  # ppo_clip | policy_gradient
    clip_epsilon: float = 0.2
    kl_coefficient: float = 0.0
    kl_estimator: str = "k3"  # k1 | k3
    entropy_coefficient: float = 0.0
    normalisation: str = "token_mean"  # token_mean | sequence_mean | constant
    constant_length: int = 256  # divisor per trajectory with normalisation=constant


@dataclass(frozen=True)
class OptimConfig:
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 2
    max_grad_norm: float = 1.0
    updates_per_batch: int = 1
    micro_batch_tokens: int = 8192


@dataclass(frozen=True)
class EvalConfig:
    every_steps: int = 10
    episodes: int = 200
    baseline: bool = True
    target_success: float | None = None
    patience: int | None = None  # evaluations without a new best before stopping


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 0  # 0: only the best and the last
    keep: int = 2


@dataclass(frozen=True)
class LoggingConfig:
    tensorboard: bool = True
    wandb: bool = False
    trackio: bool = False
    project: str = "cua-grpo"
    save_trajectories: int = 1  # recorded batches kept (the newest); 0: none


@dataclass(frozen=True)
class TrainConfig:
    backend: str = "legacy"
    experiment: str = "default"
    max_steps: int = 40
    max_minutes: float | None = None  # of training; evaluations not counted
    seed: int = 0
    output_dir: str = "outputs"
    run_name: str | None = None
    resume: str | None = None
    threads: int = 2  # torch intra-op threads on the CPU
    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line naming key, value and what is allowed."""


def from_mapping(tree: dict[str, Any]) -> TrainConfig:
    """Build and validate a `TrainConfig`; raises `ConfigError`."""
    raise NotImplementedError
