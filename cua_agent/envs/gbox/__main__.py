"""``python -m cua_agent.envs.gbox reap``: end boxes that a killed run left behind."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.gbox.settings import GBoxSettings, check_requirements
from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED, INTERRUPTED
from cua_agent.secrets import masked_output


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 none is left, 1 some are, 2 bad options, 130 interrupted."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not (given.run or given.older_than or given.all_mine):
        parser.error("say which boxes: --run, --older-than or --all-mine")
    settings = GBoxSettings(base_url=given.base_url)
    try:
        check_requirements(settings)
        return _reap(settings, given)
    except ValueError as error:  # a key that is missing or wrong, or an age that is none
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except EnvironmentFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _reap(settings: GBoxSettings, given: argparse.Namespace) -> int:
    from cua_agent.envs.gbox.leftover_boxes import Selection, reap, seconds_of

    selection = Selection(given.run, seconds_of(given.older_than) if given.older_than else 0.0)
    none_left = asyncio.run(reap(settings, selection, dry_run=given.dry_run, say=print))
    return DONE if none_left else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cua_agent.envs.gbox", description="Look after the boxes that this library makes."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="reap")
    reap = commands.add_parser(
        "reap",
        help="end boxes",
        description="End boxes that this library made; an age narrows the choice down further.",
        epilog="The key is taken from GBOX_API_KEY. Exit status: 0 none of them is left, 1 some are, 2 bad options.",
    )
    whose = reap.add_mutually_exclusive_group()
    whose.add_argument("--run", metavar="NAME", help="boxes of one run: the name of its directory in outputs/")
    whose.add_argument("--all-mine", action="store_true", help="boxes of every run of this library")
    reap.add_argument("--older-than", metavar="AGE", help="only boxes made longer ago than this: 90s, 30m, 2h, 1d")
    reap.add_argument("--dry-run", action="store_true", help="only say what would be ended")
    reap.add_argument("--base-url", metavar="URL", help="address of the service, as env.args.base_url")
    return parser


if __name__ == "__main__":
    sys.exit(main())
