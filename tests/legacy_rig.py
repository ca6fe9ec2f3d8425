"""A trainer on a random model that looks at a coloured square and says one token, with everything a test looks at."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cua_agent.envs.base import Environment
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.inference.base import GenerateRequest
from cua_agent.inference.local import LocalEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Outcome, Trajectory, Turn
from tests.toy_world import SquareEnvironment, toy_task
from trainers.components import Components
from trainers.config import EvalConfig, LoggingConfig, OptimConfig, RolloutConfig, TrainConfig
from trainers.legacy.trainer import CUAGRPOTrainer
from trainers.protocol import Batch, EpisodeSpec, EvalRecord
from trainers.rollouts.replay import SuccessPool
from trainers.rollouts.trajectory_store import load_batch
from trainers.run.metrics import StepMetrics

CONFIG = TrainConfig(
    backend="legacy",
    max_steps=2,
    rollout=RolloutConfig(group_size=4, groups_per_step=2, max_refills=1, concurrency=8),
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=0),
    eval=EvalConfig(every_steps=0, episodes=4),
    logging=LoggingConfig(tensorboard=False),
)
TASKS = [toy_task("left", "a"), toy_task("right", "b")]


@dataclass
class Watcher:
    """A `ProgressReporter` that remembers."""

    steps: list[StepMetrics] = field(default_factory=list)
    evaluations: list[tuple[str, EvalRecord]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def phase(self, name: str, done: int, total: int) -> None: ...

    def step(self, metrics: StepMetrics, max_steps: int) -> None:
        self.steps.append(metrics)

    def evaluation(self, record: EvalRecord, split: str) -> None:
        self.evaluations.append((split, record))

    def message(self, text: str) -> None:
        self.messages.append(text)

    def close(self) -> None: ...


@dataclass
class OneTokenRunner:
    """Shows the screen, samples one token, rewards an even one; `hook` may raise."""

    policy: PolicyModel
    engine: LocalEngine
    reward: Callable[[int], float] = lambda token: float(token % 2 == 0)
    hook: Callable[[EpisodeSpec], None] = lambda _: None
    played: list[EpisodeSpec] = field(default_factory=list)

    async def __call__(self, environment: Environment, spec: EpisodeSpec) -> list[Trajectory]:
        self.played.append(spec)
        self.hook(spec)
        image = np.asarray((await environment.reset(spec.task, spec.seed)).screenshot)
        ids = [5, *[self.policy.special.image_token_id] * self.policy.image_tokens(*image.shape[:2]), 6]
        seed = int.from_bytes(f"{spec.seed}{spec.episode_id}".encode()) % 2**63
        answer = await self.engine.generate(GenerateRequest(spec.episode_id, ids, [image], 1, seed=seed))
        self.engine.release(spec.episode_id)
        reward, n = self.reward(answer.output_ids[0]), len(ids)
        return [
            Trajectory(
                input_ids=np.asarray(ids + answer.output_ids),
                loss_mask=np.asarray([0] * n + [1], np.int32),
                logprobs=np.asarray([0.0] * n + answer.logprobs, np.float32),
                versions=np.asarray([-1] * n + answer.versions, np.int32),
                images=[image],
                reward=reward,
                outcome=Outcome.SUCCESS if reward else Outcome.FAILURE,
                task_id=spec.task.id,
                group_id=spec.group_id,
                episode_id=spec.episode_id,
                seed=spec.seed,
                turns=(Turn("", None, "", 0.0, 0.0),),
            )
        ]


@asynccontextmanager
async def squares() -> AsyncIterator[EnvironmentFactory]:
    async def factory() -> Environment:
        return SquareEnvironment()

    yield factory


@dataclass
class Rig:
    """A trainer and everything a test wants to look at."""

    trainer: CUAGRPOTrainer
    policy: PolicyModel
    engine: LocalEngine
    runner: OneTokenRunner
    watcher: Watcher
    directory: Path

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.policy.trainable_parameters()}

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]

    def batch(self) -> Batch:
        """The recorded batch of the newest step."""
        (path,) = (self.directory / "trajectories").iterdir()
        return load_batch(path)


MakeRig = Callable[..., Rig]


@contextmanager
def rig_maker(weights: Path, directory_of_runs: Path) -> Iterator[MakeRig]:
    """Makes trainers on the model in `weights` and closes them all at the end."""
    rigs: list[Rig] = []

    def make(config: TrainConfig = CONFIG, **runner: Any) -> Rig:
        lora = LoraSpec(r=4) if config.lora.enabled else None
        policy = load_policy(str(weights), lora=lora, keep_reference=config.loss.kl_coefficient > 0)
        runners: list[OneTokenRunner] = []

        def runner_for(engine: LocalEngine) -> OneTokenRunner:
            runners.append(OneTokenRunner(policy, engine, **runner))
            return runners[-1]

        held_out = {"seeds": TASKS, "templates": TASKS[:1]}
        components = Components(policy, squares, runner_for, TASKS, held_out, successes=SuccessPool(config))  # type: ignore[arg-type]
        watcher, directory = Watcher(), directory_of_runs / f"run{len(rigs)}"
        trainer = CUAGRPOTrainer(config, directory, watcher, components)
        rigs.append(Rig(trainer, policy, runners[0].engine, runners[0], watcher, directory))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.trainer.close()
