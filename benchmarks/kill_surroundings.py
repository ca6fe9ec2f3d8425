"""What a run of the kill test plays and samples with, outside of its own processes: nothing of it may be left there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SMALL = ["rollout.max_turns=3", "rollout.concurrency=4"]


@dataclass(frozen=True)
class Surroundings:
    """The keys and variables of a run in them, and what is `left` there when nobody runs."""

    keys: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    left: Callable[[], list[str]] = lambda: []


@contextmanager
def nothing() -> Iterator[Surroundings]:
    """Simulated phones and sampling in the run's own process."""
    yield Surroundings()


@contextmanager
def boxes() -> Iterator[Surroundings]:
    """Boxes of a local GBox."""
    from cua_agent.envs.local_gbox.options import LocalGBoxOptions
    from cua_agent.envs.local_gbox.server import running

    with running(LocalGBoxOptions()) as server:

        def left() -> list[str]:
            summary = server.ledger()["summary"]
            sent_twice = [f"action {action}, sent twice," for action in summary["sent_twice"]]
            return [f"box {box}" for box in summary["running"]] + sent_twice

        keys = ["env=gbox_local", f"env.args.base_url={server.base_url}", *SMALL]
        yield Surroundings(keys, {"GBOX_API_KEY": server.api_key}, left)


@contextmanager
def pages() -> Iterator[Surroundings]:
    """Pages in a Chromium, whose processes and profile the test looks for as for all others."""
    yield Surroundings(["env=miniwob", *SMALL])


@contextmanager
def adapters() -> Iterator[Surroundings]:
    """LoRA adapters on a server with vLLM's interface that samples the built-in model."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from cua_agent.models.loaders import load_policy
    from tests.doctor_rig import HonestVllm
    from tests.vllm_fakes import served
    from trainers.config.compose import load_config

    server = HonestVllm(load_policy(load_config([]).model.path))
    with served(server.app()) as url:
        keys = ["inference=vllm", f"inference.servers=['{url}']", "lora.enabled=true", "lora.r=4", *SMALL]
        yield Surroundings(keys, {}, lambda: [f"adapter {name}" for name in server.adapters])


SURROUNDINGS = {"nothing": nothing, "boxes": boxes, "pages": pages, "adapters": adapters}
