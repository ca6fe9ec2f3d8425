"""Screenshots reach a vLLM server once, and are named afterwards."""

import asyncio
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.inference.vllm.build import serving_plan
from cua_agent.inference.vllm.engine import VllmEngine
from cua_agent.inference.vllm.images import SentImages, sent_image
from cua_agent.inference.vllm.wire import SentImage
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from tests.vllm_fakes import FakeVllm, served
from tests.vllm_rig import QUICK, base, checkpoint, generate
from trainers.run.checkpoint import save_weights

Screen = npt.NDArray[np.uint8]


@pytest.fixture
def fake() -> FakeVllm:
    return FakeVllm(base())


@pytest.fixture
def engine(fake: FakeVllm) -> Iterator[VllmEngine]:
    policy = load_policy(checkpoint(), lora=LoraSpec(r=4))
    plan = serving_plan(policy, max_length=512, max_images=4, max_staleness=0)
    with served(fake.app()) as url:
        engine = VllmEngine(policy, [url], plan, save_weights, patience=QUICK)
        engine.update_weights(0)
        fake.sent.clear()
        yield engine
        asyncio.run(engine.close())


def screen(shade: int) -> Screen:
    return np.full((64, 64, 3), shade, np.uint8)


def asking(*screens: Screen, conversation: str = "c") -> GenerateRequest:
    policy = base()
    image = [policy.special.image_token_id] * policy.image_tokens(64, 64)
    ids = [10, *(token for _ in screens for token in [*image, 11])]
    return GenerateRequest(conversation, ids, list(screens), max_new_tokens=8, seed=5)


def name_of(shade: int) -> str:
    return sent_image(base().image_processor, screen(shade)).name


def test_a_later_turn_sends_its_new_screenshot_only(engine: VllmEngine, fake: FakeVllm) -> None:
    first, second = screen(1), screen(2)
    generate(engine, asking(first))
    generate(engine, asking(first, second))
    generate(engine, asking(first, second, screen(1)))  # back on a screen that was seen before
    assert fake.sent == {name_of(1): 1, name_of(2): 1}


def test_other_conversations_send_no_screen_that_the_server_has(engine: VllmEngine, fake: FakeVllm) -> None:
    generate(engine, asking(screen(1), conversation="a"))
    engine.release("a")
    generate(engine, asking(screen(1), conversation="b"))
    assert fake.sent == {name_of(1): 1}


def test_what_the_server_dropped_is_sent_again_at_once(engine: VllmEngine, fake: FakeVllm) -> None:
    generate(engine, asking(screen(1)))
    fake.images.clear()
    (response,) = generate(engine, asking(screen(1), screen(2)))
    assert response.versions == [0, 0]
    assert fake.sent[name_of(1)] == 2
    assert engine.counters["retries"] == 0


def test_a_restarted_server_gets_the_screens_anew(engine: VllmEngine, fake: FakeVllm) -> None:
    generate(engine, asking(screen(1)))
    fake.restart()
    (response,) = generate(engine, asking(screen(1)))
    assert response.versions == [0, 0]
    assert fake.sent[name_of(1)] == 2


def test_many_conversations_at_a_time(engine: VllmEngine, fake: FakeVllm) -> None:
    screens = [screen(shade) for shade in range(12)]
    first = [asking(screens[i], conversation=f"c{i}") for i in range(12)]
    second = [asking(screens[i], screens[-1 - i], conversation=f"c{i}") for i in range(12)]
    responses: list[GenerateResponse] = [*generate(engine, *first), *generate(engine, *second)]
    assert all(response.versions == [0, 0] for response in responses)
    assert set(fake.sent.values()) == {1}


def test_a_name_stands_for_pixels_and_shape() -> None:
    processor = base().image_processor
    tall, wide = np.zeros((96, 64, 3), np.uint8), np.zeros((64, 96, 3), np.uint8)
    names = {sent_image(processor, image).name for image in (tall, wide, tall + 1, tall.copy())}
    assert len(names) == 3


def test_the_oldest_names_are_forgotten_first() -> None:
    sent = SentImages(limit=2)
    sent.add([SentImage("a"), SentImage("b")])
    sent.add([SentImage("a"), SentImage("c")])
    assert [name in sent for name in "abc"] == [True, False, True]
    sent.forget()
    assert "a" not in sent
