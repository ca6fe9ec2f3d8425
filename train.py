"""Train a computer-use agent: python train.py [key=value ...]; --help lists the keys."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cua_agent.secrets import mask_text, masked_output
from trainers.config import ConfigError, TrainConfig
from trainers.config.compose import Composition, compose_run
from trainers.config.presets import OPTION, joined_options, split_options
from trainers.config.sweeps import runs_of
from trainers.config.validation import AUTO, BUILT_IN_MODELS

if TYPE_CHECKING:
    from trainers.distributed.process_group import ProcessGroup
    from trainers.protocol import TrainResult

DONE, FAILED, BAD_CONFIGURATION, INTERRUPTED = 0, 1, 2, 130
SHOW, SWEEP = "--config", ("-m", "--multirun")
_PROCESS_0_ENDS_S = 60.0


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"--help", "-h"} & set(arguments):
        from trainers.config.reference import help_text

        print(help_text())
        return DONE
    try:
        arguments = joined_options(arguments)
        options = [argument for argument in split_options(arguments)[1] if argument.startswith("-")]
        if unknown := [option for option in options if option not in (SHOW, *SWEEP)]:
            raise ConfigError(f"{unknown[0]}: unknown option; allowed: --help, {SHOW}, -m, {OPTION} <dir>, key=value")
        overrides = [argument for argument in arguments if argument not in options]
        if set(options) & set(SWEEP):
            return _sweep(overrides)
        composition, start = _compose(overrides)
        config = composition.config
        if options:
            return _show(config)
        _prepare_process(config)
        from trainers.distributed.torchrun import process_group_of_environment
        from trainers.run.requirements import check_requirements

        check_requirements(config)
        with process_group_of_environment(config) as process_group:
            return _run(composition, start, overrides, process_group)
    except ConfigError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED


def _sweep(overrides: Sequence[str]) -> int:
    """A run for every combination of values, one after the other, each in a process of its own; all of them are checked
    before the first begins."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("-m under a launcher: a launcher runs one configuration; allowed: -m without torchrun")
    from trainers.config.overrides import parse_override

    named = [parse_override(each) for each in overrides if each.startswith("output_dir=")]
    runs = runs_of(overrides, str(named[-1][1]) if named else TrainConfig().output_dir)
    for run in runs:
        compose_run(run)
    failed = 0
    for number, run in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {run[-1]}", flush=True)
        status = _run_apart([sys.executable, __file__, *run])
        if status == INTERRUPTED:
            return INTERRUPTED
        failed += status != DONE
    print(f"{len(runs) - failed} of {len(runs)} runs are done: {runs[0][-2]}")
    return FAILED if failed else DONE


def _run_apart(command: Sequence[str]) -> int:
    """The exit status of a command in a session of its own: Ctrl-C reaches it through us, once, and it gets time to
    save."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        return INTERRUPTED


@dataclass(frozen=True)
class _Start:
    """How a run begins: by itself with `resume=auto`, and in the place of one that died before its first checkpoint."""

    auto: bool = False
    begun_again: Path | None = None


def _compose(overrides: Sequence[str]) -> tuple[Composition, _Start]:
    """The configuration, once it is known which run `resume=auto` means."""
    composition = compose_run(overrides)
    if composition.config.resume != AUTO:
        return composition, _Start()
    from trainers.run.resuming import settle_auto

    settled = settle_auto(composition.config, overrides)
    found = compose_run(settled.overrides)
    return replace(found, notes=(*settled.say, *found.notes)), _Start(True, settled.begun_again)


def _say(message: str) -> None:
    """On standard error; of several processes that a launcher started, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


def _show(config: TrainConfig) -> int:
    from trainers.run.directory import masked_config, to_yaml

    print(to_yaml(masked_config(config)), end="")
    return DONE


def _refuse(error: ConfigError) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    _say(f"error: {error}")
    _let_process_0_end_first()
    return BAD_CONFIGURATION


def _let_process_0_end_first() -> None:
    """A launcher ends all processes with the first that fails: it should be the one that speaks and saves."""
    if os.environ.get("RANK", "0") != "0":
        with suppress(KeyboardInterrupt):
            time.sleep(_PROCESS_0_ENDS_S)


def _prepare_process(config: TrainConfig) -> None:
    """Quiet libraries, bounded threads, and signals that end the run as Ctrl-C does; before torch is imported."""
    settings = {
        "TORCHDYNAMO_DISABLE": str(int(not config.loader.compile)),  # importing the compiler costs seconds
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": str(config.threads),
    }
    if config.model.path in BUILT_IN_MODELS:
        settings["HF_HUB_OFFLINE"] = "1"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with SIGINT ignored
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which is what nohup does
        signal.signal(signal.SIGHUP, _hang_up)


def _interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)


def _hang_up(*_: object) -> None:
    """The terminal is gone, and whoever writes to it gets an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
    _interrupt()


def _run(composition: Composition, begins: _Start, overrides: Sequence[str], process_group: ProcessGroup) -> int:
    from cua_agent.scratch import held

    begun = _begin(composition, begins, overrides, process_group)
    if begun is None:
        return DONE
    config, directory, said = begun
    if process_group.rank > 0:
        return _assist(config, process_group)
    for line in said:
        print(line, flush=True)
    with held(directory):
        return _keep(config, directory, overrides, process_group)


def _begin(
    composition: Composition, begins: _Start, overrides: Sequence[str], process_group: ProcessGroup
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
            _say(f"{display_path(start.directory or start.checkpoint)} has come to its end: nothing is left to do")
            return None
        config, more = extended(config, start, overrides)
        said += [*start.notes, *more]
        resumed = described(start)
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


def _keep(config: TrainConfig, directory: Path, overrides: Sequence[str], process_group: ProcessGroup) -> int:
    """Train, and say how it ended and how to go on."""
    from trainers.run.directory import resume_command

    try:
        result = _train(config, directory, process_group)
    except ConfigError:
        if not any(directory.glob("*.jsonl")):  # refused before anything was measured: nothing in it to keep
            shutil.rmtree(directory)
        raise
    except KeyboardInterrupt:
        saved = config.resume is not None or (directory / "checkpoints").is_dir()
        hint = f"go on with: {resume_command(overrides, directory)}" if saved else "nothing was trained yet"
        print(f"interrupted; {hint}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _report_failure(error, directory)
    from trainers.run.report import closing_words

    print(closing_words(result, directory, config, overrides))
    return DONE


def _assist(config: TrainConfig, process_group: ProcessGroup) -> int:
    """Train along with process 0, which keeps the books and speaks."""
    from cua_agent.scratch import scratch_directory
    from trainers.distributed.rank_config import without_trackers

    with scratch_directory("rank") as scratch:
        try:
            _train(without_trackers(config), scratch, process_group)
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            print(f"error in process {process_group.rank}: {type(error).__name__}: {error}", file=sys.stderr)
            _let_process_0_end_first()
            return BAD_CONFIGURATION if isinstance(error, ConfigError) else FAILED
    return DONE


def _train(config: TrainConfig, directory: Path, process_group: ProcessGroup) -> TrainResult:
    from cua_agent.agent import ContextTooShort
    from trainers.api import build_trainer
    from trainers.run.interrupts import interrupts_held
    from trainers.run.progress import open_progress, silent_progress

    progress = open_progress(config.max_steps) if process_group.rank == 0 else silent_progress()
    try:
        trainer = build_trainer(config, directory, progress, process_group)
        try:
            return trainer.train()
        except ContextTooShort as error:
            raise ConfigError(f"model.{error}; allowed: more, or fewer rollout.max_new_tokens") from error
        finally:
            with interrupts_held():
                trainer.close()
    finally:
        progress.close()


def _report_failure(error: Exception, directory: Path) -> int:
    from trainers.run.disk import NoSpace, full_in_words, is_full

    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    first_line = next(iter(str(error).splitlines()), "")
    line = f"{type(error).__name__}: {first_line}"
    if is_full(error):
        line = first_line if isinstance(error, NoSpace) else full_in_words(directory)
    log = directory / "error.log"
    try:
        log.write_text(mask_text("".join(traceback.format_exception(error))), encoding="utf-8")
        where = f"traceback: {log}"
    except OSError as failure:
        log.unlink(missing_ok=True)
        where = f"no traceback, {log} cannot be written: {failure.strerror}"
    print(f"error: {line} ({where})", file=sys.stderr)
    return FAILED


def _leave(status: int) -> NoReturn:
    """End the process; Ctrl-C has nothing to interrupt any more, and ends it at once."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os._exit(status))
    sys.exit(status)


if __name__ == "__main__":
    _leave(main())
