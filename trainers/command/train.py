"""`python train.py [key=value ...]`: read what was typed, train, and say how it ended."""

from __future__ import annotations

import shlex
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED, INTERRUPTED
from cua_agent.secrets import mask_text, masked_output
from trainers.command.ending import print_trace_on_demand
from trainers.command.process import let_process_0_end_first, prepare_process, say
from trainers.command.starts import Start, begin, compose
from trainers.command.sweep import sweep
from trainers.config import ConfigError, TrainConfig
from trainers.config.compose import Composition
from trainers.config.presets import OPTION, joined_options, split_options

if TYPE_CHECKING:
    from trainers.distributed.process_group import ProcessGroup
    from trainers.protocol import TrainResult

SHOW, SWEEP = "--config", ("-m", "--multirun")


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"--help", "-h"} & set(arguments):
        from trainers.config.reference import help_text
        from trainers.run.commands import typed

        print(help_text(shlex.join(typed("train"))))
        return DONE
    try:
        arguments = joined_options(arguments)
        options = [argument for argument in split_options(arguments)[1] if argument.startswith("-")]
        if unknown := [option for option in options if option not in (SHOW, *SWEEP)]:
            raise ConfigError(f"{unknown[0]}: unknown option; allowed: --help, {SHOW}, -m, {OPTION} <dir>, key=value")
        overrides = [argument for argument in arguments if argument not in options]
        if set(options) & set(SWEEP):
            return sweep(overrides)
        composition, start = compose(overrides)
        config = composition.config
        if options:
            return _show(config)
        prepare_process(config)
        from trainers.distributed.torchrun import process_group_of_environment
        from trainers.run.requirements import check_requirements

        check_requirements(config)
        with process_group_of_environment(config) as process_group:
            return _run(composition, start, overrides, process_group)
    except ConfigError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED


def _show(config: TrainConfig) -> int:
    from trainers.run.directory import masked_config, to_yaml

    print(to_yaml(masked_config(config)), end="")
    return DONE


def _refuse(error: ConfigError) -> int:
    print_trace_on_demand(error)
    say(f"error: {error}")
    let_process_0_end_first()
    return BAD_CONFIGURATION


def _run(composition: Composition, begins: Start, overrides: Sequence[str], process_group: ProcessGroup) -> int:
    from cua_agent.scratch import held

    begun = begin(composition, begins, overrides, process_group)
    if begun is None:
        return DONE
    config, directory, said = begun
    if process_group.rank > 0:
        return _assist(config, process_group)
    for line in said:
        print(line, flush=True)
    with held(directory):
        return _keep(config, directory, overrides, process_group)


def _keep(config: TrainConfig, directory: Path, overrides: Sequence[str], process_group: ProcessGroup) -> int:
    """Train, and say how it ended and how to go on."""
    from trainers.run.commands import resume_command

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
            let_process_0_end_first()
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

    print_trace_on_demand(error)
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
