"""Going on with a run: the checkpoint it means, the newest run for `resume=auto`, and what is carried over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from trainers.config import ConfigError, TrainConfig
from trainers.config.overrides import key_of, typed_text
from trainers.config.saved import ABOUT, CONFIG, practical_keys, read_about, read_saved, run_directory_of, settings_of
from trainers.config.validation import AUTO
from trainers.protocol import TrainerState
from trainers.run.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    newest_intact,
    newest_step,
    read_state,
    verify_checkpoint,
)
from trainers.run.directory import display_path, path_to_type
from trainers.run.lineage import UNKNOWN, lineage_of, started
from trainers.run.old_checkpoint import is_old, read_old_state
from trainers.run.pruning import CONTINUES
from trainers.run.stopping import out_of_budget

_MEASURED = ("env.", "model.", "eval.episodes", "rollout.context", "rollout.last_k", "rollout.max_turns",
             "rollout.max_new_tokens", "rollout.temperature", "rollout.greedy")  # fmt: skip
"""Keys, and beginnings of keys, on which it depends what an evaluation measures."""
_SAME_WEIGHTS = "model.path"  # wherever they lie
_ENDS = ("max_steps", "max_minutes", "eval.target_success", "eval.patience")


@dataclass(frozen=True)
class StartingPoint:
    """Where a resumed run begins: a checkpoint, the run directory it is in (None for one on its own), and what has to
    be said about the choice."""

    checkpoint: Path
    state: TrainerState
    directory: Path | None
    notes: tuple[str, ...] = ()
    newest: Path | None = None
    """The run directory that was asked for: `directory`, or a later part of its lineage without a checkpoint."""

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, at this checkpoint or later."""
        return self.directory is not None and (self.directory / "summary.json").is_file()


def starting_point(resume: str) -> StartingPoint:
    """The checkpoint `resume` itself, or the newest intact one of a run directory; of its parent's, when the run ended
    before it wrote its own.

    Raises `CheckpointError` when there is none.
    """
    directory = Path(resume).expanduser()
    if is_old(directory):
        return StartingPoint(directory, _state_of(directory), None)
    if (directory / MANIFEST).is_file():
        return StartingPoint(directory, read_state(directory), run_directory_of(directory))
    notes: list[str] = []
    for part in reversed(lineage_of(directory).parts):
        # What was carried over from the parent is older than what the run went on from.
        least = part.begins if part.begins < UNKNOWN else 0
        newest, passed_over = newest_intact(part.directory / "checkpoints", at_least=least)
        notes += [f"passed over: {why}" for why in passed_over]
        if newest is not None:
            owner = run_directory_of(newest)
            return StartingPoint(newest, read_state(newest), owner, tuple(notes), directory)
        notes.append(f"{display_path(part.directory)} has no checkpoint of its own")
    if (single := _checkpoint_on_its_own(part.directory)) is not None:
        return StartingPoint(single, _state_of(single), None, tuple(notes), directory)
    if (later := _went_on(directory)) is not None:
        raise CheckpointError(f"resume={resume!r} has no checkpoint any more: {display_path(later)} went on with it")
    raise CheckpointError(f"resume={resume!r} is neither a checkpoint nor a run directory with an intact one")


def _went_on(directory: Path) -> Path | None:
    """The newest run beside `directory` that has it in its lineage; None where there is none."""
    for other in _newest_first(directory.absolute().parent):
        parts = [part.directory.resolve() for part in lineage_of(other).parts[:-1]]
        if directory.resolve() in parts:
            return other
    return None


def _checkpoint_on_its_own(directory: Path) -> Path | None:
    """The checkpoint outside of any run directory that the run in `directory` went on from; None where there is
    none."""
    named = read_about(directory).get("resumed_from")
    checkpoint = Path(named) if isinstance(named, str) else None
    usable = checkpoint is not None and ((checkpoint / MANIFEST).is_file() or is_old(checkpoint))
    return checkpoint if usable else None


def _state_of(checkpoint: Path) -> TrainerState:
    return read_old_state(checkpoint) if is_old(checkpoint) else read_state(checkpoint)


def find_checkpoint(resume: str) -> Path:
    """The checkpoint that `resume` means. Raises `CheckpointError` when there is none."""
    return starting_point(resume).checkpoint


def verified_start(config: TrainConfig) -> StartingPoint | None:
    """Where the run begins, its files compared with their checksums; None for a new run. Raises `ConfigError`."""
    if config.resume is None:
        return None
    try:
        start = starting_point(config.resume)
        chosen = start.checkpoint != Path(config.resume).expanduser()  # of a run directory, and intact
        if not chosen and not is_old(start.checkpoint):
            verify_checkpoint(start.checkpoint)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    return start


class Settled(NamedTuple):
    """What `resume=auto` came to: `overrides` with the run that was found in the place of `auto`, or without `resume`;
    what there is to `say` about it; and the newest run that died before its first checkpoint, when it is begun
    again."""

    overrides: list[str]
    say: list[str]
    begun_again: Path | None = None


def settle_auto(config: TrainConfig, overrides: Sequence[str]) -> Settled:
    """Find the newest run in `output_dir` that can be gone on with, of the same `run_name` (its own or a parent's), or
    of the same experiment (and seed, where one is typed) when no name is given."""
    kept = [override for override in overrides if key_of(override) != "resume"]
    wanted = f"run_name={config.run_name}" if config.run_name else f"experiment={config.experiment}"
    seed = None if config.run_name or "seed" not in map(key_of, overrides) else config.seed
    said: list[str] = []
    dead: list[Path] = []
    for directory in _newest_first(Path(config.output_dir).expanduser()):
        if directory in dead or not _matches(directory, config, seed):
            continue
        try:
            start = starting_point(str(directory))
        except CheckpointError:
            said.append(f"resume={AUTO}: passed over {display_path(directory)}: it has no checkpoint")
            dead += [part.directory for part in reversed(lineage_of(directory).parts)]
            continue
        said.append(f"resume={AUTO}: {display_path(directory)}, step {start.state.step}")
        return Settled([*kept, typed_text("resume", path_to_type(directory))], said)
    said.append(f"resume={AUTO}: no run of {wanted} in {config.output_dir} to go on with; a new one begins")
    return Settled(kept, said, next(iter(dead), None))


def saved_step(config: TrainConfig) -> int:
    """The step of the newest checkpoint, whole or not, that a run of `run_name` has in `output_dir`; -1 without one."""
    directories = _newest_first(Path(config.output_dir).expanduser())
    steps = (newest_step(each / "checkpoints") for each in directories if _matches(each, config, None))
    return max(steps, default=-1)


def nothing_left(config: TrainConfig, start: StartingPoint) -> bool:
    """Whether a run has come to its end, and `config` gives it no more to do."""
    if not start.finished or start.directory is None:
        return False
    saved, present = read_saved(start.directory).settings, settings_of(config)
    return out_of_budget(start.state, config) is not None or all(saved[key] == present[key] for key in _ENDS)


def extended(config: TrainConfig, start: StartingPoint, typed: Sequence[str]) -> tuple[TrainConfig, list[str]]:
    """`config` with room for training: a budget that a finished run has used up, and that is not `typed` anew, is given
    once more; and what there is to say about it."""
    if not start.finished:
        return config, []
    said = []
    keys = set(map(key_of, typed))
    if "max_steps" not in keys and start.state.step >= config.max_steps:
        longer = start.state.step + config.max_steps
        said.append(f"max_steps: {config.max_steps} -> {longer} (the run has taken its {start.state.step} steps)")
        config = replace(config, max_steps=longer)
    spent = (start.state.rollout_s + start.state.train_s) / 60
    if config.max_minutes is not None and "max_minutes" not in keys and spent >= config.max_minutes:
        longer_minutes = spent + config.max_minutes
        said.append(f"max_minutes: {config.max_minutes:g} -> {longer_minutes:.1f} (the run has used its minutes)")
        config = replace(config, max_minutes=longer_minutes)
    return config, said


def measures_changed(config: TrainConfig, start: StartingPoint) -> list[str]:
    """The keys that make an evaluation measure something else than in the run that goes on, a line each."""
    if start.directory is None:
        return []
    try:
        saved = read_saved(start.directory).settings
    except ConfigError:
        return []
    present = settings_of(config)
    practical = practical_keys(config) | {_SAME_WEIGHTS}
    measured = [key for key in present if key.startswith(_MEASURED) and key not in practical]
    return [key for key in measured if key in saved and saved[key] != present[key]]


def carry_best(start: StartingPoint, target: Path) -> Path | None:
    """Make `target` the best checkpoint of the lineage, as links where that can be; returns where it was found, None
    when it is nowhere."""
    best = start.state.best_step
    source = next((path for path in _candidates(start) if _is_at(path, best)), None) if best is not None else None
    if source is None or target.exists():
        return source
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link)
    partial.rename(target)
    return source


def _candidates(start: StartingPoint) -> Iterator[Path]:
    yield start.checkpoint
    if start.directory is not None:
        for part in reversed(lineage_of(start.directory).parts):
            yield part.directory / "checkpoints" / "best"
            yield from sorted((part.directory / "checkpoints").glob("step_*"))


def _is_at(path: Path, step: int) -> bool:
    try:
        return (path / MANIFEST).is_file() and read_state(path).step == step
    except CheckpointError:
        return False


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _newest_first(output_dir: Path) -> list[Path]:
    directories = [file.parent for file in output_dir.glob(f"*/{CONFIG}") if (file.parent / ABOUT).is_file()]
    return sorted(directories, key=lambda directory: (started(directory), _modified(directory)), reverse=True)


def _modified(directory: Path) -> float:
    return (directory / ABOUT).stat().st_mtime


def _matches(directory: Path, config: TrainConfig, seed: int | None) -> bool:
    try:
        saved = read_saved(directory).settings
    except ConfigError:
        return False
    if config.run_name is None:
        return saved["experiment"] == config.experiment and seed in (None, saved["seed"])
    names = {str(_saved_name(part.directory)) for part in lineage_of(directory).parts}
    return config.run_name in names


def _saved_name(directory: Path) -> object:
    try:
        return read_saved(directory).settings["run_name"]
    except ConfigError:
        return None


def described(start: StartingPoint, *, continues: bool = False) -> dict[str, object]:
    """What `run.json` keeps of where a run began, and whether it takes the place of the former one."""
    parent = start.newest or start.directory or start.checkpoint
    return {"resumed_from": str(parent.absolute()), "resumed_step": start.state.step, CONTINUES: continues}


def begun_again(directory: Path) -> dict[str, object]:
    """What `run.json` keeps when the run in `directory` left nothing to go on from, and this one takes its place."""
    return {"resumed_from": str(directory.absolute()), "resumed_step": 0, CONTINUES: True}
