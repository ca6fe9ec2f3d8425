"""``python -m cua_agent.inference.vllm serve model=...``: a vLLM server that this library can train with."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cua_agent.inference.vllm.serve import OPTIONS, ServeError, parse_options, run, server_command

BAD_CONFIGURATION = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"--help", "-h"} & set(words[:2]):
        print(_help())
        return 0
    if words[0] != "serve":
        print(f"error: {words[0]!r} is no command; allowed: serve", file=sys.stderr)
        return BAD_CONFIGURATION
    try:
        options, extra = parse_options(words[1:])
        command = server_command(options, extra)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    print(command, flush=True)
    return 0 if options.dry_run else run(command, options.restarts)


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
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
