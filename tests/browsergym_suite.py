"""Tasks for BrowserGym, `tests.browsergym_suite:browsergym/test.<name>`: pages in frames, answers, and trouble."""

from __future__ import annotations

import time
from typing import Any

from browsergym.core.registration import register_task
from browsergym.core.task import AbstractBrowserTask

FRAME = '<input id=field placeholder=City><button onclick="top.document.title = field.value">Save</button>'
PAGE = f'<p>A form in a frame.</p><iframe srcdoc="{FRAME.replace(chr(34), "&quot;")}" width=300 height=100></iframe>'


class FrameTask(AbstractBrowserTask):
    """The form is in a frame; what it is to hold is worth 0.5, and so is the answer in the chat."""

    def setup(self, page: Any) -> tuple[str, dict[str, Any]]:
        page.set_content(PAGE)
        return "Save Paris, and answer with the number of letters.", {}

    def validate(self, page: Any, chat_messages: list[Any]) -> tuple[float, bool, str, dict[str, Any]]:
        saved = page.title() == "Paris"
        if chat_messages[-1]["role"] != "assistant" or len(chat_messages) < 3:  # greeting, goal
            return 0.0, False, "", {}
        return 0.5 * saved + 0.5 * (chat_messages[-1]["message"] == "5"), True, "", {}


class TroubleTask(AbstractBrowserTask):
    """What happens when the page is scored: it hangs, or ends its own process, or raises."""

    def __init__(self, seed: int, kind: str) -> None:
        super().__init__(seed)
        self.kind = kind

    def setup(self, page: Any) -> tuple[str, dict[str, Any]]:
        page.set_content("<button>OK</button>")
        return self.kind, {}

    def validate(self, page: Any, chat_messages: list[Any]) -> tuple[float, bool, str, dict[str, Any]]:
        if self.kind == "hangs":
            time.sleep(3600)
        if self.kind == "script":
            page.evaluate("() => { while (true) {} }")
        if self.kind == "dies":
            import os

            os._exit(1)
        raise RuntimeError("no verdict")


register_task("test.frame", FrameTask)
for kind in ("hangs", "script", "dies", "raises"):
    register_task(f"test.{kind}", TroubleTask, task_kwargs={"kind": kind})
