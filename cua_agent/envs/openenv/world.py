"""`env=openenv`: environments behind an OpenEnv server that runs already."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
from pydantic.dataclasses import dataclass

from cua_agent.envs.base import WorldUnavailable
from cua_agent.envs.openenv.settings import OpenEnvSettings
from cua_agent.envs.own_score import OwnScore
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.error_text import first_line
from cua_agent.options import STRICT
from cua_agent.proxies import proxy_options
from cua_agent.tasks import CUATask, EvalSplit

_CHECK_S = 10.0


@dataclass(frozen=True, config=STRICT)
class OpenEnvWorld(OpenEnvSettings):
    """An OpenEnv server that runs already: its environments' screens, actions and rewards."""

    PRACTICAL = frozenset({"base_url"})

    def check(self) -> None:
        """Ask the server for the form of its actions and observations. Raises `WorldUnavailable` when it does not
        answer, or has no such fields as the options say."""
        if importlib.util.find_spec("openenv") is None:
            raise WorldUnavailable("env=openenv needs the package openenv: pip install 'cua-grpo[openenv]'")
        url = f"{self.base_url.rstrip('/')}/schema"
        try:
            with httpx.Client(timeout=_CHECK_S, **proxy_options([url])) as client:
                schema = client.get(url).raise_for_status().json()
            forms = {part: schema[part] for part in ("action", "observation")}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            reason = first_line(error)[:160]
            raise WorldUnavailable(f"env=openenv: no OpenEnv server answers at {self.base_url}: {reason}") from error
        for kind, template in self.actions.items():
            _expect(f"env.args.actions.{kind}", template, forms["action"])
        for option in ("screenshot", "goal_field", "error_field"):
            if path := getattr(self, option):
                _expect(f"env.args.{option}", [path.partition(".")[0]], forms["observation"])

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EnvironmentFactory]:
        """An environment is a session of the server, over a connection of its own."""
        self.check()
        from cua_agent.envs.openenv.environment import OpenEnvEnvironment

        yield partial(OpenEnvEnvironment.open, self)

    def training_tasks(self) -> list[CUATask]:
        """One for each of `resets`."""
        return [
            CUATask(f"openenv/{name}", name, self.goal, "medium", name, self.max_steps, OwnScore())
            for name in self.resets
        ]

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """The same ones on other seeds; there are no others."""
        return self.training_tasks() if split == "seeds" else []


def _expect(option: str, names: Any, form: dict[str, Any]) -> None:
    """Raise `WorldUnavailable` when a JSON schema forbids one of `names`."""
    known = form.get("properties", {})
    unknown = [name for name in names if name not in known]
    if unknown and form.get("additionalProperties") is False:
        raise WorldUnavailable(f"{option}: the server knows no {unknown[0]!r}; allowed: {', '.join(known)}")
