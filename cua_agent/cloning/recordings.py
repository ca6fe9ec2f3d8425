"""MiniWoB++ episodes recorded by `scripts/record_miniwob_demos.py`, as examples to imitate."""

from __future__ import annotations

import io
import random
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image

from cua_agent.cloning.demonstrations import Noise
from cua_agent.cloning.example import Example, as_example
from cua_agent.conversation import Codec, Conversation, EpisodeInfo
from cua_agent.error_text import first_line
from cua_agent.inference.base import GenerateResponse
from cua_agent.prompts import END_OF_TURN, preamble
from cua_agent.trajectory import Outcome

_INFO = EpisodeInfo(1.0, Outcome.SUCCESS, "miniwob", "clone", "clone", 0)


_ARRAYS = ("episode_goal", "episode_task", "step_action", "step_frame", "step_episode", "frame_png", "frame_end")


class RecordingError(ValueError):
    """A file that is not a whole recording; the message is one line naming it."""


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a recording. Raises `RecordingError`."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in _ARRAYS}
    except (OSError, EOFError, LookupError, TypeError, ValueError, BadZipFile, zlib.error) as error:
        raise RecordingError(f"{path} is not a recording: {type(error).__name__}: {first_line(error)}") from error


class Recordings:
    """The episodes of a recording; `size` is (height, width) that screenshots are resized to, as the policy would.
    Raises `RecordingError`."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        data = read_arrays(path)
        self.goals: list[str] = data["episode_goal"].tolist()
        tasks: list[str] = data["episode_task"].tolist()
        self._actions: list[str] = data["step_action"].tolist()
        self._frames = data["step_frame"]
        self._png, self._ends = data["frame_png"], data["frame_end"]
        steps_of = defaultdict(list)
        for step, episode in enumerate(data["step_episode"].tolist()):
            steps_of[episode].append(step)
        self._size = size
        self._episodes: dict[str, list[tuple[str, list[int]]]] = defaultdict(list)
        for episode, task in enumerate(tasks):
            self._episodes[task].append((self.goals[episode], steps_of[episode]))

    @property
    def texts(self) -> list[str]:
        """All goals and calls, for the tokenizer."""
        return self.goals + self._actions

    def example(self, codec: Codec, rng: random.Random, noise: Noise) -> Example:
        """An episode of a random task. With `noise.mistake` a call is replaced by one of another episode of the task;
        pages end at a wrong click, and so does the example."""
        episodes = self._episodes[rng.choice(list(self._episodes))]
        goal, steps = rng.choice(episodes)
        conversation = Conversation(codec, preamble("brief"), "full", 1)
        conversation.start(goal, self._frame(steps[0]))
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            wrong = rng.random() < noise.mistake
            source = rng.choice(rng.choice(episodes)[1]) if wrong else step
            ids = codec.encode(self._actions[source] + END_OF_TURN)
            conversation.add_response(GenerateResponse(ids, [0.0] * len(ids), [0] * len(ids), "stop"))
            if wrong or following is None:
                break
            conversation.observe("", self._frame(following))
        (row,) = conversation.to_trajectories(_INFO, [])
        return as_example(row)

    def _frame(self, step: int) -> npt.NDArray[np.uint8]:
        index = int(self._frames[step])
        start = int(self._ends[index - 1]) if index else 0
        image: Any = Image.open(io.BytesIO(self._png[start : int(self._ends[index])].tobytes()))
        height, width = self._size
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
