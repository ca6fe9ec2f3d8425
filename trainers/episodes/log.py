"""Records episodes in a thread of its own, which never holds up who plays them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from PIL import Image

from cua_agent.agent import Episode, StandaloneGBoxCUAAgent
from cua_agent.rewards import RewardValues
from cua_agent.secrets import masker
from trainers.config import LoggingConfig
from trainers.episodes.best_effort import BestEffort
from trainers.episodes.board import Board
from trainers.episodes.files import EPISODES, LIVE, SYSTEM, append_rows, replace_json
from trainers.episodes.record import Ended, is_evaluation, record_of
from trainers.episodes.screens import ScreenStore
from trainers.protocol import EpisodeSpec
from trainers.timeline.log import Row, TimelineLog, episode_row

_LOOK_S = 0.5
"""How often the live state is written while it changes."""
_BEAT_S = 2.0
"""How often it is written in any case."""
_WAITING = 1000
_PIXELS = 256e6
"""Episodes that may wait to be written, and bytes of their screens; beyond that screens, and then rows, are dropped."""
_CLOSING_S = 30.0
_MEGABYTE = 1e6


class EpisodeLog:
    """What is recorded of the episodes that this `process` of the run in `directory` plays.

    Rows, screens and the live state are written by a thread; when it falls behind, screens are dropped and then rows.
    Where nothing can be written, that is told once: training does not need it.
    """

    def __init__(self, directory: Path, process: str, config: LoggingConfig, reward: RewardValues) -> None:
        self._directory = directory / EPISODES
        self._writing = BestEffort(self._directory, "episodes")
        self._process = process
        self._config = config
        self._reward = reward
        self._mask = masker()
        self._board = Board(self._mask)
        self._texts: dict[int, str] = {}
        self._screens = ScreenStore(self._directory, process, config.screenshots_mb * _MEGABYTE)
        self._timeline = TimelineLog(directory, process, config.timeline_mb)
        self._queue: Queue[Ended | Row | None] = Queue(_WAITING)
        self._pixels = 0
        self._dropped = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._system = ""

    def wants(self, spec: EpisodeSpec) -> bool:
        """Whether the episode is to be recorded: all of a group are, or none."""
        if is_evaluation(spec):
            return self._config.record_evaluations
        every, number = self._config.record_groups, spec.group_id.lstrip("g")
        return every > 0 and (not number.isdecimal() or int(number) % every == 0)

    @contextmanager
    def playing(self, spec: EpisodeSpec, agent: StandaloneGBoxCUAAgent, version: int) -> Iterator[int]:
        """The live state shows `agent` play `spec` inside, and the timeline that it did; gives the device's number."""
        self._system = agent.system
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="episode log", daemon=True)
            self._thread.start()
        began, device = time.time(), 0
        try:
            with self._board.playing(spec, agent, version) as device:
                yield device
        finally:
            phases = agent.progress.phases if agent.progress is not None else []
            row = episode_row(spec.episode_id, spec.task.id, device, version, began, time.time(), phases)
            with suppress(Full):
                self._queue.put_nowait(row)

    def ended(
        self,
        spec: EpisodeSpec,
        episode: Episode,
        version: int,
        decode: Callable[[Sequence[int]], str],
        device: int = 0,
    ) -> None:
        """An episode ended on a device, lost ones included."""
        if episode.failure is not None:
            self._board.lost(spec, str(episode.failure))
        if not self.wants(spec) or self._writing.broken:
            return
        screens = [*(turn.screenshot for turn in episode.turns), episode.final_screenshot]
        size = _size(screens)
        with self._lock:
            fits = self._pixels + size <= _PIXELS
            self._pixels += size if fits else 0
            self._dropped += 0 if fits else 1
        kept = screens if fits else [None] * len(screens)
        try:
            text_of = partial(self._text, decode)
            self._queue.put_nowait(Ended(spec, episode, version, time.time(), kept, self._reward, text_of, device))
        except Full:
            with self._lock:
                self._pixels -= size if fits else 0

    def close(self) -> None:
        """Write what waits, and end the thread; safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with suppress(Full):
                self._queue.put(None, timeout=_CLOSING_S)
            thread.join(_CLOSING_S)

    def _work(self) -> None:
        told: dict[str, Any] = {}
        looked = written = 0.0
        going = True
        while going:
            try:
                ended = self._queue.get(timeout=_LOOK_S)
            except Empty:
                pass
            else:
                going = ended is not None
                if isinstance(ended, Ended):
                    self._writing(partial(self._write, ended))
                elif ended is not None:
                    self._writing(partial(self._timeline.append, ended))
            now = time.monotonic()
            if now - looked < _LOOK_S and going:
                continue
            looked, before = now, told
            told = self._board.told(self._keep)
            if told != before or now - written > _BEAT_S or not going:
                written = now
                state = {"time": time.time(), "open": going, "screens_dropped": self._dropped, **told}
                self._writing(partial(self._tell, state))

    def _tell(self, state: dict[str, Any]) -> None:
        replace_json(self._directory / f"{LIVE}{self._process}.json", {"process": self._process, **state})

    def _write(self, ended: Ended) -> None:
        size = _size(ended.screens)
        try:
            evaluation = is_evaluation(ended.spec)
            names = [None if image is None else self._keep(image, ended.version, evaluation) for image in ended.screens]
            append_rows(self._directory / f"{self._process}.jsonl", [record_of(ended, names, self._mask)])
        finally:
            with self._lock:
                self._pixels -= size
        system = self._directory / SYSTEM
        if not system.exists():
            system.write_text(self._system, encoding="utf-8")

    def _text(self, decode: Callable[[Sequence[int]], str], token: int) -> str:
        """The text of a token, which a tokenizer takes its time for."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = decode([token])
        return text

    def _keep(self, image: Image.Image, version: int, evaluation: bool) -> str | None:
        try:
            return self._screens.put(image, version, evaluation=evaluation)
        except FileNotFoundError:  # another process made room meanwhile
            return None


def _size(screens: Sequence[Image.Image | None]) -> int:
    """Bytes of their pixels."""
    return sum(3 * image.width * image.height for image in screens if image is not None)
