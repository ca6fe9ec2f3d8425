"""Synchronous group rollouts: play every episode of a round, replace the lost ones, refill groups without signal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

from cua_agent.envs.base import Environment, EnvironmentFailure
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.inference.base import InferenceFailure
from cua_agent.tasks import CUATask
from cua_agent.trajectory import Trajectory

Episode = list[Trajectory]
"""The token rows of one episode (one with context=full)."""


@dataclass(frozen=True)
class GroupSpec:
    """What the episodes of one group share: the same task in the same start state."""

    task: CUATask
    seed: int
    group_id: str


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode to play; `episode_id` is unique in a run, a replacement's included."""

    task: CUATask
    seed: int
    group_id: str
    episode_id: str


class EpisodeRunner(Protocol):
    """Plays one episode to a scored end, or raises `EnvironmentFailure` or `InferenceFailure`: it is lost."""

    async def __call__(self, environment: Environment, spec: EpisodeSpec) -> Episode: ...


@dataclass(frozen=True)
class Group:
    """The scored episodes of one group."""

    spec: GroupSpec
    episodes: list[Episode]

    @property
    def rows(self) -> list[Trajectory]:
        return [row for episode in self.episodes for row in episode]


@dataclass(frozen=True)
class Played:
    """What became of one episode: its rows (None when its replacements were lost too), and why each lost one was."""

    rows: Episode | None
    lost: tuple[str, ...] = ()


@dataclass
class Collected:
    """All that the rounds of one step brought: groups with signal, groups without, and why each lost episode was."""

    kept: list[Group] = field(default_factory=list)
    filtered: list[Group] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def episodes(self) -> list[Episode]:
        return [episode for group in (*self.kept, *self.filtered) for episode in group.episodes]


OnDone = Callable[[int, int], None]
"""Called with (episodes done, episodes of the round) whenever one ends."""


@dataclass(frozen=True)
class Usage:
    """What rollouts cost: wall seconds that training waited for them, and environment-seconds lent to episodes, of the
    `capacity_s` (pool size x wall seconds) that there were to lend. Since the step before: seconds that episodes waited
    for an environment (`env_wait_s`, summed) and that environments existed (`alive_s`), evaluations included."""

    wall_s: float = 0.0
    busy_s: float = 0.0
    capacity_s: float = 0.0
    env_wait_s: float = 0.0
    alive_s: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def utilisation(self) -> float:
        """Share of the time that environments were lent to an episode, 0..1."""
        return self.busy_s / self.capacity_s if self.capacity_s else 0.0

    @property
    def box_minutes(self) -> float:
        """What a provider that bills environments by the minute counts."""
        return self.alive_s / 60


class EpisodePlayer(Protocol):
    """Plays the episodes of an evaluation."""

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        """Play single episodes with the newest weights, for an evaluation; results in the order of `specs`."""
        ...


class Rollouts(EpisodePlayer, Protocol):
    """Where a trainer's experience comes from."""

    @property
    def position(self) -> int:
        """Groups drawn for training that a resumed run must not play again."""
        ...

    def collect(self, on_done: OnDone) -> tuple[Collected, Usage]:
        """The groups that the next training step learns from, and those without signal beside them."""
        ...

    def publish(self, version: int) -> None:
        """The policy's weights changed and are now `version`: sample with them from here on."""
        ...

    def restore(self, version: int, position: int) -> None:
        """A checkpoint was loaded: go on from there."""
        ...

    def close(self) -> None:
        """Close environments and engine; safe to call twice."""
        ...


async def play_episode(pool: EnvironmentPool, run: EpisodeRunner, spec: EpisodeSpec, retries: int) -> Played:
    """Play `spec`, again on another environment for up to `retries` times when infrastructure loses it."""
    lost: list[str] = []
    for attempt in range(retries + 1):
        name = f"{spec.episode_id}.{attempt}" if attempt else spec.episode_id
        try:
            async with pool.lend() as environment:
                rows = await run(environment, replace(spec, episode_id=name))
        except (EnvironmentFailure, InferenceFailure) as error:
            lost.append(f"{name} ({spec.task.id}): {error}")
            continue
        return Played(rows, tuple(lost))
    return Played(None, tuple(lost))


async def play_all(
    pool: EnvironmentPool,
    run: EpisodeRunner,
    specs: Sequence[EpisodeSpec],
    retries: int,
    on_done: OnDone | None = None,
) -> list[Played]:
    """Play all episodes together, as many at a time as the pool has environments; results in the order of `specs`.

    An unexpected error in one episode cancels the others and is raised as it is.
    """
    done = 0

    async def play(spec: EpisodeSpec) -> Played:
        nonlocal done
        played = await play_episode(pool, run, spec, retries)
        done += 1
        if on_done is not None:
            on_done(done, len(specs))
        return played

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(play(spec)) for spec in specs]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def play_groups(
    pool: EnvironmentPool,
    run: EpisodeRunner,
    specs: Sequence[GroupSpec],
    group_size: int,
    retries: int,
    on_done: OnDone | None = None,
) -> tuple[list[Group], list[str]]:
    """One round: `group_size` episodes of every group, all together. Returns the groups and why each lost episode was;
    an episode that its replacements could not save is missing from its group."""
    episodes = [
        EpisodeSpec(spec.task, spec.seed, spec.group_id, f"{spec.group_id}-{member}")
        for spec in specs
        for member in range(group_size)
    ]
    played = await play_all(pool, run, episodes, retries, on_done)
    groups = []
    for index, spec in enumerate(specs):
        members = played[index * group_size : (index + 1) * group_size]
        groups.append(Group(spec, [member.rows for member in members if member.rows is not None]))
    return groups, [reason for member in played for reason in member.lost]


class Round(Protocol):
    """Plays one round of groups."""

    async def __call__(self, specs: Sequence[GroupSpec]) -> tuple[list[Group], list[str]]: ...


async def collect(
    play_round: Round,
    draw: Callable[[int], Sequence[GroupSpec]],
    has_signal: Callable[[Group], bool],
    wanted: int,
    max_refills: int,
) -> Collected:
    """Filter and refill: play `wanted` groups, then up to `max_refills` further rounds of as many new groups as still
    lack signal. May end with fewer than `wanted` kept groups, never with more."""
    collected = Collected()
    for _ in range(max_refills + 1):
        groups, lost = await play_round(draw(wanted - len(collected.kept)))
        collected.lost += lost
        for group in groups:
            (collected.kept if has_signal(group) else collected.filtered).append(group)
        if len(collected.kept) == wanted:
            break
    return collected
