"""The run as a whole: evaluation, checkpoints, logging, and everything together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainers.config.areal import ArealConfig
from trainers.config.environment import EnvConfig
from trainers.config.learning import AdvantageConfig, LossConfig, OptimConfig, RewardConfig, RolloutConfig
from trainers.config.playing import ReplayConfig, SamplingConfig
from trainers.config.policy import InferenceConfig, LoaderConfig, LoraConfig, ModelConfig
from trainers.config.types import Name, PathText
from trainers.config.validation import STRICT


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

    every_steps: int = Field(default=0, ge=0, description="steps between checkpoints; 0: only by time")
    every_minutes: float = Field(
        default=10.0, ge=0, description="longest time between checkpoints, which a kill may cost; 0: only by steps"
    )
    keep: int = Field(default=2, ge=1, description="periodic checkpoints kept")
    keep_groups: int = Field(
        default=64,
        ge=0,
        description="finished groups kept until a checkpoint covers them, which a kill does not cost then; 0: none",
    )


@dataclass(frozen=True, config=STRICT)
class SchedulerConfig:
    """Who starts worker processes, and on which network they talk."""

    name: Literal["none", "local", "ray", "slurm"] = Field(
        default="none",
        description="phase 3: who starts worker processes; none: this process (or torchrun), else AReaL's scheduler",
    )
    trust_network: bool = Field(
        default=False,
        description="ray, slurm: nobody else reaches the workers, whom AReaL lets run anything for anybody",
    )


@dataclass(frozen=True, config=STRICT)
class LoggingConfig:
    """Where metrics go besides the run directory's own files."""

    tensorboard: bool = Field(default=True, description="write event files to tensorboard/")
    wandb: bool = Field(default=False, description="log to Weights & Biases")
    trackio: bool = Field(default=False, description="log to trackio")
    project: Name = Field(default="cua-grpo", description="project name at wandb or trackio")
    save_trajectories: int = Field(default=1, ge=0, description="recorded batches kept (the newest); 0: none")
    blindness_every_steps: int = Field(
        default=0,
        ge=0,
        description="every n-th step, tell what becomes of last turns without their screenshot; 0: never",
    )
    record_groups: int = Field(
        default=1, ge=0, description="record the episodes of every n-th training group; 1: of all, 0: of none"
    )
    record_evaluations: bool = Field(default=True, description="record the episodes of evaluations")
    screenshots_mb: float = Field(
        default=500.0,
        ge=0,
        description="disk for the screenshots of recorded episodes in MB, the oldest go first; 0: none",
    )
    timeline_mb: float = Field(
        default=20.0,
        ge=0,
        description="disk for each process's rows of what happened when, in MB, the oldest go first; 0: none",
    )


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """A whole run."""

    backend: Literal["legacy", "areal"] = Field(
        default="areal", description="legacy: our own synchronous loop; areal: asynchronous, on AReaL"
    )
    phase: Literal[1, 2, 3] = Field(
        default=3, description="areal: how much of AReaL is used; 1: rollouts, 2: and the model engine, 3: everything"
    )
    experiment: Name = Field(default="default", description="preset: a file of conf/experiment")
    max_steps: int = Field(default=20, ge=1, description="training steps")
    max_minutes: float | None = Field(default=None, gt=0, description="limit on training time, evaluations not counted")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of tasks, sampling and initialisation")
    output_dir: PathText = Field(default="outputs", description="parent of the run directory")
    run_name: Name | None = Field(
        default=None, description="name of the run directory; null: time, backend, experiment, seed"
    )
    resume: PathText | None = Field(
        default=None,
        description="run or checkpoint to go on from; auto: the newest run of this name or experiment",
    )
    n_nodes: int = Field(default=1, ge=1, description="scheduler: machines")
    n_gpus: int = Field(default=0, ge=0, description="scheduler: GPUs of each machine, a process each; 0: on the CPU")
    threads: int = Field(
        default=2,
        ge=1,
        description="torch threads of a process on the CPU; sampling and training at the same time share them",
    )
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig)
    env: EnvConfig = Field(default_factory=EnvConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    loader: LoaderConfig = Field(default_factory=LoaderConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    replay: ReplayConfig = Field(default_factory=ReplayConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    advantage: AdvantageConfig = Field(default_factory=AdvantageConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    areal: ArealConfig = Field(default_factory=ArealConfig)

    @property
    def active_phase(self) -> int | None:
        """The phase of the migration that a run belongs to; None for the legacy backend."""
        return self.phase if self.backend == "areal" else None
