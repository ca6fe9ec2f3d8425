"""What a turn costs besides the model: the client's work by part, and the server's processor time.

    python -m cua_agent.inference.vllm serve model=tiny
    python benchmarks/turn_cost.py --server http://127.0.0.1:8000 --episodes 64

Plays episodes of the built-in phone on a vLLM server, without training, and prints milliseconds a turn: of the wall
clock, of the client's processor (its parts below, measured where they run), and of the server's processes where they
run on this machine. Parts are times of functions that never wait, so on a loaded machine the sum may exceed the
processor's time. The first round warms up. JSON: --out FILE.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import psutil

from cua_agent import acting, agent
from cua_agent.conversation import Conversation
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.inference.vllm import client, images, wire
from cua_agent.models.policy import PolicyModel
from trainers.components import build_components, build_engine
from trainers.config.compose import load_config
from trainers.protocol import EpisodeSpec
from trainers.rollouts.collection import play_all
from trainers.rollouts.task_sampler import TaskSampler

PARTS: dict[str, list[tuple[Any, str]]] = {
    "world: draw the screen": [(PocketEnvironment, "_observe")],
    "screenshot to an array": [(agent, "screen_of")],
    "prompt and tokens": [(Conversation, name) for name in ("start", "observe", "prompt", "add_response")],
    "encode images": [(images, "sent_image")],
    "collapse and check ids": [(wire, "collapse"), (wire, "check_prompt")],
    "write the request": [(client, "encode_body")],
    "read the answer": [(client, "read_answer"), (wire, "read_generation")],
    "parse the call": [(acting, "parse_tool_call"), (PolicyModel, "decode")],
}


def main() -> None:
    """Play, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="URL")
    parser.add_argument("--episodes", type=int, default=64, help="of a round, all at the same time")
    parser.add_argument("--rounds", type=int, default=3, help="measured ones; their sum is shown")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    args = parser.parse_args()
    config = load_config(
        ["inference=vllm", f"inference.servers=[{args.server}]", "lora.enabled=true", *args.overrides],
    )
    figures = asyncio.run(_measure(config, args))
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:8.3f}")
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1))


async def _measure(config: Any, args: argparse.Namespace) -> dict[str, float]:
    components = build_components(config)
    engine = await asyncio.to_thread(build_engine, config, components.policy)
    sampler = TaskSampler(components.train_tasks, config.seed)
    try:
        async with components.environments() as factory, EnvironmentPool(factory, args.episodes) as pool:
            run = components.runner_for(engine)
            await _round(pool, run, sampler, args.episodes)
            with timed() as spent, bytes_sent() as sent:
                before = _Clock(args.server)
                turns = 0
                for _ in range(args.rounds):
                    turns += await _round(pool, run, sampler, args.episodes)
                wall_s, client_s, front_s, engine_s = before.since()
    finally:
        await engine.close()
    per_turn = 1000 / turns
    return {
        "turns": turns,
        "seconds a round": wall_s / args.rounds,
        "wall, ms a turn": wall_s * per_turn,
        "client's processor, ms a turn": client_s * per_turn,
        **{f"  {name}": seconds * per_turn for name, seconds in spent.items()},
        "  the rest: event loop, HTTP": (client_s - sum(spent.values())) * per_turn,
        "server's front end, ms a turn": front_s * per_turn,
        "server's engine, ms a turn": engine_s * per_turn,
        "request, KiB a turn": sum(sent) / turns / 1024,
    }


async def _round(pool: EnvironmentPool, run: Any, sampler: TaskSampler, episodes: int) -> int:
    """Play `episodes` episodes together; how many turns they had."""
    specs = [EpisodeSpec(spec.task, spec.seed, spec.group_id, f"{spec.group_id}-0") for spec in sampler.next(episodes)]
    played = await play_all(pool, run, specs, retries=0)
    assert all(each.rows for each in played), "an episode was lost"
    return sum(len(row.turns) for each in played for row in each.rows or ())


class _Clock:
    """Wall clock, this process's processor time, that of the process which listens at `url`'s port, and its
    children's."""

    def __init__(self, url: str) -> None:
        self._front = _listening_at(urlsplit(url).port)
        self._engine = [child for each in self._front for child in each.children(recursive=True)]
        self._start = self._read()

    def since(self) -> tuple[float, ...]:
        return tuple(now - then for now, then in zip(self._read(), self._start, strict=True))

    def _read(self) -> tuple[float, ...]:
        spent = [sum(sum(each.cpu_times()[:2]) for each in kind) for kind in (self._front, self._engine)]
        return time.perf_counter(), time.process_time(), *spent


def _listening_at(port: int | None) -> list[psutil.Process]:
    """The process that listens there, when it can be seen from here."""
    return [
        psutil.Process(connection.pid)
        for connection in psutil.net_connections("tcp")
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
    ][:1]


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds spent in each of `PARTS` inside; nested ones count once, for the outermost."""
    spent = dict.fromkeys(PARTS, 0.0)

    def wrapped(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.thread_time() - started

        return call

    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                stack.enter_context(mock.patch.object(owner, name, wrapped(getattr(owner, name), part)))
        yield spent


@contextmanager
def bytes_sent() -> Iterator[list[int]]:
    """The sizes of the bodies of all sampling requests made inside."""
    sizes: list[int] = []
    ask = client.SamplingClient.call

    async def asking(self: client.SamplingClient, url: str, call: wire.Call) -> Any:
        sizes.append(len(json.dumps(call.body)))
        return await ask(self, url, call)

    with mock.patch.object(client.SamplingClient, "call", asking):
        yield sizes


if __name__ == "__main__":
    main()
