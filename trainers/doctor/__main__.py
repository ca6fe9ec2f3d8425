"""``python -m trainers.doctor [key=value ...]``: look, before a long run, whether everything is there that it needs.

The keys are those of train.py. With `server=http://...` only that vLLM server is looked at, whoever started it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence

from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED, INTERRUPTED
from cua_agent.secrets import masked_output
from trainers.command.process import quiet_libraries
from trainers.config import ConfigError, TrainConfig

_SERVER = "server="


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 1 when a check found an error."""
    given = _parser().parse_args(arguments)
    try:
        url = next((word.removeprefix(_SERVER) for word in given.overrides if word.startswith(_SERVER)), None)
        overrides = [word for word in given.overrides if not word.startswith(_SERVER)]
        if url is not None:
            # LoRA, unless full weights are asked for: what a trainer next to a server usually publishes.
            overrides = ["inference=vllm", "lora.enabled=true", *overrides, f"inference.servers=['{url}']"]
        config = _compose(overrides)
        _prepare_process(config)
        return _examine(config, url, checklist=given.checklist, as_json=given.json)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _compose(overrides: Sequence[str]) -> TrainConfig:
    from trainers.config.compose import load_config
    from trainers.config.validation import AUTO

    config = load_config(overrides)
    if config.resume != AUTO:
        return config
    from trainers.run.resuming import settle_auto

    settled = settle_auto(config, overrides)
    print("\n".join(settled.say), file=sys.stderr)
    return load_config(settled.overrides)


def _prepare_process(config: TrainConfig) -> None:
    """As for a run: quiet libraries, bounded threads, and SIGTERM treated as Ctrl-C; before torch is imported."""
    quiet_libraries(config)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def _examine(config: TrainConfig, url: str | None, *, checklist: bool, as_json: bool) -> int:
    from rich.console import Console

    from trainers.doctor.checklist import checked
    from trainers.doctor.checks import run_checks
    from trainers.doctor.context import Context
    from trainers.doctor.endpoint import endpoint_checks
    from trainers.doctor.examination import Result, examine
    from trainers.doctor.report import Table, failed, to_json, verdict

    checks = list(endpoint_checks(url)) if url is not None else run_checks(config)
    table = Table(Console(stderr=as_json, highlight=False), [check.name for check in checks])

    def show(result: Result) -> None:
        table.row(result.check.name, result.finding, result.check.serves if url is not None else "")

    with Context(config) as context:
        results = examine(checks, context, show)
    findings = [result.finding for result in results]
    if as_json:
        print(to_json(results))
    else:
        print(f"\n{verdict(findings)}")
    if checklist:
        print("\nThe migration guide's checklist:\n", file=sys.stderr if as_json else sys.stdout)
        points = [(f"{i:>2} {words}", finding) for i, (words, finding) in enumerate(checked(config, results), 1)]
        steps = Table(Console(stderr=as_json, highlight=False), [words for words, _ in points])
        for words, finding in points:
            steps.row(words, finding)
    return FAILED if failed(findings) else DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainers.doctor",
        description="Look, before a long run, whether everything is there that it needs; exit status 1 when it is not.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run, as for train.py")
    parser.add_argument("--checklist", action="store_true", help="the migration guide's twelve points besides")
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output, rows on the other")
    return parser


if __name__ == "__main__":
    sys.exit(main())
