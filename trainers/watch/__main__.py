"""``python -m trainers.watch outputs/RUN [outputs/RUN ...] [--port 8765] [--export FOLDER]``"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cua_agent.error_text import type_and_line
from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED
from cua_agent.secrets import masked_output
from trainers.config import ConfigError
from trainers.run.lineage import is_run_directory
from trainers.watch.recording import Recording

HOST = "127.0.0.1"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m trainers.watch", description="Pages on what the agents of runs do, live and afterwards."
    )
    found.add_argument("runs", nargs="+", type=Path, help="run directories; each shows all that it was resumed from")
    found.add_argument("--port", type=int, default=0, help="port on this machine (default: any that is free)")
    found.add_argument("--export", type=Path, metavar="FOLDER", help="write the pages into a new folder instead")
    return found


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Serve pages on runs until Ctrl-C, or export them; returns the exit status."""
    given = parser().parse_args(arguments)
    try:
        recordings = [Recording(_checked(run)) for run in dict.fromkeys(given.runs)]
        return _export(recordings, given.export) if given.export else _serve(recordings, given.port)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except OSError as error:
        print(f"error: {type_and_line(error)}", file=sys.stderr)
        return FAILED


def _checked(run: Path) -> Path:
    if not is_run_directory(run):
        raise ConfigError(f"{run}: no run directory of train.py")
    return run


def _export(recordings: Sequence[Recording], target: Path) -> int:
    from trainers.watch.export import export

    if target.exists():
        raise ConfigError(f"--export {target}: is there already; allowed: a new folder")
    print(export(recordings, target))
    return DONE


def _serve(recordings: Sequence[Recording], port: int) -> int:
    import uvicorn

    from trainers.watch.server import application

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--port {port}: {error}; allowed: a free port, 0 for any") from error
        print(f"watching {', '.join(each.name for each in recordings)}", flush=True)
        print(f"http://{HOST}:{listening.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(
            application(recordings), log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        with suppress(KeyboardInterrupt):  # that is how it ends
            uvicorn.Server(config).run(sockets=[listening])
    return DONE


if __name__ == "__main__":
    sys.exit(main())
