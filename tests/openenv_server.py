"""An OpenEnv server with an environment of its own: find the button, which says where it is only in the screenshot."""

import base64
import io
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State
from PIL import Image, ImageDraw

SIZE = (80, 60)


class ScreenAction(Action):
    type: str
    x: int | None = None
    y: int | None = None
    text: str | None = None
    key: str | None = None


class ScreenObservation(Observation):
    screenshot: str = ""
    goal: str = ""
    error: str = ""


class ButtonEnvironment(Environment[ScreenAction, ScreenObservation, State]):
    """A tap on the button ends the episode with reward 1; typing gives 0.25 and goes on."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    heard: list[ScreenAction] = []  # noqa: RUF012 (of all sessions, for the tests)
    slow_s = 0.0
    breaks = ""

    def reset(self, seed: int | None = None, episode_id: str | None = None, colour: str = "red") -> ScreenObservation:
        draw = random.Random(seed)
        self.place = (draw.randrange(SIZE[0] - 10), draw.randrange(SIZE[1] - 10))
        self.colour, self.over = colour, False
        return self._see(0.0)

    def step(self, action: ScreenAction, timeout_s: float | None = None, **_: Any) -> ScreenObservation:
        self.heard.append(action)
        time.sleep(self.slow_s)
        if self.breaks == "raise":
            raise RuntimeError("the display server crashed")
        if action.type == "type":
            return self._see(0.25)
        if action.type != "tap" or action.x is None or action.y is None:
            return self._see(0.0, f"cannot {action.type}")
        inside = 0 <= action.x - self.place[0] < 10 and 0 <= action.y - self.place[1] < 10
        self.over = inside
        return self._see(float(inside))

    @property
    def state(self) -> State:
        return State()

    def _see(self, reward: float, error: str = "") -> ScreenObservation:
        image = Image.new("RGB", SIZE, "white")
        x, y = self.place
        ImageDraw.Draw(image).rectangle((x, y, x + 9, y + 9), self.colour)
        file = io.BytesIO()
        image.save(file, "PNG")
        png = file.getvalue()[: 50 if self.breaks == "picture" else None]
        return ScreenObservation(
            screenshot=base64.b64encode(png).decode(),
            goal=f"Tap the {self.colour} square.",
            error=error,
            reward=reward,
            done=self.over,
        )


@contextmanager
def serving(sessions: int = 4, port: int = 0) -> Iterator[tuple[str, uvicorn.Server]]:
    """The server's address and the server itself, on a thread of this process."""
    app = create_fastapi_app(ButtonEnvironment, ScreenAction, ScreenObservation, max_concurrent_envs=sessions)
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(30)
