"""One episode as token rows: token in, token out.

What the model sampled is kept as it was sampled and never re-tokenised; every prompt is the former prompt and answer
plus new tokens. `context=full` keeps all screenshots, so an episode is one row. `context=last_k` shows the last k
screenshots only: the text of older turns stays, their screenshots go. Turns whose prompt still begins with the former
row continue that row; as soon as a screenshot has to go, a new row begins. Turns 1..k are therefore one row and every
later turn is a row of its own, whose loss mask holds that turn's tokens only: each sampled token is trained once.
`context=folded` shows at most k screenshots, too, but lets k of them go at a time: every k turns are one row.

A model without eyes is shown each screen in words instead; the words come and go like the screenshots.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from cua_agent.actions import Coordinates, Space
from cua_agent.inference.base import GenerateResponse
from cua_agent.prompts import first_prompt, next_prompt
from cua_agent.trajectory import NO_VERSION, Fork, Outcome, Trajectory, Turn

Context = Literal["full", "last_k", "folded"]
Screenshot = npt.NDArray[np.uint8]
Screen = Screenshot | str
"""What a turn is shown: pixels (uint8 [H, W, 3]), or the screen in words."""


class SpecialIds(Protocol):
    """Token ids that a conversation has to know."""

    @property
    def image_token_id(self) -> int:
        """The placeholder that stands for a patch of an image."""
        ...

    @property
    def end_of_turn_id(self) -> int:
        """What ends a turn in the chat format."""
        ...

    @property
    def stop_ids(self) -> Sequence[int]:
        """Whatever ends the model's turn; the end of turn is one of them."""
        ...


class Codec(Protocol):
    """The part of a policy model that turns text into tokens and back."""

    @property
    def special(self) -> SpecialIds:
        """Ids with a meaning of their own."""
        ...

    @property
    def coordinates(self) -> Coordinates | None:
        """How the model writes positions; None where nobody knows."""
        ...

    @property
    def reply_prefix(self) -> str:
        """What stands in the prompt before each of the model's turns."""
        ...

    def coordinate_space(self, height: int, width: int) -> Space | None:
        """What positions on a [height, width] screenshot are measured in; None: 0..1000."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens written in it are recognised."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        ...

    def image_tokens(self, height: int, width: int) -> int:
        """How many placeholders an image takes."""
        ...


@dataclass(frozen=True)
class EpisodeInfo:
    """What all rows of an episode have in common."""

    reward: float
    outcome: Outcome
    task_id: str
    group_id: str
    episode_id: str
    seed: int
    score: float = 0.0
    fork: Fork | None = None


@dataclass
class _Exchange:
    """A prompt in both forms, with its screen and without, and the model's answer to it."""

    prompt: list[int]
    prompt_without_screen: list[int]
    image: Screenshot | None = field(repr=False)
    response: GenerateResponse | None = None


class Conversation:
    """The growing token row (or rows) of one episode.

    Call `start`, then for every turn: `prompt`, `add_response` and, when the episode goes on, `observe`.
    """

    def __init__(self, codec: Codec, system: str, context: Context = "full", last_k: int = 3) -> None:
        if context != "full" and last_k < 1:
            raise ValueError(f"last_k={last_k} must be at least 1")
        self._codec = codec
        self._system = system
        self._context = context
        self._last_k = last_k
        self._exchanges: list[_Exchange] = []
        self._former: list[int] = []  # the present row up to and including the last answer
        self._given = 0  # turns of another conversation that this one branched off

    def start(self, goal: str, screen: Screen) -> None:
        """Open with the goal and the first screen."""
        if self._exchanges:
            raise ValueError("the conversation has started already")
        prompt = partial(first_prompt, self._system, goal, prefix=self._codec.reply_prefix)
        self._append(prompt(*self._shown(screen)), prompt(0), screen)

    def observe(self, result: str, screen: Screen) -> None:
        """Answer the model's last turn with a result text (empty: "ok") and a new screen."""
        response = self._exchanges[-1].response if self._exchanges else None
        if response is None:
            raise ValueError("there is no model turn to answer")
        ended = response.output_ids[-1:] == [self._codec.special.end_of_turn_id]
        prompt = partial(next_prompt, result, ended=ended, prefix=self._codec.reply_prefix)
        n, words = self._shown(screen)
        self._append(prompt(n, screen=words), prompt(0), screen)

    def _append(self, text: str, text_without_screen: str, screen: Screen) -> None:
        encode, image = self._codec.encode, None if isinstance(screen, str) else screen
        without_screen = (
            [] if self._context == "full" else encode(text_without_screen)
        )  # with all screens nobody asks for it
        self._exchanges.append(_Exchange(encode(text), without_screen, image))
        if not self._shares_row(self.turns):
            self._former = []

    def branch(self, turn: int) -> Conversation:
        """Another one that has the same turns before `turn`, which is to be answered next; those it does not train."""
        other = copy.copy(self)
        other._exchanges = [*self._exchanges[:turn], replace(self._exchanges[turn], response=None)]
        other._given = turn
        other._former = other._tokens(turn - 1, answered=True)[0] if other._shares_row(turn) else []
        return other

    @property
    def turns(self) -> int:
        """Model turns so far."""
        return sum(exchange.response is not None for exchange in self._exchanges)

    @property
    def row(self) -> int:
        """Index of the row that the next turn belongs to."""
        return self._row(len(self._exchanges) - 1)

    def prompt(self) -> tuple[list[int], list[Screenshot]]:
        """Token ids and screenshots to sample the next turn from; extends the former turn exactly within a row."""
        turn = len(self._exchanges) - 1
        ids, _ = self._tokens(turn)
        if ids[: len(self._former)] != self._former:
            raise AssertionError(f"turn {turn}: the prompt does not begin with the former prompt and answer")
        return ids, self._images(turn)

    def add_response(self, response: GenerateResponse) -> None:
        """Append what the model sampled. Raises `ValueError` when the engine's answer cannot be trained on."""
        n = len(response.output_ids)
        if not (n == len(response.logprobs) == len(response.versions)):
            raise ValueError(
                f"{n} sampled tokens, {len(response.logprobs)} logprobs, {len(response.versions)} versions"
            )
        if self._codec.special.image_token_id in response.output_ids:
            raise ValueError("the engine sampled an image placeholder, which must be banned")
        self._former = [*self.prompt()[0], *response.output_ids]
        self._exchanges[-1].response = response

    def to_trajectories(self, info: EpisodeInfo, turns: Sequence[Turn] = ()) -> list[Trajectory]:
        """The rows of the episode, at least one; a prompt that was never answered is left out.

        An episode that broke before the model's first token is a single row of length 0. `turns[i]` is the record of
        turn i and goes to the row that trains it.
        """
        answered = self.turns
        count = max(1, self._row(answered - 1) + 1)
        rows = [[turn for turn in range(self._given, answered) if self._row(turn) == row] for row in range(count)]
        rows = [row for row in rows if row] or [[]]
        return [self._trajectory(trained, info, turns, weight=1 / len(rows)) for trained in rows]

    def _trajectory(self, trained: list[int], info: EpisodeInfo, turns: Sequence[Turn], weight: float) -> Trajectory:
        ids, spans = self._tokens(trained[-1], answered=True) if trained else ([], [])
        mask = np.zeros(len(ids), np.int32)
        logprobs = np.zeros(len(ids), np.float32)
        versions = np.full(len(ids), NO_VERSION, np.int32)
        for turn in trained:
            response = self._exchanges[turn].response
            assert response is not None
            mask[spans[turn]] = 1
            logprobs[spans[turn]] = response.logprobs
            versions[spans[turn]] = response.versions
        return Trajectory(
            input_ids=np.array(ids, np.int64),
            loss_mask=mask,
            logprobs=logprobs,
            versions=versions,
            images=self._images(trained[-1]) if trained else [],
            turns=tuple(turns[t] for t in trained if t < len(turns)),
            weight=weight,
            **vars(info),
        )

    def _tokens(self, turn: int, answered: bool = False) -> tuple[list[int], list[slice]]:
        """Ids of the row at `turn`, up to its prompt or its answer, and the span of each answer in it."""
        first = self._first_shown(turn)
        ids: list[int] = []
        spans: list[slice] = []
        for index, exchange in enumerate(self._exchanges[: turn + 1]):
            ids += exchange.prompt if index >= first else exchange.prompt_without_screen
            if exchange.response is not None and (index < turn or answered):
                spans.append(slice(len(ids), len(ids) + len(exchange.response.output_ids)))
                ids += exchange.response.output_ids
        return ids, spans

    def _images(self, turn: int) -> list[Screenshot]:
        shown = self._exchanges[self._first_shown(turn) : turn + 1]
        return [exchange.image for exchange in shown if exchange.image is not None]

    def _shown(self, screen: Screen) -> tuple[int, str]:
        """A screen as prompts take it: the number of image tokens, and words."""
        if isinstance(screen, str):
            return 0, screen
        height, width, _ = screen.shape
        return self._codec.image_tokens(height, width), ""

    def _first_shown(self, turn: int) -> int:
        """The oldest turn whose screen is shown at `turn`."""
        return self._row(turn) * (self._last_k if self._context == "folded" else 1)

    def _shares_row(self, turn: int) -> bool:
        """Whether `turn` goes on with the row of the turn before it."""
        return turn > 0 and self._first_shown(turn) == self._first_shown(turn - 1)

    def _row(self, turn: int) -> int:
        """Index of the row that trains `turn`."""
        if self._context == "full":
            return 0
        return turn // self._last_k if self._context == "folded" else max(0, turn - self._last_k + 1)
