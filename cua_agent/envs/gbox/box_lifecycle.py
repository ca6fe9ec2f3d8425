"""Starting boxes, and ending every one of them, whatever happens in between."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from gbox_sdk import AsyncGboxClient

from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.gbox.box import Box, create_box
from cua_agent.envs.gbox.calls import CallRefused, Patience, call, did_nothing
from cua_agent.envs.gbox.environment import GBoxEnvironment
from cua_agent.envs.gbox.service import end_boxes, list_boxes, new_client
from cua_agent.envs.gbox.sessions import SessionRecord, dead_sessions, recorded
from cua_agent.envs.gbox.settings import CREATION, MADE_BY, PURPOSE, RUN, SESSION, GBoxSettings, check_requirements
from cua_agent.envs.pocket.state import Layout
from cua_agent.envs.pool import PoolPolicy
from cua_agent.proxies import proxy_hint
from cua_agent.secrets import mask_text

logger = logging.getLogger(__name__)

_SWEEPS = 3
_NO_LIMIT = 1_000_000
_SLACK_S = 60.0


class GBoxFactory:
    """Starts boxes for an `EnvironmentPool`. Every box carries labels: of this library, the run, and this session.

    A creation that is given up on (cancelled, timed out, broken off) may still produce a box: such a box is looked for
    by the label of its creation and ended. `close` ends whatever carries the session's label.

    Sessions of this machine whose processes were killed have their boxes ended, too.
    """

    bounds_starts = True
    """Whether a start has limits of its own: it may well wait for a box to be free."""

    def __init__(self, client: AsyncGboxClient, settings: GBoxSettings, layout: Layout, pixel_scale: int) -> None:
        self._client = client
        self._settings = settings
        self._patience = Patience(settings.call_timeout_s, settings.attempts)
        self._layout = layout
        self._pixel_scale = pixel_scale
        self.session = secrets.token_hex(6)
        self.run = settings.run or f"session-{self.session}"
        self.labels = {**MADE_BY, RUN: self.run, PURPOSE: settings.purpose, SESSION: self.session}
        self._loose_ends: set[asyncio.Task[Any]] = set()

    @property
    def policy(self) -> PoolPolicy:
        """How long the pool may keep a box, and how many it starts ahead."""
        settings = self._settings
        episodes = 1 if settings.reset == "fresh" else settings.max_episodes
        return PoolPolicy(settings.prewarm, episodes, settings.max_age_s)

    async def check(self) -> None:
        """Raise `WorldUnavailable` when the service does not answer or refuses the key."""
        try:
            await list_boxes(self._client, self.labels, self._patience)
        except EnvironmentFailure as error:
            url = str(self._client.base_url)
            raise WorldUnavailable(
                f"env.args.base_url={mask_text(url)}: no GBox answers ({error}){proxy_hint(url)}"
            ) from error

    async def __call__(self) -> GBoxEnvironment:
        """A running box. Raises `EnvironmentFailure`, and `WorldUnavailable` when no box can ever be had."""
        settings = self._settings
        patience = Patience(settings.create_timeout_s + _SLACK_S, _NO_LIMIT, settings.quota_wait_s)
        try:
            box = await call("create", self._create, patience, did_nothing)
            await self._set_up(box)
        except CallRefused as error:
            raise WorldUnavailable(f"the GBox service refuses to make such a box: {error}") from error
        return GBoxEnvironment(box, settings, self._layout, self._pixel_scale)

    async def _set_up(self, box: Box) -> None:
        try:
            if self._settings.scale != 1:
                await box.set_scale(self._settings.scale)
        except BaseException:
            self._later(box.end())
            raise

    async def _create(self) -> Box:
        """One request, which is seen to its end even when nobody waits for it any more."""
        creation = secrets.token_hex(8)
        request = asyncio.create_task(create_box(self._client, self._settings, {**self.labels, CREATION: creation}))
        try:
            return await asyncio.shield(request)
        except BaseException as error:
            if not did_nothing(error):
                self._later(self._end_creation(creation, request))
            raise

    async def _end_creation(self, creation: str, request: asyncio.Task[Box]) -> None:
        await asyncio.gather(request, return_exceptions=True)
        await self._end_all({**MADE_BY, CREATION: creation})

    async def _end_all(self, labels: Mapping[str, str]) -> tuple[int, str]:
        """End every box with `labels`; returns how many there were, and why some could not be ended."""
        boxes = await list_boxes(self._client, labels, self._patience)
        return len(boxes), "; ".join((await end_boxes(self._client, boxes, self._patience)).values())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_tried(work))
        self._loose_ends.add(task)
        task.add_done_callback(self._loose_ends.discard)

    async def end_dead(self) -> list[SessionRecord]:
        """End what killed processes left. Never raises; returns the sessions of which nothing is left, unless a
        creation of theirs is still under way."""
        clear = []
        for record in dead_sessions(str(self._client.base_url)):
            with suppress(EnvironmentFailure, WorldUnavailable):
                found, problem = await self._end_all({**MADE_BY, SESSION: record.session})
                if found:
                    logger.warning("%d boxes of a killed process were ended %s", found, problem and f"({problem})")
                clear += [] if problem else [record]
        return clear

    async def close(self) -> bool:
        """End every box of this session; whether none is left. Never raises: what could not be ended is said in the
        log."""
        await asyncio.gather(*self._loose_ends, return_exceptions=True)
        problem = ""
        for _ in range(_SWEEPS):
            try:
                left, problem = await self._end_all(self.labels)
            except (EnvironmentFailure, WorldUnavailable) as error:
                problem = str(error)
            else:
                if left == 0:
                    return True
        why = problem or "the service still lists them"
        logger.error("boxes may be left (%s): python -m cua_agent.envs.gbox reap --run %s", why, self.run)
        return False


async def _tried(work: Coroutine[Any, Any, None]) -> None:
    """Boxes that it could not end are ended when the session is."""
    with suppress(EnvironmentFailure, WorldUnavailable, CallRefused):
        await work


@asynccontextmanager
async def open_gbox(settings: GBoxSettings, layout: Layout, pixel_scale: int) -> AsyncIterator[GBoxFactory]:
    """A factory that is good for one event loop; all its boxes are ended at the end. Raises `WorldUnavailable`."""
    check_requirements(settings)
    async with new_client(settings) as client:
        factory = GBoxFactory(client, settings, layout, pixel_scale)
        await factory.check()
        with recorded(str(client.base_url), factory.session) as record:
            await factory.end_dead()
            try:
                yield factory
            finally:
                if await factory.close():
                    record.delete()
                for dead in await factory.end_dead():
                    dead.delete()
