"""What the checks share: the configuration, and the policy, engine and environment that are made once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from trainers.config import TrainConfig

if TYPE_CHECKING:
    from cua_agent.envs.base import Environment
    from cua_agent.envs.pool import EnvironmentFactory
    from cua_agent.inference.base import InferenceEngine
    from cua_agent.models.policy import PolicyModel

T = TypeVar("T")

_SERVER_S = 10.0
"""How long a silent server is waited for: it should be there before the run is."""
_QUOTA_S = 1.0
_CREATE_S = 60.0


class Context:
    """Made for one examination; `close` ends boxes, pages and adapters. What cannot be made raises, each time anew."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = _impatient(config)
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._engine: InferenceEngine | None = None
        self._factory: EnvironmentFactory | None = None
        self._environment: Environment | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._runner:
            self._runner.run(self._stack.aclose())

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, on the one event loop of the examination: a browser lives on the loop it began on."""
        return self._runner.run(work)

    @cached_property
    def policy(self) -> PolicyModel:
        """The policy as the run would load it. Raises `ConfigError` or `ModelError`."""
        import torch

        from trainers.components import build_policy

        torch.set_num_threads(self.config.threads)
        torch.manual_seed(self.config.seed)
        return build_policy(self.config)

    @property
    def engine(self) -> InferenceEngine:
        """What samples the policy. Raises `ServerMismatch`, `CanaryError` or `InferenceFailure`."""
        if self._engine is None:
            from trainers.components import build_engine

            self._engine = build_engine(self.config, self.policy)
            self._stack.push_async_callback(self._engine.close)
        return self._engine

    async def factory(self) -> EnvironmentFactory:
        """What starts environments. Raises `WorldUnavailable`."""
        if self._factory is None:
            from cua_agent.envs.registry import open_world

            env = self.config.env
            self._factory = await self._stack.enter_async_context(open_world(env.world, env.timeout_s))
        return self._factory

    async def environment(self) -> Environment:
        """One environment for all checks. Raises `EnvironmentFailure` or `WorldUnavailable`."""
        if self._environment is None:
            start = await self.factory()
            self._environment = await start()
            self._stack.push_async_callback(self._environment.close)
        return self._environment


def _impatient(config: TrainConfig) -> TrainConfig:
    """`config` for somebody who waits: what is not there now counts as not there."""
    inference, env = config.inference, config.env
    if env.name == "gbox":
        waits = {"quota_wait_s": _QUOTA_S, "create_timeout_s": _CREATE_S}
        shorter = {key: min(env.args[key], limit) for key, limit in waits.items()}
        env = replace(env, args={**env.args, **shorter, "purpose": "doctor", "prewarm": 0})
    inference = replace(inference, server_timeout_s=min(inference.server_timeout_s, _SERVER_S))
    return replace(config, inference=inference, env=env)
