"""Two suites: `shop` and `broken`."""

import random
from typing import Any, ClassVar


class BaseTask:
    apps: ClassVar[list[str]] = ["shop"]
    difficulty = "L2"
    max_steps: ClassVar[int | None] = None
    torn_down: ClassVar[list[str]] = []

    def __init__(self, _seed: int | None = None) -> None:
        self.word = random.Random(_seed).choice(["apples", "pears"])

    @property
    def description(self) -> str:
        return f"Like the shop and look for {self.word}."

    def checks(self, state: dict[str, Any]) -> list[bool]:
        shop = state["apps"]["shop"]
        return [shop["liked"], shop["query"] == self.word]

    def teardown(self, env: Any) -> None:
        self.torn_down.append(self.word)


class LikeAndSearch(BaseTask):
    max_steps = 15


class Unjudgeable(BaseTask):
    def checks(self, state: dict[str, Any]) -> list[bool]:
        raise RuntimeError("no such field")


class TaskRegistry:
    kinds: ClassVar[dict[str, dict[str, type[BaseTask]]]] = {
        "broken": {"Unjudgeable": Unjudgeable},
        "shop": {"LikeAndSearch": LikeAndSearch},
    }

    def list_suites(self, *, include_generated: bool = True) -> list[str]:
        return sorted(self.kinds)

    def list_tasks(self, suite: str) -> list[str]:
        return sorted(self.kinds[suite])

    def get(self, suite: str, task_name: str) -> type[BaseTask]:
        return self.kinds[suite][task_name]

    def create_task(self, task_id: str, **params: Any) -> BaseTask:
        return self.get(*task_id.split(".", 1))(**params)
