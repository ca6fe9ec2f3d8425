"""Set-up and judge."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ExecutionResult:
    steps: int
    trace: list[dict[str, Any]]
    runtime_s: float
    finished: bool
    truncated: bool
    agent_answer: str | None = None


@dataclass
class JudgeResult:
    success: bool = False
    clean: bool = True
    progress: float = 0.0
    warnings: list[dict[str, Any]] = field(default_factory=list)
    judge_error: str | None = None


class Controller:
    @staticmethod
    async def setup(env: Any, task: Any, **_: Any) -> tuple[Any, dict[str, Any]]:
        await env.reset(app_ids=task.apps)
        return await env.get_observation(), {"word": task.word}


class Evaluator:
    async def evaluate(self, task: Any, init_obs: Any, last_obs: Any, exec_result: Any) -> JudgeResult:
        try:
            checks = task.checks(last_obs.state)
        except Exception as error:
            return JudgeResult(judge_error=f"check_goals() raised: {error}")
        before, after = (each.state["apps"]["shop"]["sold"] for each in (init_obs, last_obs))
        warnings = [] if before == after else [{"path": "apps.shop.sold"}]
        return JudgeResult(all(checks), not warnings, sum(checks) / len(checks), warnings)
