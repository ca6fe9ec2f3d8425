"""`env=android`: phones and emulators over adb."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from cua_agent.envs.android.settings import AndroidSettings
from cua_agent.envs.android.start import ANDROID_FAMILIES
from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.pocket import tasks
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.options import STRICT
from cua_agent.tasks import CUATask, EvalSplit

if TYPE_CHECKING:
    from cua_agent.envs.android.phone import AdbServer


@dataclass(frozen=True, config=STRICT)
class AndroidPhones(AndroidSettings):
    """Android phones and emulators that an adb server knows; one episode a phone at a time."""

    PRACTICAL = frozenset({"host", "port", "serials", "call_timeout_s", "wait_s"})

    def check(self) -> None:
        """Raise `WorldUnavailable` when adbutils, the adb server or one of the phones is missing or not ready."""
        if importlib.util.find_spec("adbutils") is None:
            raise WorldUnavailable("env=android needs the package adbutils: pip install 'cua-grpo[android]'")
        from cua_agent.envs.android.lease import ready_ones, why_not

        try:
            states = self._server().states()
            ready_ones(states, self.serials)
        except EnvironmentFailure as failure:
            raise WorldUnavailable(f"env=android: {failure}") from failure
        if reasons := why_not(states, self.serials):
            raise WorldUnavailable(f"env=android: {reasons}; leave it out of env.args.serials")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EnvironmentFactory]:
        """What waits for a free phone and plays one episode on it; the next may have another one."""
        self.check()
        from cua_agent.envs.android.environment import PhoneFactory

        yield PhoneFactory(self._server(), self)

    def training_tasks(self) -> list[CUATask]:
        """Those tasks of `pocket` whose start a real phone can be put into."""
        return [task for task in tasks.training_tasks() if task.category in ANDROID_FAMILIES]

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """As `training_tasks`."""
        return [task for task in tasks.eval_tasks(split) if task.category in ANDROID_FAMILIES]

    def _server(self) -> AdbServer:
        from cua_agent.envs.android.phone import AdbServer

        return AdbServer(self.host, self.port)
