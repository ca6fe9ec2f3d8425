"""An environment that lives in a process of its own; plain functions, so that it has a thread of its own, too."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from typing import Any

from cua_agent.actions import Action, Point
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.envs.browsergym.settings import Settings
from cua_agent.tasks import CUATask

_WORKER = "cua_agent.envs.browsergym.worker"
_LEAVING_S = 8.0


class BrowserGymEnvironment:
    """One `Player`, by way of its process. Whatever that raises costs the episode, and so does its death.

    `close` may be called from another thread while a call hangs: it ends the process.
    """

    def __init__(self, settings: Settings) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # a Ctrl-C is ours to hear, and the group can be ended as one
        )
        try:
            self._call("start", settings)
        except BaseException:
            self.close()
            raise

    def reset(self, task: CUATask, seed: int) -> Observation:
        observation: Observation = self._call("reset", task.name, seed)
        return observation

    def step(self, action: Action) -> StepResult:
        result: StepResult = self._call("step", action)
        return result

    def locate(self, target: str) -> Point | None:
        point: Point | None = self._call("locate", target)
        return point

    def report(self, message: str) -> None:
        """See `HearsReports`."""
        self._call("report", message)

    def compute_reward(self) -> float:
        return float(self._call("score"))

    def close(self) -> None:
        """End the process, by force when it does not go."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_LEAVING_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _call(self, method: str, *arguments: Any) -> Any:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            pickle.dump((method, arguments), requests)
            requests.flush()
            returned, result = pickle.load(answers)
        except (OSError, EOFError, ValueError) as error:  # a closed pipe is a ValueError
            raise EnvironmentFailure(f"{method}: the process of the environment is dead") from error
        if not returned:
            raise EnvironmentFailure(f"{method}: {result}")
        return result
