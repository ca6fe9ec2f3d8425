"""``python -m trainers.areal.cluster.worker_process``: AReaL's worker, which does not outlive its controller."""

from __future__ import annotations

import os
import signal
import threading
import time

from cua_agent.secrets import masked_output

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
    from areal.infra.rpc.rpc_server import main as serve

    serve()


def _end_with(controller: int) -> None:
    while _lives(controller):
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
