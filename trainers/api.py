"""Training from Python: what `train.py` does, as functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.config import ConfigError, TrainConfig
from trainers.config.compose import load_config
from trainers.distributed.process_group import SINGLE_PROCESS, ProcessGroup

if TYPE_CHECKING:
    from cua_agent.agent import Episode
    from trainers.protocol import Trainer
    from trainers.run.metrics import ProgressReporter

__all__ = ["build_trainer", "load_config", "make_trainer", "play"]


def make_trainer(config: TrainConfig, progress: ProgressReporter | None = None) -> Trainer:
    """The trainer of `config`'s backend and phase, with a new run directory (`config.output_dir`) and at the checkpoint
    that `config.resume` means. `progress` is told how it goes; by default it is printed.

    One process; `close` it at the end. Raises `ConfigError` for whatever cannot be run.
    """
    from trainers.run.compatibility import check_fits
    from trainers.run.directory import create_run_directory, named_after
    from trainers.run.progress import open_progress
    from trainers.run.requirements import check_requirements
    from trainers.run.resuming import described, verified_start

    check_requirements(config)
    start = verified_start(config)
    if start is not None:
        check_fits(start.checkpoint, config)
        config = replace(config, resume=str(start.checkpoint))
    directory = create_run_directory(config, resumed=described(start) if start is not None else None)
    return build_trainer(named_after(config, directory), directory, progress or open_progress(config.max_steps))


def play(*overrides: str) -> Episode:
    """One episode, played as `python -m cua_agent <overrides>` does: `play("task=word/w0", "model=tiny")`. Its turns
    hold the screenshots; `cua_agent.trace.write_trace` makes a page of it.

    Raises `cua_agent.__main__.OptionError`.
    """
    from cua_agent import __main__ as command

    options = command.parse_options(overrides)
    task = command.find_task(options)
    played: list[Episode] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            played.append(asyncio.run(command.play(options, task)))
        except BaseException as error:
            failed.append(error)

    # A notebook has an event loop of its own, which is not to be waited on.
    thread = threading.Thread(target=run, name="episode")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return played[0]


def build_trainer(
    config: TrainConfig,
    directory: Path,
    progress: ProgressReporter,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> Trainer:
    """The backend's trainer for the run in `directory`. Raises `ConfigError` as `loading` does."""
    with loading(config):
        if config.backend == "areal":
            from trainers.areal.trainer import AReaLGRPOTrainer

            return AReaLGRPOTrainer(config, directory, progress, process_group=process_group)
        from trainers.legacy.trainer import CUAGRPOTrainer

        return CUAGRPOTrainer(config, directory, progress)


@contextmanager
def loading(config: TrainConfig) -> Iterator[None]:
    """Inside, what `config` names is loaded: what the user got wrong about model, checkpoint, browser or server becomes
    a `ConfigError`."""
    _rewrite_transformers(config)
    import torch

    from cua_agent.envs.base import WorldUnavailable
    from cua_agent.inference.vllm.errors import ServerMismatch
    from cua_agent.models.errors import ModelError
    from trainers.run.checkpoint_files import CheckpointError

    torch.set_num_threads(config.threads)
    try:
        yield
    except (CheckpointError, ModelError, ServerMismatch, WorldUnavailable) as error:
        raise ConfigError(str(error)) from error


def _rewrite_transformers(config: TrainConfig) -> None:
    """Unsloth wants to be imported before what it rewrites."""
    if config.loader.name != "unsloth":
        return
    from cua_agent.models.errors import ModelError
    from cua_agent.models.unsloth import import_unsloth

    try:
        import_unsloth(config.loader.device)
    except ModelError as error:
        raise ConfigError(str(error)) from error
