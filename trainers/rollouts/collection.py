"""Synchronous group rollouts: play every episode of a round, replace the lost ones, refill groups without signal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.inference.base import InferenceFailure
from trainers.protocol import Collected, Episode, EpisodeRunner, EpisodeSpec, Group, GroupSpec, OnDone, Played
from trainers.rollouts.branching import branch_specs, member_specs, without_trails


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
    on_played: Callable[[EpisodeSpec, Played], Awaitable[None]] | None = None,
) -> list[Played]:
    """Play all episodes together, as many at a time as the pool has environments; results in the order of `specs`, and
    one by one to `on_played`.

    An unexpected error in one episode cancels the others and is raised as it is.
    """
    done = 0

    async def play(spec: EpisodeSpec) -> Played:
        nonlocal done
        played = await play_episode(pool, run, spec, retries)
        if on_played is not None:
            await on_played(spec, played)
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
    on_group: Callable[[Group], None] | None = None,
    branches: int = 0,
) -> tuple[list[Group], list[str]]:
    """One round: `group_size` episodes of every group, all together; the last `branches` of each begin where one of its
    others was, once all of these are played. Returns the groups and why each lost episode was; an episode that its
    replacements could not save is missing from its group. `on_group` gets each as soon as it is finished, in another
    thread."""
    whole = range(group_size - branches)
    first = [each for spec in specs for each in member_specs(spec, whole, trail=branches > 0)]
    members: dict[str, dict[str, Played]] = {spec.group_id: {} for spec in specs}
    total = len(specs) * group_size

    def scored(spec: GroupSpec, numbers: range) -> list[Episode]:
        played = [members[spec.group_id].get(f"{spec.group_id}-{member}") for member in numbers]
        return [each.rows for each in played if each is not None and each.rows is not None]

    def group_of(spec: GroupSpec) -> Group:
        episodes = without_trails(scored(spec, range(group_size))) if branches else scored(spec, range(group_size))
        forked = [rows for rows in episodes if rows[0].fork is not None]
        return Group(spec, [rows for rows in episodes if rows[0].fork is None], forked)

    async def on_played(episode: EpisodeSpec, played: Played) -> None:
        members[episode.group_id][episode.episode_id] = played
        if on_group is not None and len(members[episode.group_id]) == group_size:
            spec = next(spec for spec in specs if spec.group_id == episode.group_id)
            await asyncio.to_thread(on_group, group_of(spec))

    def done_after(before: int) -> OnDone | None:
        return None if on_done is None else lambda done, _: on_done(before + done, total)

    played = await play_all(pool, run, first, retries, done_after(0), on_played)
    if branches:
        last = range(len(whole), group_size)
        forked = [each for spec in specs for each in branch_specs(spec, scored(spec, whole), last)]
        played += await play_all(pool, run, forked, retries, done_after(len(first)), on_played)
    return [group_of(spec) for spec in specs], [reason for each in played for reason in each.lost]


class Round(Protocol):
    """Plays one round of groups."""

    async def __call__(self, specs: Sequence[GroupSpec]) -> tuple[list[Group], list[str]]: ...


async def collect(
    play_round: Round,
    draw: Callable[[int], Sequence[GroupSpec]],
    has_signal: Callable[[Group], bool],
    wanted: int,
    max_refills: int,
    collected: Collected,
) -> None:
    """Filter and refill: play `wanted` groups, then up to `max_refills` further rounds of as many new groups as still
    lack signal. Fills the empty `collected` round by round; it may end with fewer than `wanted` kept groups, never with
    more."""
    for _ in range(max_refills + 1):
        groups, lost = await play_round(draw(wanted - len(collected.kept)))
        collected.lost += lost
        for group in groups:
            (collected.kept if has_signal(group) else collected.filtered).append(group)
        if len(collected.kept) == wanted:
            break


async def watched(work: Coroutine[Any, Any, None], look: Callable[[], None], every_s: float = 1.0) -> None:
    """Do `work` and call `look` at once and every so many seconds; when that raises, `work` is cancelled."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            look()
            await asyncio.wait({task}, timeout=every_s)
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
