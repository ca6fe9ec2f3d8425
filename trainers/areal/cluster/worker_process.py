"""``python -m trainers.areal.cluster.worker_process``: AReaL's worker, which does not outlive its controller."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil  # type: ignore[import-untyped]

from cua_agent.secrets import masked_output
from trainers.areal.loopback import given_meeting_place, stay_on_this_machine

CONTROLLER = "CUA_CONTROLLER_PID"
"""Environment variable: the controller's process id, when it runs on the same machine."""

_POLL_S = 1.0
_GRACE_S = 10.0


@masked_output()
def main() -> None:
    """Serve until told to stop. Ctrl-C is the controller's: it still needs its workers to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if CONTROLLER in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[CONTROLLER]),), daemon=True).start()
    if (directory := given_meeting_place()) is not None:
        stay_on_this_machine(directory)
    from areal.infra.rpc.rpc_server import main as serve

    serve()


def _end_with(controller: int) -> None:
    started = _start_of(controller)
    while started is not None and _start_of(controller) == started:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


def _start_of(process: int) -> float | None:
    """When a process began, which tells it from a later one of the same number; None when it has ended, also while
    nobody has taken notice of that (a zombie)."""
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else found.create_time()
    except psutil.NoSuchProcess:
        return None


if __name__ == "__main__":
    main()
