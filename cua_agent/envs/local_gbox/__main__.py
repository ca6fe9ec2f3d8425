"""``python -m cua_agent.envs.local_gbox``: serve the GBox API on this machine until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import get_args

from pydantic import ValidationError

from cua_agent.envs.local_gbox.faults import FaultKind, FaultPlan, Moment
from cua_agent.envs.local_gbox.options import DEFAULT_KEY, LocalGBoxOptions
from cua_agent.envs.pocket.latency import Latency
from cua_agent.envs.pocket.state import Layout
from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED, INTERRUPTED
from cua_agent.proxies import is_loopback

DEFAULT_PORT = 8600
_KINDS = ",".join(FaultKind)


class OptionError(ValueError):
    """Options that cannot be served; the message is one line naming the option and what is allowed."""


def parse_options(arguments: Sequence[str] | None) -> LocalGBoxOptions:
    """Raises `OptionError`; exits with status 2 on an unknown option and with 0 after --help."""
    given = _parser().parse_args(arguments)
    kinds = given.faults.split(",")
    if unknown := [kind for kind in kinds if kind not in set(FaultKind)]:
        raise OptionError(f"--faults: {unknown[0]!r} is not one of {_KINDS}")
    if given.api_key == DEFAULT_KEY and not is_loopback(given.host):
        raise OptionError(
            f"--host {given.host}: other machines reach it, and everybody knows the key {DEFAULT_KEY!r}; give one of "
            "your own with --api-key, or --host 127.0.0.1"
        )
    try:
        faults = FaultPlan(given.fault_rate, tuple(map(FaultKind, kinds)), given.fault_moment, given.seed)
        return LocalGBoxOptions(
            host=given.host,
            port=given.port,
            api_key=given.api_key,
            seed=given.seed,
            layout=given.layout,
            scale=given.scale,
            quota=given.quota,
            action_latency=Latency(given.latency, given.action_s, given.sigma, given.seed),
            create_latency=Latency(given.latency, given.create_s, given.sigma, given.seed),
            faults=faults,
            hang_s=given.hang_s,
            slow_create_s=given.slow_create_s,
            retry_after_s=given.retry_after_s,
        )
    except ValidationError as errors:
        error = errors.errors()[0]
        name = str(error["loc"][0]).replace("_", "-")
        raise OptionError(f"--{name} {str(error['input'])[:80]}: {error['msg']}") from None
    except ValueError as error:
        raise OptionError(f"--fault-{error}") from None


def serve(options: LocalGBoxOptions) -> int:
    """Serve until a signal comes; returns the exit status."""
    try:
        from cua_agent.envs.local_gbox.middleware import API
        from cua_agent.envs.local_gbox.server import listen, make_app, make_server, origin_of
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is missing: pip install 'cua-grpo[local-gbox]'", file=sys.stderr)
        return FAILED
    try:
        listener = listen(options)
    except OSError as error:
        raise OptionError(f"--port {options.port} on {options.host}: {os.strerror(error.errno or 0)}") from None
    app = make_app(options)
    signal.signal(signal.SIGTERM, _stop)
    with listener:
        print(f"local GBox: GBOX_CLIENT_BASE_URL={origin_of(listener)}{API}/ GBOX_API_KEY={options.api_key}")
        print(f"ledger:     {origin_of(listener)}/ledger", flush=True)
        try:
            make_server(app).run([listener])
        finally:
            summary = app.state.fleet.report()["summary"]
            served = ", ".join(f"{count} {kind}" for kind, count in Counter(summary["faults"]).most_common())
            print(
                f"{summary['created']} boxes created, {len(summary['running'])} still running; "
                f"{summary['executed']} actions, {len(summary['sent_twice'])} sent twice; faults: {served or 'none'}"
            )
    return DONE


def _stop(number: int, _: FrameType | None) -> None:
    """Leave in good order; uvicorn passes a signal on when it has shut down."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 failed, 2 bad options, 130 interrupted."""
    try:
        return serve(parse_options(arguments))
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cua_agent.envs.local_gbox",
        description="Serve the GBox API with simulated phones behind it, until Ctrl-C.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=DEFAULT_PORT, help="0: a free one, which is printed")
    add("--api-key", default=DEFAULT_KEY, help="bearer key that clients must show")
    add("--seed", type=int, default=0, help="of box ids, first phone states, latencies and faults")
    add("--layout", choices=get_args(Layout), default="shuffled", help="where phones place icons and rows")
    add("--scale", type=int, default=1, help="screen size, times 128 x 224 pixels")
    add("--quota", type=int, default=None, help="boxes at a time; more are refused with 429 (default: no limit)")
    add("--latency", choices=("none", "constant", "lognormal"), default="none", help="how long things take")
    add("--action-s", type=float, default=1.0, help="mean seconds of an action, screenshot or command")
    add("--create-s", type=float, default=5.0, help="mean seconds until a new box runs")
    add("--sigma", type=float, default=1.0, help="spread of the log-normal latency")
    add("--fault-rate", type=float, default=0.0, help="share of requests that fail")
    add("--faults", default=_KINDS, help="kinds that are mixed, joined by commas")
    add("--fault-moment", choices=get_args(Moment), default="either", help="before or after the effect")
    add("--hang-s", type=float, default=120.0, help="how long a time-out fault keeps a client waiting")
    add("--slow-create-s", type=float, default=60.0, help="what a slow create takes longer")
    add("--retry-after-s", type=int, default=1, help="what a 429 asks for")
    return parser


if __name__ == "__main__":
    sys.exit(main())
