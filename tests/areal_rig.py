"""A whole run of the asynchronous trainer on a random model and a toy world."""

import asyncio
import json
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cua_agent.models.loaders import load_policy
from tests.legacy_rig import TASKS, OneTokenRunner, Watcher, squares
from trainers.components import Components
from trainers.config import ModelConfig, TrainConfig
from trainers.protocol import EpisodeSpec, Trainer, TrainResult
from trainers.rollouts.replay import SuccessPool


class SlowRunner(OneTokenRunner):
    """Some episodes take long: one in four by `delay_s`."""

    async def __call__(self, environment: Any, spec: EpisodeSpec) -> Any:
        if not spec.episode_id.startswith("eval") and hash(spec.episode_id) % 4 == 0:
            await asyncio.sleep(0.05)
        return await super().__call__(environment, spec)


class StuckRunner(OneTokenRunner):
    """Training episodes take longer than any budget of a test, those of evaluations no time."""

    async def __call__(self, environment: Any, spec: EpisodeSpec) -> Any:
        if not spec.episode_id.startswith("eval"):
            await asyncio.sleep(5.0)
        return await super().__call__(environment, spec)


@dataclass(frozen=True)
class Ran:
    """What a run left."""

    result: TrainResult
    rows: list[dict[str, Any]]
    messages: list[str]
    played: int


def ran(
    weights: Path,
    directory: Path,
    config: TrainConfig,
    *,
    runner: type[OneTokenRunner] = SlowRunner,
    watcher: Watcher | None = None,
    **options: Any,
) -> Ran:
    """Train on the model in `weights`; `played` counts the training episodes."""
    from trainers.areal.trainer import AReaLGRPOTrainer
    from trainers.legacy.trainer import CUAGRPOTrainer

    policy = load_policy(str(weights))
    runners: list[OneTokenRunner] = []

    def runner_for(engine: Any) -> OneTokenRunner:
        runners.append(runner(policy, engine, **options))
        return runners[-1]

    config = replace(config, model=ModelConfig(path=str(weights), freeze_vision=False))
    held_out = {"seeds": TASKS, "templates": TASKS[:1]}
    components = Components(policy, squares, runner_for, TASKS, held_out, successes=SuccessPool(config))  # type: ignore[arg-type]
    watcher = watcher or Watcher()
    make = CUAGRPOTrainer if config.backend == "legacy" else AReaLGRPOTrainer
    trainer: Trainer = make(config, directory, watcher, components)
    with closing(trainer):
        result = trainer.train()
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()] if result.steps else []
    played = sum(not spec.episode_id.startswith("eval") for each in runners for spec in each.played)
    return Ran(result, rows, watcher.messages, played)
