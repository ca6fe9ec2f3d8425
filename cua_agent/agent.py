"""The agent loop: one episode of any environment with any inference engine."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from cua_agent.acting import act
from cua_agent.actions import Action, Point
from cua_agent.conversation import Codec, Context, Conversation, EpisodeInfo, Screen
from cua_agent.envs.base import Environment, EnvironmentFailure, Forkable, Observation, TellsSideEffects
from cua_agent.image_hash import image_hash
from cua_agent.inference.base import GenerateRequest, GenerateResponse, InferenceEngine, InferenceFailure
from cua_agent.parsing import describe
from cua_agent.prompts import Grounding, PromptStyle, system_prompt
from cua_agent.rewards import RewardValues, SuccessOnly, checked_score, outcome_of, reward_of, turn_rewards
from cua_agent.tasks import CUATask
from cua_agent.touch import touched
from cua_agent.trail import BranchPoint, Trail
from cua_agent.trajectory import Outcome, Trajectory, Turn
from cua_agent.verdict import Verdict, heard

logger = logging.getLogger(__name__)

Seen = Literal["screenshot", "text"]
"""What of a screen the model is shown: its pixels, or its description in words."""


class ContextTooShort(ValueError):  # noqa: N818 (a state of the configuration, not a fault of the program)
    """`max_length` cannot hold a single turn; the message is one line."""


class NoDescription(ValueError):  # noqa: N818 (a state of the configuration, not a fault of the program)
    """The model has to be told what is on the screen, and the environment cannot; the message is one line."""


@dataclass(frozen=True)
class AgentConfig:
    """How the agent looks, speaks and stops.

    `max_turns` bounds every task's own `max_steps`; `max_length` bounds a token row: the episode is out of turns when
    its next turn might not fit. `timeout_s` bounds the whole episode, so that a hanging world cannot stall a run.
    `observation=text` needs an environment that describes its screens. `keep_states`: turns tell the state of the world
    that they acted in.
    """

    observation: Seen = "screenshot"

    grounding: Grounding = "target"
    prompt: PromptStyle = "brief"
    context: Context = "full"
    last_k: int = 3
    max_turns: int = 12
    max_new_tokens: int = 48
    temperature: float = 1.0
    greedy: bool = False
    max_length: int = 2048
    keep_screenshots: bool = False
    keep_states: bool = False
    timeout_s: float = 600.0


@dataclass
class Episode:
    """A finished episode; `trajectories` are its token rows (at least one).

    `score` is how well the goal held at the end (0..1), `failure` why infrastructure lost the episode (outcome
    infra_error only; `EnvironmentFailure` or `InferenceFailure`), `final_screenshot` the last screen and `verdict` what
    the validator asked (with `keep_screenshots` only). `phases`: see `Progress`.
    """

    task: CUATask
    seed: int
    goal: str
    outcome: Outcome
    score: float
    reward: float
    turns: list[Turn]
    trajectories: list[Trajectory] = field(repr=False)
    reset_s: float
    failure: Exception | None = None
    final_screenshot: Image.Image | None = field(default=None, repr=False)
    side_effects: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    phases: list[tuple[str, float]] = field(default_factory=list, repr=False)


@dataclass
class Progress:
    """What an episode has come to; readable at any time, by any thread, also after a failure. `phases` are what it
    waited for, and since when (of `time.time`); `worlds` those that its turns began in, where they are kept."""

    conversation: Conversation
    goal: str
    turns: list[Turn] = field(default_factory=list)
    seen: Observation | None = None
    claimed: bool = False
    world_done: bool = False
    score: float = 0.0
    side_effects: int = 0
    reset_s: float = 0.0
    phases: list[tuple[str, float]] = field(default_factory=lambda: [("starting", time.time())])
    verdict: Verdict = field(default_factory=Verdict)
    worlds: list[object] | None = None

    def wait_for(self, what: str) -> None:
        """The episode goes on when `what` is done."""
        self.phases.append((what, time.time()))

    @property
    def waits_for(self) -> str:
        """What it waits for at present."""
        return self.phases[-1][0]

    @property
    def over(self) -> bool:
        return self.claimed or self.world_done


class StandaloneGBoxCUAAgent:
    """Plays episodes: look at the screen, sample a tool call, act, look again.

    One agent plays one episode at a time, because an environment holds one world. Malformed calls and unknown targets
    cost the turn and are answered with a short error; only programming errors are raised. `system` is what every
    episode begins with, `progress` that of the present or last one.
    """

    def __init__(
        self,
        policy: Codec,
        engine: InferenceEngine,
        environment: Environment,
        config: AgentConfig | None = None,
        reward: RewardValues | None = None,
    ) -> None:
        self._policy = policy
        self._engine = engine
        self._environment = environment
        self._config = config or AgentConfig()
        self._reward = reward or SuccessOnly()
        self.system = system_prompt(self._config.prompt, self._config.grounding, policy.coordinates or "relative")
        self.progress: Progress | None = None

    async def run_episode(self, task: CUATask, seed: int, *, group_id: str, episode_id: str) -> list[Trajectory]:
        """The token rows of one episode; see `play`."""
        return (await self.play(task, seed, group_id=group_id, episode_id=episode_id)).trajectories

    async def play(
        self,
        task: CUATask,
        seed: int,
        *,
        group_id: str,
        episode_id: str,
        begin: BranchPoint | None = None,
        leaves_trail: bool = False,
    ) -> Episode:
        """Play `task` in the world that `seed` determines, or from `begin` on, where another episode of both was.

        `episode_id` must be unique among running episodes; with `seed` it determines the sampling, too. An episode
        that the environment, the engine or the clock breaks off ends as `infra_error`. With `leaves_trail` the
        first row has what others can branch off from; the environment is `Forkable` then, and with `begin`. Raises
        `ContextTooShort` or `NoDescription`.
        """
        config = self._config
        conversation = Conversation(self._policy, self.system, config.context, config.last_k)
        progress = self.progress = Progress(conversation, task.description)
        if begin is not None:
            progress.conversation, progress.goal = begin.trail.conversation.branch(begin.turn), begin.trail.goal
            progress.turns = begin.trail.turns[: begin.turn]
        progress.worlds = [] if leaves_trail else None
        failure: Exception | None = None
        try:
            async with asyncio.timeout(config.timeout_s):
                await self._play(task, seed, episode_id, progress, begin)
            outcome = outcome_of(progress.score, claimed=progress.claimed, world_done=progress.world_done)
        except (EnvironmentFailure, InferenceFailure, TimeoutError) as error:
            failure = self._late(progress, error) if isinstance(error, TimeoutError) else error
            outcome = Outcome.INFRA_ERROR
            logger.warning("episode %s (%s) is lost: %s", episode_id, task.id, failure)
        finally:
            self._engine.release(_conversation_id(episode_id, progress.conversation.row))
        reward = reward_of(outcome, progress.score, self._reward, progress.turns, task, progress.side_effects)
        own = turn_rewards(self._reward, progress.turns, progress.side_effects)
        progress.turns = [replace(turn, reward=each) for turn, each in zip(progress.turns, own, strict=True)]
        fork = None if begin is None else begin.fork
        info = EpisodeInfo(reward, outcome, task.id, group_id, episode_id, seed, progress.score, fork)
        rows = progress.conversation.to_trajectories(info, progress.turns)
        rows[0].trail = _trail(progress, episode_id)
        return Episode(
            task=task,
            seed=seed,
            goal=progress.goal,
            outcome=outcome,
            score=progress.score,
            reward=reward,
            turns=progress.turns,
            trajectories=rows,
            reset_s=progress.reset_s,
            failure=failure,
            final_screenshot=self._kept(progress.seen),
            side_effects=progress.side_effects,
            verdict=progress.verdict,
            phases=progress.phases,
        )

    async def _play(
        self, task: CUATask, seed: int, episode_id: str, progress: Progress, begin: BranchPoint | None
    ) -> None:
        conversation = progress.conversation
        started = time.monotonic()
        played = task
        if self._config.keep_screenshots:
            played, progress.verdict = heard(task)
        if begin is None:
            seen = progress.seen = await self._environment.reset(played, seed)
            progress.goal = seen.text or task.description
            conversation.start(progress.goal, screen_of(seen, self._config.observation))
        else:
            progress.verdict.start = begin.trail.verdict.start
            seen = progress.seen = await self._forkable.restore(played, begin.world)
        progress.reset_s = time.monotonic() - started
        turn_limit = min(task.max_steps, self._config.max_turns)
        while self._has_room(conversation):
            seen = await self._take_turn(seed, episode_id, progress, seen)
            if progress.over or len(progress.turns) == turn_limit:
                break
            row = conversation.row
            conversation.observe(seen.text, screen_of(seen, self._config.observation))
            if conversation.row != row:
                self._engine.release(_conversation_id(episode_id, row))
        progress.wait_for("scoring")
        progress.score = checked_score(await self._environment.compute_reward(), task)
        progress.side_effects = await side_effects_of(self._environment, self._reward)

    @property
    def _forkable(self) -> Forkable:
        """The environment, of a world that says so."""
        environment: Any = self._environment
        return environment  # type: ignore[no-any-return]

    def _late(self, progress: Progress, error: TimeoutError) -> EnvironmentFailure:
        """Nobody knows what the world is doing: it is not fit for another episode."""
        where = f"after {len(progress.turns)} turns, while {progress.waits_for}"
        ours = f"no end within {self._config.timeout_s:g} s (rollout.episode_timeout_s), {where}"
        late = EnvironmentFailure(str(error) or ours)  # one of the world's own has words
        late.__cause__ = error
        return late

    def _has_room(self, conversation: Conversation) -> bool:
        needed = len(conversation.prompt()[0]) + self._config.max_new_tokens
        if needed > self._config.max_length and conversation.turns == 0:
            raise ContextTooShort(
                f"max_length={self._config.max_length} cannot hold one turn, which may take {needed} tokens"
            )
        return needed <= self._config.max_length

    async def _take_turn(self, seed: int, episode_id: str, progress: Progress, seen: Observation) -> Observation:
        """Sample one turn, act on it, record it; returns what is seen afterwards."""
        if progress.worlds is not None:
            progress.worlds.append(await self._forkable.snapshot())
        started = time.monotonic()
        progress.wait_for("sampling")
        response = await self._generate(seed, episode_id, progress.conversation)
        progress.wait_for("acting")
        text = self._text_of(response)
        generated = time.monotonic()
        truncated = response.stop_reason == "length"
        width, height = seen.screenshot.size
        effect = await act(
            self._environment,
            self._policy.reply_prefix + text,
            seen,
            self._config.grounding,
            self._policy.coordinate_space(height, width),
            truncated=truncated,
        )
        progress.claimed, progress.world_done = effect.claimed, effect.world_done
        point, kept = _point_of(effect.executed), self._kept(seen)
        progress.seen = effect.observation
        progress.turns.append(
            Turn(
                text=text,
                action=None if effect.action is None else describe(effect.action),
                result=effect.observation.text,
                generate_s=generated - started,
                env_s=time.monotonic() - generated,
                point=point,
                truncated=truncated,
                state=state_seen(seen) if self._config.keep_states else None,
                screenshot=kept,
                touch=touched(seen.places, point) if kept and seen.places and point else (),
            )
        )
        return effect.observation

    async def _generate(self, seed: int, episode_id: str, conversation: Conversation) -> GenerateResponse:
        input_ids, images = conversation.prompt()
        request = GenerateRequest(
            conversation_id=_conversation_id(episode_id, conversation.row),
            input_ids=input_ids,
            images=images,
            max_new_tokens=self._config.max_new_tokens,
            temperature=self._config.temperature,
            greedy=self._config.greedy,
            seed=sampling_seed(seed, episode_id, conversation.turns),
        )
        response = await self._engine.generate(request)
        conversation.add_response(response)
        return response

    def _kept(self, seen: Observation | None) -> Image.Image | None:
        """The screen that a record of the episode shows."""
        shown = seen is not None and self._config.keep_screenshots and not seen.private
        return seen.screenshot if seen is not None and shown else None

    def _text_of(self, response: GenerateResponse) -> str:
        """What the model wrote, without the token that ended its turn."""
        ids = response.output_ids
        return self._policy.decode(ids[:-1] if ids and ids[-1] in self._policy.special.stop_ids else ids)


def _trail(progress: Progress, episode_id: str) -> Trail | None:
    """What an episode came through, where its worlds were kept."""
    if progress.worlds is None:
        return None
    return Trail(episode_id, progress.goal, progress.conversation, progress.turns, progress.worlds, progress.verdict)


async def side_effects_of(environment: Environment, values: RewardValues) -> int:
    """What the episode changed besides its goal; asked only where that costs something."""
    asked = values.side_effect_cost > 0 and isinstance(environment, TellsSideEffects)
    return await environment.side_effects() if asked else 0  # type: ignore[attr-defined]


def state_seen(observation: Observation) -> str:
    """The name of the world's state: as the environment tells it, else that of the pixels."""
    return observation.state or image_hash(np.asarray(observation.screenshot.convert("RGB")))


def screen_of(observation: Observation, seen: Seen) -> Screen:
    """What of `observation` the model is shown. Raises `NoDescription`."""
    if seen == "screenshot":
        picture = observation.screenshot
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"), dtype=np.uint8)
    if observation.description is None:
        raise NoDescription("observation=text: this environment cannot tell its screens in words")
    return observation.description


def sampling_seed(seed: int, episode_id: str, turn: int) -> int:
    """Seed of one turn's sampling, the same in every process: 63 bits of a hash of its arguments."""
    digest = hashlib.blake2b(f"{seed}/{episode_id}/{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _conversation_id(episode_id: str, row: int) -> str:
    # A new row does not continue the former one, so no cache of it may be reused.
    return f"{episode_id}/{row}"


def _point_of(action: Action | None) -> tuple[int, int] | None:
    """Where `action` acts, or starts."""
    for name in ("at", "start"):
        point = getattr(action, name, None)
        if isinstance(point, Point):
            return point.x, point.y
    return None
