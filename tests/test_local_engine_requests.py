"""How the in-process engine begins and ends: limits, failures, cancelled and malformed requests, event loops."""

import asyncio
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import tiny_random
import torch

from cua_agent.inference.base import GenerateRequest, GenerateResponse, InferenceFailure
from cua_agent.inference.local import LocalEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from tests.local_engine_rig import Episode, assert_exact, many, policy, serve


def test_the_conversation_may_not_outgrow_the_model() -> None:
    long = Episode("long", [("x" * 30, None, 50)])
    full = Episode("full", [("x" * 90, None, 50)])
    other = Episode("other", [("hi", None, 5)])
    model = policy()

    async def run() -> list[GenerateResponse]:
        engine = LocalEngine(model, max_length=70)
        requests = []
        for episode in (long, full, other):
            episode.observe(model, *episode.turns[0][:2])
            requests.append(episode.request(episode.turns[0][2]))
        return await asyncio.gather(*(engine.generate(request) for request in requests))

    cut, none, whole = asyncio.run(run())
    assert cut.stop_reason == "length" and len(cut.output_ids) <= 70 - len(long.ids)
    assert none == GenerateResponse([], [], [], "length")
    assert len(whole.output_ids) >= 1


def test_every_token_that_the_model_stops_with_ends_a_turn() -> None:
    model = policy()

    def answer(served: PolicyModel) -> GenerateResponse:
        episode = Episode("e", [])
        episode.observe(served, "hi", None)
        return asyncio.run(LocalEngine(served).generate(episode.request(20)))

    whole = answer(model)
    first = whole.output_ids[0]
    special = replace(model.special, stop_ids=(model.special.end_of_turn_id, first))
    assert answer(replace(model, special=special)) == GenerateResponse([first], whole.logprobs[:1], [0], "stop")


def test_engine_serves_one_event_loop_after_another_and_sleeps_when_idle() -> None:
    model = policy()
    engine = LocalEngine(model)
    steps = 0
    step = engine._step

    def counting() -> None:
        nonlocal steps
        steps += 1
        step()

    engine._step = counting  # type: ignore[method-assign]
    episode = Episode("a", [])

    async def one_turn() -> None:
        episode.observe(model, "hi", (64, 64))
        episode.record(await engine.generate(episode.request(3)))
        used = steps
        for _ in range(50):
            await asyncio.sleep(0)
        assert steps == used

    async def abandoned() -> None:
        task = asyncio.create_task(engine.generate(Episode("b", [], ids=[1, 2]).request(30)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(one_turn())
    asyncio.run(abandoned())
    asyncio.run(one_turn())
    episode.turns = [("hi", None, 3)] * 2
    assert_exact(model, [episode])


def test_a_failing_step_reaches_every_waiting_episode_and_the_engine_recovers() -> None:
    model = policy()
    engine = LocalEngine(model)
    good, broken = many(3), many(3)

    async def run() -> list[Any]:
        forward = engine._forward.decode
        engine._forward.decode = _raise  # type: ignore[method-assign]
        failures = await asyncio.gather(*(e.run(model, engine) for e in broken), return_exceptions=True)
        engine._forward.decode = forward  # type: ignore[method-assign]
        await asyncio.gather(*(e.run(model, engine) for e in good))
        return failures

    failures = asyncio.run(run())
    assert all(isinstance(failure, InferenceFailure) and "out of luck" in str(failure) for failure in failures)
    assert_exact(model, good)


def _raise(rows: Any) -> Any:
    raise RuntimeError("out of luck")


def test_not_a_number_is_a_failure_not_a_sample() -> None:
    model = load_policy(str(tiny_random.build(Path(mkdtemp()))))
    with torch.no_grad():
        next(model.base_model.lm_head.parameters()).fill_(torch.nan)
    with pytest.raises(InferenceFailure, match="not finite"):
        serve(model, many(1))


def test_cancelled_and_released_turns_leave_the_others_alone() -> None:
    model = policy()
    episodes = many(6)

    async def run() -> None:
        engine = LocalEngine(model)
        tasks = [asyncio.create_task(episode.run(model, engine)) for episode in episodes]
        for _ in range(8):
            await asyncio.sleep(0)
        tasks[1].cancel()
        engine.release("e2")
        engine.release("unknown")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [i in (1, 2) for i in range(6)]
        assert not engine._conversations and not engine._table.active

    asyncio.run(run())
    assert_exact(model, [episode for i, episode in enumerate(episodes) if i not in (1, 2)])


def test_closing_fails_what_is_in_progress() -> None:
    async def run() -> None:
        engine = LocalEngine(policy())
        task = asyncio.create_task(engine.generate(GenerateRequest("a", [1, 2, 3], [], 100)))
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(InferenceFailure, match="closed"):
            await task

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [1, 10_000]}, "input_ids"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"images": [np.zeros((64, 64, 3), dtype=np.uint8)]}, "0 image placeholders"),
        ({"images": [np.zeros((64, 64, 3))]}, "uint8"),
    ],
)
def test_malformed_requests_are_refused_at_the_door(change: dict[str, Any], message: str) -> None:
    request = GenerateRequest(
        **({"conversation_id": "a", "input_ids": [1], "images": [], "max_new_tokens": 4} | change)
    )

    async def run() -> None:
        await LocalEngine(policy()).generate(request)

    with pytest.raises(ValueError, match=message):
        asyncio.run(run())


def test_dropout_is_off_while_serving_and_the_training_mode_comes_back() -> None:
    path = tiny_random.build(Path(mkdtemp()))
    model = load_policy(str(path), lora=LoraSpec(dropout=0.5))
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.add_(0.05)
    model.model.train()
    episodes = serve(model, many(4))
    assert all(module.training for module in model.model.modules())
    model.model.eval()
    assert_exact(model, episodes)
