"""How a run begins: from nothing, from a checkpoint, or in the place of one that died early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.command.process import say
from trainers.config import TrainConfig
from trainers.config.compose import Composition, compose_run
from trainers.config.validation import AUTO

if TYPE_CHECKING:
    from trainers.distributed.process_group import ProcessGroup


@dataclass(frozen=True)
class Start:
    """How a run begins: by itself with `resume=auto`, and in the place of one that died before its first checkpoint."""

    auto: bool = False
    begun_again: Path | None = None


def compose(overrides: Sequence[str]) -> tuple[Composition, Start]:
    """The configuration, once it is known which run `resume=auto` means."""
    composition = compose_run(overrides)
    if composition.config.resume != AUTO:
        return composition, Start()
    from trainers.run.resuming import settle_auto

    settled = settle_auto(composition.config, overrides)
    found = compose_run(settled.overrides)
    return replace(found, notes=(*settled.say, *found.notes)), Start(True, settled.begun_again)


def begin(
    composition: Composition, begins: Start, overrides: Sequence[str], process_group: ProcessGroup
) -> tuple[TrainConfig, Path, list[str]] | None:
    """The settled configuration, the run's new directory, and what there is to say; None when nothing is left to do."""
    from trainers.run.compatibility import check_fits
    from trainers.run.directory import create_run_directory, display_path, named_after
    from trainers.run.leftovers import sweep_lineage
    from trainers.run.old_checkpoint import is_old, with_adapter_of
    from trainers.run.resuming import begun_again, described, extended, nothing_left, verified_start

    config, said = composition.config, [*composition.notes, *composition.changes]
    former = Path(config.resume).expanduser() if config.resume is not None else begins.begun_again
    if former is not None:
        (swept, *_) = process_group.run_on_all(lambda: sweep_lineage(former) if process_group.rank == 0 else [])
        said += swept
    resumed = begun_again(begins.begun_again) if begins.begun_again is not None else None
    start = verified_start(config)
    if start is not None:
        if is_old(start.checkpoint):
            config, changed = with_adapter_of(config, start.checkpoint)
            said += changed
        check_fits(start.checkpoint, config)
        if begins.auto and nothing_left(config, start):
            say(f"{display_path(start.directory or start.checkpoint)} has come to its end: nothing is left to do")
            return None
        config, more = extended(config, start, overrides)
        said += [*start.notes, *more]
        resumed = described(start, continues=begins.auto)
    (directory, *_) = process_group.run_on_all(
        lambda: (
            create_run_directory(config, presets=composition.presets, resumed=resumed)
            if process_group.rank == 0
            else Path()
        )
    )
    config = named_after(config, directory)
    if start is not None:
        config = replace(config, resume=str(start.checkpoint))
    return config, directory, said
