"""From a configuration to a cloned model in a directory."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cua_agent.cloning.clone import CloneSchedule, clone
from cua_agent.cloning.demonstrations import Noise
from cua_agent.cloning.examples import ExampleStream, Mix, RecordedStream
from cua_agent.models.policy import PolicyModel
from trainers.clone.options import ORACLE, CloneConfig
from trainers.clone.recorded import recorded_examples
from trainers.clone.teacher import teacher_examples
from trainers.components import agent_config, build_policy, check_context
from trainers.config import ConfigError, TrainConfig
from trainers.grpo.master_weights import MasterWeights
from trainers.rollouts.task_sampler import training_tasks
from trainers.run.checkpoint import save_weights, try_saving

OnStep = Callable[[int, float, float], None]
"""Called after every step with its number (from 1), its loss, and how far training has come, 0..1."""


@dataclass(frozen=True)
class Cloned:
    """What cloning took and came to: `loss` is the mean over the last tenth of the steps, in nats a token."""

    steps: int
    examples: int
    seconds: float
    loss: float


def train_clone(options: CloneConfig, config: TrainConfig, out: Path, on_step: OnStep) -> Cloned:
    """Clone, and leave the model in the new directory `out`. Raises `ConfigError`; `FloatingPointError` when it
    diverges."""
    from cua_agent.models.tiny import start_afresh

    check_context(config, training_tasks(config.env))
    policy = build_policy(config)
    if options.fresh:
        start_afresh(policy, config.seed)
    try_saving(out.parent, policy)
    stream = _stream(options, config, policy)
    masters = MasterWeights(policy)
    minutes = math.inf if options.minutes is None else options.minutes
    schedule = CloneSchedule(options.steps, options.learning_rate, max(options.warmup, 1), minutes)
    started, losses = time.monotonic(), list[float]()

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        on_step(step + 1, loss, schedule.progress(step + 1, time.monotonic() - started))

    parameters = list(masters.parameters.values())
    clone(policy, iter(_loader(stream, options)), schedule, report, parameters, masters.publish)
    seconds = time.monotonic() - started
    with masters.in_model():
        _save(out, policy)
    last = losses[-max(1, len(losses) // 10) :]
    return Cloned(len(losses), len(losses) * options.batch, round(seconds, 1), sum(last) / len(last))


def check_source(options: CloneConfig, config: TrainConfig) -> None:
    """Raise `ConfigError` for a source that cannot teach this model in this world."""
    if options.teacher is not None:
        if options.source != (ORACLE,):
            raise ConfigError(
                f"teacher={options.teacher} with source={list(options.source)}: one of them; leave it out"
            )
        if config.model.observation == "text":
            raise ConfigError(f"teacher={options.teacher}: screens are kept as pixels; allowed: source=oracle")
    elif ORACLE in options.source:
        if len(options.source) > 1:
            raise ConfigError(f"source={list(options.source)}: the oracle plays alone; allowed: oracle, or runs")
        if config.env.name != "pocket":
            raise ConfigError(f"source=oracle with env={config.env.name}: the expert plays env=pocket; allowed: runs")
    elif config.model.observation == "text":
        raise ConfigError(f"source={list(options.source)}: screens are recorded as pixels; allowed: source=oracle")
    if options.fresh and config.lora.enabled:
        raise ConfigError("fresh=true with lora.enabled=true: random weights are trained whole; set one of them false")


def _stream(options: CloneConfig, config: TrainConfig, policy: PolicyModel) -> Any:
    agent = agent_config(config)
    if options.teacher is not None:
        examples = teacher_examples(options, config, policy, agent)
        return RecordedStream(policy, examples, options.batch, config.seed)
    if options.source != (ORACLE,):
        examples = recorded_examples(options.source, policy, agent, config.env.tasks)
        return RecordedStream(policy, examples, options.batch, config.seed)
    world: Any = config.env.world
    seen = agent.observation == "screenshot"
    mix = Mix(
        options.batch,
        Noise(options.explore, options.mistakes),
        options.descriptions if seen else 0.0,
        tasks=tuple(training_tasks(config.env)),
        agent=agent,
        layout=world.layout,
        scale=world.scale,
    )
    return ExampleStream(policy, mix, config.seed)


def _loader(stream: Any, options: CloneConfig) -> Any:
    from torch.utils.data import DataLoader

    ahead = 4 if options.workers else None
    return DataLoader(stream, batch_size=None, num_workers=options.workers, prefetch_factor=ahead)


def _save(out: Path, policy: PolicyModel) -> None:
    """Write the directory whole or not at all."""
    partial = out.with_name(f".{out.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_weights(partial, policy)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def next_command(typed: Sequence[str], out: str, overrides: Sequence[str], presets: Sequence[str]) -> list[str]:
    """The words that train the clone further: those of `overrides` that are keys of `train.py`, with the new model.
    `presets` are the models that have a name."""
    from trainers.config.overrides import key_of, typed_text

    kept = [
        override
        for override in overrides
        if key_of(override) != "model.path" and (key_of(override) != "model" or override.partition("=")[2] in presets)
    ]
    return [*typed, *kept, typed_text("model.path", out)]
