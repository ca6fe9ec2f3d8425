"""The agent loop against scripted engines and worlds."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cua_agent.actions import Action, Coordinates, Point, ReportTaskComplete, Swipe, Tap, Target, TypeText, Wait
from cua_agent.agent import AgentConfig, Episode, StandaloneGBoxCUAAgent, sampling_seed, state_seen
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.image_hash import image_hash
from cua_agent.inference.base import GenerateRequest, GenerateResponse, InferenceFailure
from cua_agent.parsing import Malformed, parse_tool_call, render_tool_call
from cua_agent.trajectory import Outcome
from tests.agent_fakes import ByteCodec, ScriptedEngine, ScriptedEnvironment, screenshot, task

CODEC = ByteCodec()
CONFIG = AgentConfig(max_length=20_000, keep_screenshots=True)
DONE = render_tool_call(ReportTaskComplete())
TAP = render_tool_call(Tap(Target("Wi-Fi")))
WIFI = {"Wi-Fi": Point(500, 300)}


def play(
    script: list[str | Exception],
    environment: ScriptedEnvironment,
    max_steps: int = 5,
    config: AgentConfig = CONFIG,
    engine: ScriptedEngine | None = None,
    codec: ByteCodec = CODEC,
) -> tuple[Episode, ScriptedEngine]:
    engine = engine or ScriptedEngine(script)
    agent = StandaloneGBoxCUAAgent(codec, engine, environment, config)
    episode = asyncio.run(agent.play(task(max_steps), 3, group_id="g", episode_id="e"))
    for row in episode.trajectories:
        assert (row.outcome, row.reward, row.seed) == (episode.outcome, episode.reward, 3)
        assert (row.task_id, row.group_id, row.episode_id) == ("wifi/on", "g", "e")
    return episode, engine


def last_prompt(engine: ScriptedEngine) -> str:
    return CODEC.decode(engine.requests[-1].input_ids)


def test_a_successful_episode() -> None:
    environment = ScriptedEnvironment(WIFI, score=1.0)
    episode, engine = play([TAP, DONE], environment)
    assert (episode.outcome, episode.reward, episode.score, episode.failure) == (Outcome.SUCCESS, 1.0, 1.0, None)
    assert environment.actions == [Tap(Point(500, 300))]
    tap, done = episode.turns
    assert (tap.action, tap.point, tap.result, tap.text) == ("tap target=Wi-Fi", (500, 300), "", TAP)
    assert (done.action, done.point) == ("report_task_complete", None)
    assert tap.generate_s >= 0 and tap.env_s >= 0
    (row,) = episode.trajectories
    assert [image[0, 0, 0] for image in row.images] == [0, 1]
    assert CODEC.decode(row.input_ids[row.loss_mask == 1].tolist()) == f"{TAP}<|im_end|>{DONE}<|im_end|>"
    assert set(row.versions[row.loss_mask == 1]) == {7}
    assert engine.released == ["e/0"]
    assert episode.final_screenshot is not None and isinstance(tap.screenshot, Image.Image)


def test_each_request_extends_the_former_one() -> None:
    _, engine = play([TAP, "nonsense", TAP, DONE], ScriptedEnvironment(WIFI))
    assert len(engine.requests) == 4
    for before, after in zip(engine.requests, engine.requests[1:], strict=False):
        answer = after.input_ids[len(before.input_ids) :]
        assert after.input_ids[: len(before.input_ids)] == before.input_ids
        assert CODEC.decode(answer).startswith((TAP, "nonsense"))
        assert len(after.images) == len(before.images) + 1


def test_the_goal_is_the_environments_when_it_states_one() -> None:
    episode, engine = play([DONE], ScriptedEnvironment(goal='Click "Ok".'))
    assert episode.goal == 'Click "Ok".'
    assert 'user\nClick "Ok".<|vision_start|>' in last_prompt(engine)
    _, engine = play([DONE], ScriptedEnvironment())
    assert "user\nTurn Wi-Fi on<|vision_start|>" in last_prompt(engine)


def test_a_claim_that_does_not_hold() -> None:
    episode, _ = play([DONE], ScriptedEnvironment(score=0.0))
    assert (episode.outcome, episode.reward, len(episode.turns)) == (Outcome.FALSE_CLAIM, 0.0, 1)


@pytest.mark.parametrize(("max_steps", "max_turns", "turns"), [(4, 12, 4), (20, 3, 3)])
def test_a_blind_loop_runs_out_of_turns(max_steps: int, max_turns: int, turns: int) -> None:
    environment = ScriptedEnvironment(WIFI, score=1.0)  # the goal holds, but the agent never says so
    episode, engine = play([TAP], environment, max_steps, replace(CONFIG, max_turns=max_turns))
    assert (episode.outcome, episode.reward, episode.score) == (Outcome.OUT_OF_TURNS, 0.0, 1.0)
    assert len(episode.turns) == len(engine.requests) == len(environment.actions) == turns
    assert len(episode.trajectories[0].images) == turns


@pytest.mark.parametrize(("score", "outcome", "reward"), [(1.0, Outcome.SUCCESS, 1.0), (0.5, Outcome.FAILURE, 0.0)])
def test_worlds_that_end_by_themselves(score: float, outcome: Outcome, reward: float) -> None:
    def end(_: Action) -> StepResult:
        return StepResult(Observation(screenshot(9)), done=True)

    episode, _ = play([TAP], ScriptedEnvironment(WIFI, score=score, behaviour=end))
    assert (episode.outcome, episode.reward, len(episode.turns)) == (outcome, reward, 1)


def test_an_unknown_target_costs_the_turn() -> None:
    environment = ScriptedEnvironment(WIFI)
    episode, engine = play([render_tool_call(Tap(Target("Foo" * 40))), DONE], environment)
    assert environment.actions == []
    assert episode.turns[0].result == f'error: no element called "{("Foo" * 40)[:60]}"'
    assert episode.turns[0].action == f"tap target={'Foo' * 40}"
    assert episode.turns[0].point is None
    assert episode.turns[0].result in last_prompt(engine)
    first, second = episode.trajectories[0].images
    assert (first == second).all()


def test_every_target_of_an_action_is_grounded() -> None:
    environment = ScriptedEnvironment({"a": Point(1, 2), "b": Point(3, 4)})
    swipe = render_tool_call(Swipe(Target("a"), Target("b")))
    typed = render_tool_call(TypeText("x", Target("b")))
    episode, _ = play([swipe, typed, render_tool_call(Wait(1)), DONE], environment)
    assert environment.actions == [Swipe(Point(1, 2), Point(3, 4)), TypeText("x", Point(3, 4)), Wait(1)]
    assert [turn.point for turn in episode.turns] == [(1, 2), (3, 4), None, None]


def test_coordinates_are_not_helped_by_the_grounder() -> None:
    environment = ScriptedEnvironment(WIFI)
    config = replace(CONFIG, grounding="coordinates")
    episode, _ = play([TAP, render_tool_call(Tap(Point(9, 8))), DONE], environment, config=config)
    assert "coordinate" in episode.turns[0].result
    assert environment.actions == [Tap(Point(9, 8))]


def test_refused_actions_are_told_to_the_model() -> None:
    def refuse(_: Action) -> StepResult:
        return StepResult(Observation(screenshot(), "nothing is focused"), error="nothing is focused")

    _, engine = play([TAP, DONE], ScriptedEnvironment(WIFI, behaviour=refuse))
    assert "<tool_response>\nnothing is focused\n</tool_response>" in last_prompt(engine)


def test_a_turn_cut_off_by_its_token_limit_is_closed_in_the_next_prompt() -> None:
    engine = ScriptedEngine(['<tool_call>\n{"name": "perf', DONE], ended=False)
    episode, _ = play([], ScriptedEnvironment(), engine=engine)
    assert episode.turns[0].result == "error: the turn was cut off at the token limit before its call was complete"
    assert '{"name": "perf<|im_end|>\n<|im_start|>user' in last_prompt(engine)
    (row,) = episode.trajectories
    assert CODEC.special.end_of_turn_id not in row.input_ids[row.loss_mask == 1]


class ThinkingCodec(ByteCodec):
    reply_prefix = "<think>\n"


def test_a_thought_is_opened_by_the_prompt_and_trained_from_there_on() -> None:
    thought = "I might <tool_call>{} something.\n</think>\n\n"
    engine = ScriptedEngine([thought + TAP, "Now it", thought + DONE])
    episode, _ = play([], ScriptedEnvironment(WIFI, score=1.0), engine=engine, codec=ThinkingCodec())
    assert [turn.text for turn in episode.turns] == [thought + TAP, "Now it", thought + DONE]
    assert [turn.action for turn in episode.turns] == ["tap target=Wi-Fi", None, "report_task_complete"]
    assert episode.turns[1].result == "error: <think> is not closed by </think>"
    for request in engine.requests:
        assert CODEC.decode(request.input_ids).endswith("<|im_start|>assistant\n<think>\n")
    (row,) = episode.trajectories
    trained = CODEC.decode(row.input_ids[row.loss_mask == 1])
    assert "<think>" not in trained and trained.startswith(thought)


def test_a_thought_that_is_cut_off_is_told_and_counted() -> None:
    engine = ScriptedEngine(["The screen shows"], ended=False)
    episode, _ = play([], ScriptedEnvironment(WIFI), 1, engine=engine, codec=ThinkingCodec())
    assert (
        episode.turns[0].result == "error: <think> is not closed by </think>: the turn was cut off at the token limit"
    )
    assert episode.turns[0].truncated


class PixelCodec(ByteCodec):
    coordinates: Coordinates = "absolute"


def test_positions_in_pixels_are_those_of_the_resized_screenshot() -> None:
    """The codec doubles the screenshots of 8 by 12 pixels: (8, 18) is (4, 9) of the screen."""
    environment = ScriptedEnvironment()
    tap = '<tool_call>{"name": "perform_action", "arguments": {"action": "tap", "coordinate": [8, 18]}}</tool_call>'
    config = replace(CONFIG, grounding="coordinates", prompt="full")
    _, engine = play([tap, DONE], environment, config=config, codec=PixelCodec())
    (done,) = environment.actions
    assert isinstance(done, Tap) and isinstance(done.at, Point) and done.at.to_pixels(8, 12) == (4, 9)
    assert "[x, y], in pixels of the screenshot as you see it" in last_prompt(engine)


@pytest.mark.parametrize(("ended", "cut"), [(True, [False, False]), (False, [True, True])])
def test_a_turn_says_whether_the_token_limit_cut_it_off(ended: bool, cut: list[bool]) -> None:
    episode, _ = play([], ScriptedEnvironment(WIFI), engine=ScriptedEngine([TAP, DONE], ended=ended))
    assert [turn.truncated for turn in episode.turns] == cut
    assert [turn.truncated for row in episode.trajectories for turn in row.turns] == cut


def test_the_end_of_text_ends_a_turn_and_is_no_part_of_what_was_said() -> None:
    engine = ScriptedEngine([TAP + "<|endoftext|>", DONE + "<|endoftext|>"], ended=False)
    episode, _ = play([], ScriptedEnvironment(WIFI), engine=engine)
    assert [turn.text for turn in episode.turns] == [TAP, DONE]
    assert f"{TAP}<|endoftext|><|im_end|>\n<|im_start|>user" in last_prompt(engine)


def raising(error: Exception) -> ScriptedEnvironment:
    def fail(_: Action) -> StepResult:
        raise error

    return ScriptedEnvironment(WIFI, score=1.0, behaviour=fail)


@pytest.mark.parametrize(
    ("script", "environment", "tokens"),
    [
        ([TAP], raising(EnvironmentFailure("dead box")), True),
        ([TAP], raising(TimeoutError()), True),
        ([TAP], ScriptedEnvironment(reset_error=EnvironmentFailure("no box")), False),
        ([InferenceFailure("server gone")], ScriptedEnvironment(), False),
        ([TAP, InferenceFailure("server gone")], ScriptedEnvironment(WIFI), True),
    ],
)
def test_infrastructure_loses_an_episode_without_raising(
    script: list[str | Exception], environment: ScriptedEnvironment, tokens: bool
) -> None:
    episode, engine = play(script, environment)
    assert (episode.outcome, episode.reward) == (Outcome.INFRA_ERROR, 0.0)
    assert isinstance(episode.failure, EnvironmentFailure | InferenceFailure)
    assert [len(row) > 0 for row in episode.trajectories] == [tokens]
    assert engine.released == ["e/0"]


def test_a_hanging_world_is_given_up() -> None:
    class Hanging(ScriptedEnvironment):
        async def step(self, action: Action) -> StepResult:
            await asyncio.sleep(60)
            raise AssertionError

    episode, _ = play([TAP], Hanging(WIFI), config=replace(CONFIG, timeout_s=0.05))
    assert episode.outcome is Outcome.INFRA_ERROR
    assert isinstance(episode.failure, EnvironmentFailure)
    why = "no end within 0.05 s (rollout.episode_timeout_s), after 0 turns, while acting"
    assert str(episode.failure) == why


@pytest.mark.parametrize("error", [ZeroDivisionError(), ValueError("bug"), asyncio.CancelledError()])
def test_programming_errors_and_cancellation_are_raised(error: Any) -> None:
    engine = ScriptedEngine([TAP])
    with pytest.raises(type(error)):
        play([], raising(error), engine=engine)
    assert engine.released == ["e/0"]


def test_max_length_ends_the_episode_cleanly() -> None:
    environment = ScriptedEnvironment(WIFI)
    config = replace(CONFIG, max_length=1500, max_turns=50, max_new_tokens=len(CODEC.encode(TAP)) + 1)
    episode, _ = play([TAP], environment, max_steps=50, config=config)
    (row,) = episode.trajectories
    assert episode.outcome is Outcome.OUT_OF_TURNS
    assert 1 < len(episode.turns) == len(environment.actions) == len(row.images) < 50
    assert 1500 - 400 < len(row) <= 1500
    assert row.input_ids[-1] == CODEC.special.end_of_turn_id and row.loss_mask[-1] == 1


def test_a_max_length_below_one_turn_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_length=100 cannot hold one turn"):
        play([TAP], ScriptedEnvironment(), config=replace(CONFIG, max_length=100))


def test_last_k_rows_are_separate_conversations() -> None:
    config = replace(CONFIG, context="last_k", last_k=2)
    episode, engine = play([TAP, TAP, TAP, DONE], ScriptedEnvironment(WIFI, score=1.0), config=config)
    assert [request.conversation_id for request in engine.requests] == ["e/0", "e/0", "e/1", "e/2"]
    assert engine.released == ["e/0", "e/1", "e/2"]
    assert [len(request.images) for request in engine.requests] == [1, 2, 2, 2]
    assert [len(row.turns) for row in episode.trajectories] == [2, 1, 1]
    assert sum(row.weight for row in episode.trajectories) == pytest.approx(1)


def test_sampling_is_reproducible_and_differs_by_episode_and_turn() -> None:
    assert sampling_seed(3, "e", 0) == 2_299_379_460_686_492_013  # stable over processes and versions
    seeds = {sampling_seed(seed, f"e{episode}", turn) for seed in range(5) for episode in range(5) for turn in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
    _, engine = play([TAP, DONE], ScriptedEnvironment(WIFI))
    assert [request.seed for request in engine.requests] == [sampling_seed(3, "e", 0), sampling_seed(3, "e", 1)]


def test_sampling_settings_reach_the_engine() -> None:
    config = replace(CONFIG, temperature=0.7, greedy=True, max_new_tokens=11)
    _, engine = play([DONE], ScriptedEnvironment(), config=config)
    request = engine.requests[0]
    assert (request.temperature, request.greedy, request.max_new_tokens) == (0.7, True, 11)


def test_screenshots_are_dropped_unless_asked_for() -> None:
    episode, _ = play([TAP, DONE], ScriptedEnvironment(WIFI), config=replace(CONFIG, keep_screenshots=False))
    assert episode.final_screenshot is None
    assert [turn.screenshot for turn in episode.turns] == [None, None]


def malformed_calls(count: int) -> list[str]:
    """Valid calls broken in every way: bytes cut, doubled, replaced, and values that no field allows."""
    rng = random.Random(0)
    valid = [TAP, DONE, render_tool_call(Swipe(Point(1, 2), Point(3, 4))), render_tool_call(TypeText("a", Target("b")))]
    absurd = ["1e308", "NaN", "-5", "true", '"x"', "[" * 3000, "{}", "null", "[1e999, 2]", '"' + "x" * 3000 + '"']
    calls: list[str] = []
    while len(calls) < count:
        text = rng.choice(valid)
        start, end = sorted((rng.randrange(len(text)), rng.randrange(len(text))))
        match rng.randrange(4):
            case 0:
                text = text[:start]
            case 1:
                text = text[:start] + text[end:]
            case 2:
                text = text[:end] + text[start:]
            case _:
                text = '<tool_call>\n{"name": "perform_action", "arguments": {"action": "tap", "coordinate": '
                text += f"[{rng.choice(absurd)}, {rng.choice(absurd)}]}}}}\n</tool_call>"
        if isinstance(parse_tool_call(text), Malformed):
            calls.append(text)
    return calls


class EndlessEngine(ScriptedEngine):
    """Keeps no requests: a thousand growing prompts would fill the memory."""

    count = 0

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        entry = self.script[self.count]
        self.count += 1
        assert isinstance(entry, str)
        ids = CODEC.encode(entry)
        return GenerateResponse(ids, [0.0] * len(ids), [0] * len(ids), "length")


@pytest.mark.slow
def test_a_thousand_malformed_calls_cost_a_turn_each() -> None:
    calls, turns = malformed_calls(1000), 20
    engine = EndlessEngine(calls)
    environment = ScriptedEnvironment(WIFI)
    config = replace(CONFIG, max_turns=turns, max_length=10**9)
    for _ in range(len(calls) // turns):
        episode, _ = play([], environment, turns, config, engine)
        assert episode.outcome is Outcome.OUT_OF_TURNS
        assert [turn.action for turn in episode.turns] == [None] * turns
        assert all(turn.result.startswith("error: ") and len(turn.result) < 130 for turn in episode.turns)
        assert environment.actions == []
    assert engine.count == 1000


def test_turns_name_the_state_that_they_acted_in_when_asked() -> None:
    plain, _ = play([TAP, DONE], ScriptedEnvironment(WIFI))
    assert {turn.state for turn in plain.turns} == {None}
    seen, _ = play([TAP, DONE], ScriptedEnvironment(WIFI), config=replace(CONFIG, keep_states=True))
    shown = [np.asarray(turn.screenshot) for turn in seen.turns if turn.screenshot]
    assert [turn.state for turn in seen.turns] == [image_hash(pixels) for pixels in shown]
    assert state_seen(Observation(screenshot(), state="told")) == "told"
