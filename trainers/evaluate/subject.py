"""What is evaluated: weights, and the configuration under which they play."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cua_agent.models.export import ExportError, find_weights
from trainers.config import ConfigError, LoggingConfig, TrainConfig
from trainers.config.compose import load_config
from trainers.config.overrides import key_of, typed_text
from trainers.config.saved import run_directory_of
from trainers.run.checkpoint_files import MANIFEST, CheckpointError, read_state, verify_checkpoint
from trainers.run.compatibility import check_fits
from trainers.run.directory import display_path


@dataclass(frozen=True)
class Subject:
    """A policy to evaluate. `checkpoint` holds its weights and `step` their training step; both are None for a model
    that `config.model.path` names. `run` is the run directory that it comes from, if any."""

    name: str
    config: TrainConfig
    checkpoint: Path | None = None
    step: int | None = None
    run: Path | None = None


def find_subject(key: str, named: str, overrides: Sequence[str]) -> Subject:
    """What `key=named` of the command line means; `overrides` are keys of `train.py`. A checkpoint plays as its run
    did. Raises `ConfigError`."""
    for override in overrides:
        if key_of(override) == "resume":
            raise ConfigError(f"{override}: {key} says what is evaluated")
    directory = Path(named).expanduser()
    try:
        weights = find_weights(directory) if directory.is_dir() else None
        if weights is None or not (weights / MANIFEST).is_file():
            model = named if weights is None else str(weights)
            config = load_config([*overrides, typed_text("model.path", model)])
            return model_subject(model, config)
        verify_checkpoint(weights)
        step = read_state(weights).step
    except (ExportError, CheckpointError) as error:
        raise ConfigError(str(error).replace("checkpoint=", f"{key}=", 1)) from error
    config = _for_playing(load_config([typed_text("resume", str(weights)), *overrides]))
    check_fits(weights, config)
    return Subject(str(display_path(weights)), config, weights, step, run_directory_of(weights))


def model_subject(path: str, config: TrainConfig) -> Subject:
    """The model at `path`, played as `config` says."""
    playing = _for_playing(config)
    return Subject(path, replace(playing, model=replace(playing.model, path=path)))


def measured_alike(subject: Subject, reference: Subject) -> Subject:
    """`subject` in the world of `reference`, and with its sampling and turns; model and prompts stay its own."""
    ours, theirs = subject.config, reference.config
    rollout = replace(
        ours.rollout,
        max_turns=theirs.rollout.max_turns,
        temperature=theirs.rollout.temperature,
        greedy=theirs.rollout.greedy,
    )
    return replace(subject, config=replace(ours, env=theirs.env, eval=theirs.eval, rollout=rollout))


def _for_playing(config: TrainConfig) -> TrainConfig:
    """Without what only training needs: trackers, and a copy of the weights as reference."""
    logging = LoggingConfig(tensorboard=False)
    return replace(config, resume=None, logging=logging, loss=replace(config.loss, kl_coefficient=0.0))
