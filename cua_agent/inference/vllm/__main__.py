"""``python -m cua_agent.inference.vllm serve model=...``: a vLLM server that this library can train with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED
from cua_agent.inference.vllm.serve import OPTIONS, ServeError, parse_options, run, server_command
from cua_agent.secrets import masked_output


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"--help", "-h"} & set(words[:2]):
        print(_help())
        return DONE
    command = {"serve": _serve, "release": _release}.get(words[0])
    if command is None:
        print(f"error: {words[0]!r} is no command; allowed: serve, release", file=sys.stderr)
        return BAD_CONFIGURATION
    return command(words[1:])


def _serve(words: Sequence[str]) -> int:
    try:
        options, extra = parse_options(words)
        command = server_command(options, extra)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    print(command, flush=True)
    return DONE if options.dry_run else run(command, options.restarts)


def _release(words: Sequence[str]) -> int:
    from cua_agent.inference.vllm.client import ControlClient
    from cua_agent.inference.vllm.errors import ServerFailure
    from cua_agent.inference.vllm.ownership import release

    if len(words) != 2 or not words[0].startswith(("http://", "https://")):
        print("error: write release ADDRESS RUN, as in release http://127.0.0.1:8000 myrun-abc123", file=sys.stderr)
        return BAD_CONFIGURATION
    url, owner = words
    try:
        with closing(ControlClient(url)) as client:
            released = release(client, owner)
    except ServerFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    print(f"released {', '.join(released)}" if released else f"{url} holds nothing of {owner}")
    return DONE


def _help() -> str:
    lines = [
        "Serve a model with vLLM, configured for training with inference=vllm.",
        "",
        "  python -m cua_agent.inference.vllm serve [key=value ...] [-- flags for vLLM]",
        "",
    ]
    for key, info in OPTIONS.items():
        default = "" if info.default is None else f" [{str(info.default).lower()}]"
        lines.append(f"  {key:<14} {info.description}{default}")
    lines += [
        "",
        "Take from a server what a run that has ended left on it (a run says which command when it is in the way):",
        "",
        "  python -m cua_agent.inference.vllm release ADDRESS RUN",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
