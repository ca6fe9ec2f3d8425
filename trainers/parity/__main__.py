"""Prove that the backends agree: record, replay, ladder, learning, gate; and ask what other losses would do: whatif."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED, INTERRUPTED
from cua_agent.secrets import masked_output
from trainers.config import ConfigError

if TYPE_CHECKING:
    from trainers.parity.ladder import Climb
    from trainers.parity.plan import DType, Plan
    from trainers.parity.recording import Recording
    from trainers.parity.replay import Side

_SHOWN = 10  # failures
SHORT = (
    "rollout.groups_per_step=2",
    "rollout.group_size=4",
    "rollout.max_turns=4",
    "rollout.max_refills=4",
    "rollout.concurrency=16",
)
"""What a recording that is only made to be replayed needs of a run."""


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    given = parser().parse_args(arguments)
    _prepare_process()
    try:
        status: int = given.command(given)
        return status
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def record(given: argparse.Namespace) -> int:
    """Record batches, by playing them or from a run."""
    from trainers.config.compose import load_config
    from trainers.parity.recording import UPDATES, record_played, record_run
    from trainers.run.requirements import check_access

    out = Path(given.out)
    if given.run is not None:
        recording = record_run(Path(given.run), out)
    else:
        config = load_config(["backend=legacy", *SHORT, *given.overrides])
        check_access(config)
        recording = record_played(config, out, lambda done: print(f"batch {done} of {UPDATES} recorded", flush=True))
    print(f"recorded {len(recording.steps)} batches in {out}")
    return DONE


def replay(given: argparse.Namespace) -> int:
    """Replay a recording on every side."""
    from trainers.parity.recording import load_recording

    recording = _in_world(load_recording(Path(given.recording)), given.world)
    plan = _plan(recording, Path(given.out), given.dtype)
    at_once = given.at_once or ((os.cpu_count() or 1) if recording.config.loader.device == "cpu" else 1)
    with ThreadPoolExecutor(min(len(plan.sides), at_once)) as together:
        for finished in [together.submit(_replay_on, side, plan) for side in plan.sides]:
            finished.result()
    return DONE


def _in_world(recording: Recording, overrides: Sequence[str]) -> Recording:
    """The recording, with the world that `overrides` (env=..., env.args.<option>=...) name for its live runs."""
    from trainers.config.compose import load_config
    from trainers.config.overrides import key_of
    from trainers.run.requirements import check_access

    if wrong := [each for each in overrides if key_of(each).partition(".")[0] != "env"]:
        raise ConfigError(f"{wrong[0]}: the recording decides it; allowed: env=... and keys of env")
    if overrides:
        recording = replace(recording, config=replace(recording.config, env=load_config(overrides).env))
    check_access(recording.config)
    return recording


def ladder(given: argparse.Namespace) -> int:
    """Compare what the sides left, rung by rung."""
    from trainers.parity.ladder import climb
    from trainers.parity.plan import load_plan

    out = Path(given.out)
    if given.recording is not None:
        replay(given)
    plan = load_plan(out)
    return _show(climb(plan, plan.source), out, "ladder")


def whatif(given: argparse.Namespace) -> int:
    """One recorded batch under several losses."""
    from rich.console import Console

    from trainers.parity.recording import load_recording
    from trainers.parity.whatif import markdown, refusals, tables, to_json, what_if
    from trainers.run.directory import display_path

    recording = _in_world(load_recording(Path(given.recording)), ())
    out, losses = Path(given.out), given.losses.split(",")
    sides = [_side(phase) for phase in given.phases.split(",")] if given.phases else []
    answers = what_if(recording, losses, sides, on_answer=lambda a: print(f"{a.side}: {a.loss}", flush=True))
    out.mkdir(parents=True, exist_ok=True)
    (out / "whatif.json").write_text(to_json(answers), encoding="utf-8")
    (out / "whatif.md").write_text(markdown(answers, str(display_path(recording.directory))), encoding="utf-8")
    for table in tables(answers):
        Console().print(table)
    print(*refusals(answers), sep="\n", end="\n" * any(answer.refused for answer in answers))
    print(f"{out}/whatif.md, {out}/whatif.json")
    return DONE


def learning(given: argparse.Namespace) -> int:
    """Train both backends over seeds and compare how they learn."""
    from trainers.parity.ladder import Climb
    from trainers.parity.learning import measure_learning, runs_of, session_for
    from trainers.run.directory import environment_information

    session = session_for(given.keys)
    broken = session.train_missing()
    for failure in broken:
        print(f"failed: {failure}", file=sys.stderr)
    runs = runs_of(session)
    found = measure_learning(runs)
    if words := session.write(broken):
        print(words)
    for m in found:
        print(f"phase {m.phase}: {m.note}")
    source = f"{len(runs)} finished runs"
    status = _show(Climb(source, tuple(found), environment_information()), session.directory, "learning")
    return FAILED if broken else status


def gate(given: argparse.Namespace) -> int:
    """Decide whether a candidate run may replace its reference."""
    from trainers.compare.runs import load_run
    from trainers.parity.gate import decide, words
    from trainers.parity.ladder import read_ladder

    phase = _phase(given.phase)
    reference, candidate = (load_run(Path(directory)) for directory in given.runs)
    checks = decide(phase, read_ladder(Path(given.ladder)), reference, candidate)
    print(words(phase, checks))
    return DONE if all(check.passed for check in checks) else FAILED


def _show(result: Climb, out: Path, name: str) -> int:
    """Print the result and leave it in `out`; returns the exit status."""
    from rich.console import Console

    from trainers.parity.ladder import to_json
    from trainers.parity.report import failures, markdown, table

    (out / f"{name}.json").write_text(to_json(result), encoding="utf-8")
    (out / f"{name}.md").write_text(markdown(result), encoding="utf-8")
    Console().print(table(result))
    failed = failures(result)
    for line in failed[:_SHOWN]:
        print(line)
    if len(failed) > _SHOWN:
        print(f"and {len(failed) - _SHOWN} more")
    print(f"{'passed' if result.passed else 'FAILED'}: {out / name}.md, {out / name}.json")
    return DONE if result.passed else FAILED


def _phase(text: str) -> int:
    allowed = {f"phase={phase}": phase for phase in (1, 2, 3)}
    if text not in allowed:
        raise ConfigError(f"{text}: not a gate; allowed: {', '.join(allowed)}")
    return allowed[text]


def _side(phase: str) -> Side:
    if phase not in ("1", "2", "3"):
        raise ConfigError(f"phases={phase}: not a phase; allowed: 1, 2, 3")
    return f"phase{phase}"  # type: ignore[return-value]


def _plan(recording: Recording, out: Path, dtype: DType) -> Plan:
    from trainers.components import build_components
    from trainers.parity.plan import make_plan

    for name in ("pieces", "starts", "evidence"):  # of an earlier ladder
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    return make_plan(recording, out, build_components, dtype)


def _replay_on(side: Side, plan: Plan) -> None:
    from trainers.parity.ladder import replay_on

    done: list[str] = []

    def on_piece(piece: str) -> None:
        done.append(piece)
        print(f"{side}: {piece} replayed ({len(done)} of {len(plan.pieces)})", flush=True)

    replay_on(side, plan, on_piece)


def _prepare_process() -> None:
    """Quiet libraries and one thread each, before torch is imported."""
    settings = {
        "TORCHDYNAMO_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "NVIDIA_TF32_OVERRIDE": "0",  # float32 on a GPU is float32
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def parser() -> argparse.ArgumentParser:
    """Reads the command line; `command` of what it gives is what to do with it."""
    whole = argparse.ArgumentParser(prog="python -m trainers.parity", description=__doc__)
    commands = whole.add_subparsers(required=True)

    command = commands.add_parser("record", help="store real batches, of a run or played for it")
    command.add_argument("--run", help="run directory to take them from; without it a few groups are played")
    command.add_argument("--out", required=True, help="new directory of the recording")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="keys of train.py, to play with")
    command.set_defaults(command=record)

    command = commands.add_parser("replay", help="feed a recording to legacy and phases 1, 2, 3")
    command.add_argument("--recording", required=True, help="recording or run directory")
    _add_world(command)
    command.add_argument("--out", required=True, help="directory of what each side came to")
    _add_how(command)
    command.set_defaults(command=replay)

    command = commands.add_parser("ladder", help="rungs 0 to 4: replay and compare; exit status 1 when one fails")
    command.add_argument("--recording", help="recording or run directory; without it what was replayed is compared")
    _add_world(command)
    command.add_argument("--out", required=True, help="directory of the result: ladder.md, ladder.json")
    _add_how(command)
    command.set_defaults(command=ladder)

    command = commands.add_parser("whatif", help="one recorded batch under several losses: what each would do")
    command.add_argument("--recording", required=True, help="recording or run directory")
    command.add_argument(
        "--losses", default="grpo,gspo,cispo", help="names with commas between, each with +key=value (%(default)s)"
    )
    command.add_argument("--phases", default="", help="phases that compute them, too: 1,2,3 (legacy alone)")
    command.add_argument("--out", required=True, help="directory of the result: whatif.md, whatif.json")
    command.set_defaults(command=whatif)

    command = commands.add_parser("learning", help="rung 5: live runs over seeds, trained where they are missing")
    command.add_argument("keys", nargs="*", metavar="key=value", help="keys of compare.py, and of train.py")
    command.set_defaults(command=learning)

    command = commands.add_parser("gate", help="go or no-go for moving up to a phase; exit status 1 for no-go")
    command.add_argument("phase", metavar="phase=N", help="the phase to move up to: 1, 2 or 3")
    command.add_argument("--ladder", default="outputs/parity/ladder.json", help="ladder.json (%(default)s)")
    command.add_argument(
        "--runs", nargs=2, required=True, metavar=("BEFORE", "AFTER"), help="finished runs of a lower phase and of N"
    )
    command.set_defaults(command=gate)
    return whole


def _add_world(command: argparse.ArgumentParser) -> None:
    """The world of the live runs."""
    command.add_argument(
        "world", nargs="*", metavar="env=WORLD", help="what the live runs play, with its keys (the recorded world)"
    )


def _add_how(command: argparse.ArgumentParser) -> None:
    """How a recording is replayed."""
    dtypes = ("float32", "bfloat16")
    command.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="of the replay (%(default)s)")
    command.add_argument(
        "--at-once", type=int, metavar="N", help="sides that replay at the same time (one on a GPU, else one a core)"
    )


if __name__ == "__main__":
    sys.exit(main())
