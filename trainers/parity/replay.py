"""Replay: one backend, one recorded case, through the `Trainer` protocol alone."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file

from cua_agent.envs.base import Environment, EnvironmentFailure
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Trajectory
from trainers.components import Components, build_components
from trainers.config import TrainConfig
from trainers.grpo.advantages import batch_of
from trainers.parity.errors import distance
from trainers.parity.evidence import Arrays, Evidence, Figures
from trainers.parity.optimiser import counters, moments, settings
from trainers.parity.rows import areal_rows, loss_scale, our_rows
from trainers.protocol import Batch, EvalRecord, StepRecord, Trainer
from trainers.run.metrics import ProgressReporter, StepMetrics

if TYPE_CHECKING:
    from trainers.areal.trainer import AReaLGRPOTrainer

Side = Literal["legacy", "phase1", "phase2", "phase3", "legacy-float32", "legacy-alone"]
"""The last two are twins of the legacy side, see `trainers.parity.rounding`."""
SIDES: tuple[Side, ...] = ("legacy", "phase1", "phase2", "phase3")
REFERENCE: Side = "legacy"

PartsFor = Callable[[TrainConfig], Components]


class Silent:
    """A `ProgressReporter` for a replay, which is itself a step of something shown."""

    def phase(self, name: str, done: int, total: int) -> None: ...

    def step(self, metrics: StepMetrics, max_steps: int) -> None: ...

    def evaluation(self, record: EvalRecord, split: str) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


def on_side(config: TrainConfig, side: Side) -> TrainConfig:
    """The configuration of a side; rollouts are synchronous in effect on all of them."""
    rollout = replace(config.rollout, max_staleness=0)
    if side.startswith("legacy"):
        return replace(config, backend="legacy", rollout=rollout)
    phase: Any = int(side.removeprefix("phase"))
    return replace(config, backend="areal", phase=phase, rollout=rollout)


@dataclass(frozen=True)
class Opened:
    """A trainer and the components it is made of."""

    trainer: Trainer
    components: Components


@contextmanager
def opened(
    config: TrainConfig,
    components: Components,
    directory: Path | None = None,
    progress: ProgressReporter | None = None,
) -> Iterator[Opened]:
    """The trainer that `config` names, in the run directory `directory` (None: a temporary one)."""
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as temporary:
        trainer = _trainer(config, directory or Path(temporary), progress or Silent(), components)
        try:
            yield Opened(trainer, components)
        finally:
            trainer.close()


def replay(
    config: TrainConfig,
    start: Path,
    recorded: Sequence[Sequence[Trajectory]],
    parts_for: PartsFor = build_components,
    *,
    broken_after: int = 0,
) -> Evidence:
    """Loss and gradients of the first of several `recorded` batches at the weights of the checkpoint `start`, and what
    became of them after as many updates. After `broken_after` of these (0: never) the trainer is saved and closed, and
    a fresh one goes on."""
    batches = [batch_of(rows, config.advantage) for rows in recorded]
    updates = [batch for batch in batches for _ in range(config.optim.updates_per_batch)][: len(batches)]

    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory)
        with playing_nothing(config, parts_for) as side:
            side.trainer.load(start)
            side.trainer.save(saved / "before")
            before = saved_weights(saved / "before", side.components.policy)
            rows = _rows(side, batches[0], config)
            record = side.trainer.loss_and_gradients(batches[0])
            reports = [side.trainer.update(batch) for batch in updates[: broken_after or None]]
            side.trainer.save(saved / "after")
        if broken_after:
            with playing_nothing(config, parts_for) as side:
                side.trainer.load(saved / "after")
                reports += [side.trainer.update(batch) for batch in updates[broken_after:]]
                side.trainer.save(saved / "after")
        weights = saved_weights(saved / "after", side.components.policy)
        figures = Figures(
            loss=record.metrics["loss"],
            scale=loss_scale(batches[0], config),
            metrics={name: value for name, value in record.metrics.items() if name != "loss"},
            settings={f"{key} {when}": v for when in ("before", "after") for key, v in settings(saved / when).items()},
            updates={**_by_update(reports), **counters(saved / "after")},
            moved=distance(before, weights).relative,
        )
        gradients = {name: gradient.numpy() for name, gradient in record.gradients.items()}
        return Evidence(figures, rows, gradients, weights, moments(saved / "after"))


def playing_nothing(config: TrainConfig, parts_for: PartsFor) -> AbstractContextManager[Opened]:
    """A fresh trainer of `config` that plays nothing: batches are given to it."""
    return opened(config, replace(parts_for(config), environments=nowhere))


def _by_update(reports: Sequence[StepRecord]) -> dict[str, float]:
    return {
        f"{number}/{name}": value
        for number, report in enumerate(reports, start=1)
        for name, value in {**report.metrics, "skipped": float(report.skipped)}.items()
    }


def saved_weights(checkpoint: Path, policy: PolicyModel) -> Arrays:
    """What is trained as it stands in a checkpoint, in float32: a model in bfloat16 holds rounded weights only. By
    parameter name, or by peft's names of an adapter."""
    trained = {name for name, _ in policy.trainable_parameters()}
    saved = {name: w for file in sorted(checkpoint.glob("*.safetensors")) for name, w in load_file(file).items()}
    return {name: w.float().numpy() for name, w in saved.items() if policy.has_adapter or name in trained}


def _trainer(config: TrainConfig, directory: Path, progress: ProgressReporter, components: Components) -> Trainer:
    if config.backend == "areal":
        from trainers.areal.trainer import AReaLGRPOTrainer

        return AReaLGRPOTrainer(config, directory, progress, components)
    from trainers.legacy.trainer import CUAGRPOTrainer

    return CUAGRPOTrainer(config, directory, progress, components)


def _rows(side: Opened, batch: Batch, config: TrainConfig) -> Arrays:
    if config.active_phase in (None, 1):
        return our_rows(side.components.policy, batch, config)
    trainer: AReaLGRPOTrainer = side.trainer  # type: ignore[assignment]
    return areal_rows(batch, trainer.tensors(batch), versions_shifted=config.active_phase == 2)


@asynccontextmanager
async def nowhere() -> AsyncIterator[EnvironmentFactory]:
    """A world that cannot be entered: nothing is played while batches are replayed."""

    async def factory() -> Environment:
        raise EnvironmentFailure("nothing is played here")

    yield factory
