"""The training sequence on AReaL's real executor, with an engine and episodes that take no time of their own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.trajectory import Trajectory
from tests.legacy_rig import TASKS, squares
from tests.toy_world import trajectory
from trainers.components import Components
from trainers.config import ArealConfig, RolloutConfig, TrainConfig
from trainers.protocol import Collected, EpisodeSpec
from trainers.rollouts.group_spool import NO_SPOOL, GroupSpool

Kind = Literal["signal", "none", "replaced", "lost", "crash"]
DEADLINE_S = 60.0
GATE_S = 1.0


class StuckError(AssertionError):
    """No batch came in time."""


@dataclass
class VersionEngine:
    """Implements `InferenceEngine`: two tokens a turn, the second `delay_s` after the first."""

    version: int = 0
    delay_s: float = 0.0

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        first = self.version
        await asyncio.sleep(self.delay_s)
        return GenerateResponse([7, 8], [-1.0, -1.0], [first, self.version], "stop")

    def release(self, conversation_id: str) -> None: ...

    def update_weights(self, version: int) -> None:
        self.version = version

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Fate:
    """What happens to a group: how long its episodes take before their first token and between their turns, and whether
    rewards differ or something breaks. With a `gate`, they stand between their turns until it is set."""

    kind: Kind = "signal"
    wait_s: float = 0.0
    delay_s: float = 0.0
    gate: threading.Event | None = None


@dataclass
class Player:
    """Implements `EpisodeRunner`: two turns; group n meets `fates[n % len(fates)]`."""

    engine: Any
    fates: Sequence[Fate]
    started: list[int] = field(default_factory=list)

    async def __call__(self, environment: Any, spec: EpisodeSpec) -> list[Trajectory]:
        index = number(spec.group_id)
        fate, member = self.fates[index % len(self.fates)], int(spec.episode_id.split("-")[1].split(".")[0])
        versions: list[int] = []
        await asyncio.sleep(fate.wait_s * (1 + member))
        versions += (await self.engine.generate(GenerateRequest(spec.episode_id, [1, 2], [], 2))).versions
        await asyncio.sleep(fate.delay_s * (1 + member))
        while fate.gate is not None and not fate.gate.is_set():
            await asyncio.sleep(0.005)
        versions += (await self.engine.generate(GenerateRequest(spec.episode_id, [1, 2], [], 2))).versions
        if fate.kind == "lost" or (fate.kind == "replaced" and spec.episode_id.endswith("-0")):
            raise EnvironmentFailure("the box died")
        if fate.kind == "crash":
            raise RuntimeError("a bug")
        reward = float(member % 2) if fate.kind != "none" else 1.0
        return [sampled(versions, reward, spec)]


def sampled(versions: Sequence[int], reward: float, spec: EpisodeSpec) -> Trajectory:
    """A row whose last tokens were sampled by `versions`."""
    row = trajectory(reward, group_id=spec.group_id, episode_id=spec.episode_id, ids=range(2 + len(versions)))
    mask = np.array([0, 0] + [1] * len(versions), np.int32)
    return replace(row, loss_mask=mask, versions=np.array([-1, -1, *versions], np.int32))


def number(group_id: str) -> int:
    return int(group_id.removeprefix("g"))


@dataclass
class Stream:
    """A `GroupStream` and the policy version of its trainer."""

    stream: Any
    engine: Any
    version: int

    def collect(self, *, opens: threading.Event | None = None) -> Collected:
        """The next batch; a gate that `opens` once it has been waited for. Raises `StuckError` when none comes."""
        started = time.monotonic()

        def on_collecting(done: int, total: int, so_far: Collected) -> None:
            if opens is not None and time.monotonic() > started + GATE_S:
                opens.set()
            if time.monotonic() > started + DEADLINE_S:
                window = self.stream._window
                places = f"running {window.running}, ready {[*window.ready]}, empty {window.empty}"
                raise StuckError(f"{done} of {total} groups: {places}; {len(so_far.filtered)} without signal")

        collected, ready, _ = self.stream.collect(on_collecting)
        assert [group.group for group in ready] == collected.kept
        return collected

    def publish(self) -> None:
        self.version += 1
        self.engine.update_weights(self.version, {})
        self.stream.after_version()

    def pause(self, seconds: float) -> None:
        """As an evaluation does."""
        self.engine.pause()
        time.sleep(seconds)
        self.engine.resume()


def configuration(*, staleness: int, groups: int, refills: int, concurrency: int) -> TrainConfig:
    rollout = RolloutConfig(
        group_size=2,
        groups_per_step=groups,
        max_staleness=staleness,
        max_refills=refills,
        concurrency=concurrency,
        infra_retries=1,
    )
    return TrainConfig(backend="areal", phase=1, rollout=rollout, areal=ArealConfig(max_failures=10_000))


@contextmanager
def opened(
    config: TrainConfig,
    fates: Sequence[Fate],
    directory: Path,
    *,
    token_s: float = 0.0,
    version: int = 0,
    position: int = 0,
    spool: GroupSpool = NO_SPOOL,
) -> Iterator[Stream]:
    """The stream of a trainer of policy `version` that starts at `position`."""
    from trainers.areal.config.translation import rollout_config
    from trainers.areal.process import prepare_process
    from trainers.areal.rollout.group_stream import GroupStream
    from trainers.areal.rollout.loop_environments import LoopEnvironments
    from trainers.areal.rollout.rollout_engine import PolicyRolloutEngine

    prepare_process(directory)
    policy: Any = SimpleNamespace(
        special=SimpleNamespace(pad_id=0, image_token_id=99, call_id=None),
        load_trained=lambda weights: _nothing(weights),
    )
    engine = PolicyRolloutEngine(rollout_config(config, directory), VersionEngine(delay_s=token_s), policy)
    engine.initialize(train_data_parallel_size=1)
    components = Components(policy, squares, lambda client: Player(client, fates), TASKS, {})  # type: ignore[arg-type]
    world = LoopEnvironments(squares, config.rollout.concurrency)
    stream = GroupStream(config, components, engine, world, pixels=False, spool=spool)
    try:
        engine.run(world.pool())
        if version or position:
            engine.update_weights(version, {})
            stream.restore(position)
        yield Stream(stream, engine, version)
    finally:
        engine.pause()
        engine.run(stream.stop())
        world.close()
        engine.destroy()


def _nothing(weights: Mapping[str, Any]) -> None:
    assert not weights
