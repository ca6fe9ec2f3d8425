"""The engine against a real vLLM server: tokens, log-probabilities, live weights, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.build import serving_plan
from cua_agent.inference.vllm.engine import Patience, VllmEngine
from cua_agent.inference.vllm.errors import CanaryError, ServerMismatch, TokenDrift
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from cua_agent.models.sources import TINY_WEIGHTS
from cua_agent.prompts import first_prompt, next_prompt, system_prompt
from tests.vllm.reference import TOLERANCE, full_logprobs
from trainers.run.checkpoint import save_weights

SIZES = [(256, 160), (100, 77), (64, 96)]
"""Screenshots of three turns; the second has to be resized."""


class ServerHandle:
    """The fixture of conftest.py, for the type checker."""

    url: str


def screen(size: tuple[int, int], seed: int) -> npt.NDArray[np.uint8]:
    """A picture with structure: bands and a square."""
    rows, columns = np.indices(size)
    image = np.stack([rows + 40 * seed, columns * 2, (rows + columns) // 2], axis=-1) % 256
    image[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = (40 * seed) % 256
    return image.astype(np.uint8)


@dataclass
class Episode:
    """A conversation whose every turn shows a new screenshot."""

    id: str
    seed: int
    temperature: float = 1.0
    greedy: bool = False
    ids: list[int] = field(default_factory=list)
    images: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    responses: list[tuple[int, GenerateResponse]] = field(default_factory=list)

    def observe(self, policy: PolicyModel, size: tuple[int, int]) -> None:
        self.images.append(screen(size, self.seed + len(self.images)))
        count = policy.image_tokens(*size)
        if not self.ids:
            text = first_prompt(system_prompt("brief", "target"), f"Open page {self.seed}.", count)
        else:
            text = next_prompt("ok", count, ended=self.ids[-1] == policy.special.end_of_turn_id)
        self.ids += policy.encode(text)

    async def take_turn(self, policy: PolicyModel, engine: VllmEngine, size: tuple[int, int]) -> GenerateResponse:
        self.observe(policy, size)
        request = GenerateRequest(
            self.id, list(self.ids), list(self.images), 24, self.temperature, self.greedy, self.seed + len(self.ids)
        )
        response = await engine.generate(request)
        self.responses.append((len(self.ids), response))
        self.ids += response.output_ids
        return response

    async def play(self, policy: PolicyModel, engine: VllmEngine) -> Episode:
        for size in SIZES:
            await self.take_turn(policy, engine, size)
        engine.release(self.id)
        return self

    def error(self, policy: PolicyModel) -> float:
        """Largest difference of a log-probability from that of a full forward pass of `policy`."""
        logprobs = full_logprobs(policy, self.ids, self.images, 1.0 if self.greedy else self.temperature)
        return max(
            abs(float(logprobs[start - 1 + i, token]) - response.logprobs[i])
            for start, response in self.responses
            for i, token in enumerate(response.output_ids)
        )

    def versions(self) -> set[int]:
        return {version for _, response in self.responses for version in response.versions}


def change(policy: PolicyModel, seed: int, share: float = 0.1) -> None:
    """Move every trained weight by a part of its scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            scale = 0.02 if "lora" in name else share * parameter.std()
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def play_all(engine: VllmEngine, policy: PolicyModel, episodes: list[Episode]) -> list[Episode]:
    async def run() -> list[Episode]:
        return await asyncio.gather(*(episode.play(policy, engine) for episode in episodes))

    return asyncio.run(run())


@pytest.fixture
def lora(server: ServerHandle) -> Iterator[tuple[VllmEngine, PolicyModel]]:
    yield from engine_of(server, load_policy("tiny", lora=LoraSpec(r=8)))


def engine_of(
    server: ServerHandle, policy: PolicyModel, *, merged: bool = False
) -> Iterator[tuple[VllmEngine, PolicyModel]]:
    plan = serving_plan(policy, max_length=2048, max_images=12, max_staleness=1, merged=merged)
    engine = VllmEngine(policy, [server.url], plan, save_weights, patience=Patience(server_s=300))
    engine.update_weights(0)
    yield engine, policy
    asyncio.run(engine.close())


def mixed(count: int) -> list[Episode]:
    temperatures = (1.0, 0.7, 1.6)
    return [Episode(f"e{i}", i, temperatures[i % 3], greedy=i % 4 == 3) for i in range(count)]


def test_turns_with_images_have_the_log_probabilities_of_a_full_forward_pass(
    lora: tuple[VllmEngine, PolicyModel],
) -> None:
    engine, policy = lora
    change(policy, seed=1)
    engine.update_weights(1)
    episodes = play_all(engine, policy, mixed(8))
    assert max(episode.error(policy) for episode in episodes) < TOLERANCE
    assert {version for episode in episodes for version in episode.versions()} == {1}
    assert engine.counters["turns"] == 24
    assert engine.counters["drifts"] == 0


def test_a_turn_ends_with_its_end_token_or_at_its_limit(lora: tuple[VllmEngine, PolicyModel]) -> None:
    engine, policy = lora
    for episode in play_all(engine, policy, mixed(4)):
        for _, response in episode.responses:
            ended = response.output_ids[-1] == policy.special.end_of_turn_id
            assert response.stop_reason == ("stop" if ended else "length")
            assert ended or len(response.output_ids) == 24
            assert policy.special.end_of_turn_id not in response.output_ids[:-1]
            assert not set(response.output_ids) & set(policy.special.banned)


def test_the_same_seeds_give_the_same_episodes(lora: tuple[VllmEngine, PolicyModel]) -> None:
    engine, policy = lora
    first, again = (play_all(engine, policy, mixed(4)) for _ in range(2))
    assert [episode.ids for episode in first] == [episode.ids for episode in again]
    other = play_all(engine, policy, [Episode("e0", 100, temperature=1.6)])
    assert other[0].ids != first[0].ids


def test_a_request_in_flight_keeps_its_adapter_through_an_update(
    server: Any, lora: tuple[VllmEngine, PolicyModel]
) -> None:
    engine, policy = lora
    change(policy, seed=1)
    engine.update_weights(1)
    former = load_policy("tiny", lora=LoraSpec(r=8))
    former.model.load_state_dict(policy.model.state_dict())

    async def scenario() -> tuple[list[Episode], Episode]:
        slow = [Episode(f"slow{i}", i, temperature=1.6) for i in range(12)]
        tasks = [asyncio.create_task(episode.take_turn(policy, engine, SIZES[0])) for episode in slow]
        await asyncio.sleep(0.05)
        change(policy, seed=2)
        await asyncio.to_thread(engine.update_weights, 2)
        late = Episode("late", 50)
        await asyncio.gather(*tasks, late.take_turn(policy, engine, SIZES[0]))
        return slow, late

    slow, late = asyncio.run(scenario())
    old = [episode for episode in slow if episode.versions() == {1}]
    assert old  # otherwise the update came too late to test anything
    assert max(episode.error(former) for episode in old) < TOLERANCE
    assert late.versions() == {2}
    assert late.error(policy) < TOLERANCE
    assert server.adapters() == {f"{engine.weights_dir.name}-v2"}


def test_two_runs_at_the_same_time_sample_their_own_weights(server: Any) -> None:
    """More adapters than the server has slots for: they take turns, and nobody gets another's."""
    policies = [load_policy("tiny", lora=LoraSpec(r=8)) for _ in range(2)]
    plan = serving_plan(policies[0], max_length=2048, max_images=12, max_staleness=1)
    engines = [VllmEngine(policy, [server.url], plan, save_weights, run="same") for policy in policies]

    async def play_and_learn(engine: VllmEngine, policy: PolicyModel, seed: int) -> None:
        for version in range(3):
            change(policy, seed + version)
            await asyncio.to_thread(engine.update_weights, version)
            episodes = await asyncio.gather(*(episode.play(policy, engine) for episode in mixed(4)))
            assert {v for episode in episodes for v in episode.versions()} == {version}
            assert max(episode.error(policy) for episode in episodes) < TOLERANCE

    async def both() -> None:
        await asyncio.gather(*map(play_and_learn, engines, policies, (10, 20)))

    asyncio.run(both())
    assert server.adapters() == {f"{engine.weights_dir.name}-v2" for engine in engines}
    engines[0].discard()
    assert server.adapters() == {f"{engines[1].weights_dir.name}-v2"}
    engines[1].discard()
    assert server.adapters() == set()


def test_full_weights_are_refused_beside_another_run(server: Any) -> None:
    first = next(engine_of(server, load_policy("tiny")))
    try:
        for policy in (load_policy("tiny"), load_policy("tiny", lora=LoraSpec(r=8))):
            with pytest.raises(ServerMismatch, match="holds full weights of another run"):
                next(engine_of(server, policy))
    finally:
        first[0].discard()
    engine, _ = next(engine_of(server, load_policy("tiny", lora=LoraSpec(r=8))))
    engine.discard()


def test_a_server_that_counts_image_tokens_differently_is_noticed(lora: tuple[VllmEngine, PolicyModel]) -> None:
    engine, policy = lora
    policy.image_processor.max_pixels *= 4  # ours keeps a screenshot that the server shrinks
    episode = Episode("big", 0)
    with pytest.raises(TokenDrift, match="the server's prompt has"):
        asyncio.run(episode.take_turn(policy, engine, (640, 640)))
    assert engine.counters["drifts"] == 1


def test_placeholders_sent_expanded_would_be_noticed(
    lora: tuple[VllmEngine, PolicyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, policy = lora
    monkeypatch.setattr(wire, "collapse", lambda ids, *_: list(ids))
    with pytest.raises(TokenDrift):
        asyncio.run(Episode("twice", 0).take_turn(policy, engine, SIZES[2]))


def test_screens_that_the_server_dropped_are_sent_again(server: Any, lora: tuple[VllmEngine, PolicyModel]) -> None:
    engine, policy = lora
    episode = Episode("dropped", 3)

    async def scenario() -> None:
        await episode.take_turn(policy, engine, SIZES[0])
        await asyncio.to_thread(server.drop_images)
        await episode.take_turn(policy, engine, SIZES[1])

    asyncio.run(scenario())
    assert episode.error(policy) < TOLERANCE
    assert engine.counters["retries"] == 0


@pytest.mark.parametrize("lora", [None, LoraSpec(r=8)], ids=["all weights", "a merged adapter"])
def test_full_weights_are_exchanged_under_requests_in_flight(server: Any, lora: LoraSpec | None) -> None:
    policy = load_policy("tiny", lora=lora)
    (session,) = [engine_of(server, policy, merged=lora is not None)]
    engine, _ = next(session)
    try:
        change(policy, seed=1)
        engine.update_weights(1)
        assert max(episode.error(policy) for episode in play_all(engine, policy, mixed(4))) < TOLERANCE
        episodes = asyncio.run(_play_through_an_update(engine, policy))
        assert {version for episode in episodes for version in episode.versions()} == {1, 2}
        after = play_all(engine, policy, mixed(4))
        assert max(episode.error(policy) for episode in after) < TOLERANCE
        assert {version for episode in after for version in episode.versions()} == {2}
    finally:
        next(session, None)
        server.reload(TINY_WEIGHTS)


async def _play_through_an_update(engine: VllmEngine, policy: PolicyModel) -> list[Episode]:
    """New weights arrive while turns are being sampled; what is sampled afterwards has the new weights' numbers."""
    updated = asyncio.Event()

    async def keep_sampling(place: int) -> list[Episode]:
        played: list[Episode] = []
        while not updated.is_set():
            played.append(Episode(f"slow{place}.{len(played)}", place, temperature=1.6))
            await played[-1].take_turn(policy, engine, SIZES[0])
        return played

    tasks = [asyncio.create_task(keep_sampling(place)) for place in range(12)]
    await asyncio.sleep(0.1)
    change(policy, seed=2)
    await asyncio.to_thread(engine.update_weights, 2)
    updated.set()
    episodes = [episode for played in await asyncio.gather(*tasks) for episode in played]
    for episode in episodes:
        (start, response), logprobs = episode.responses[0], full_logprobs(policy, episode.ids, episode.images, 1.6)
        new = [i for i, version in enumerate(response.versions) if version == 2]
        assert sorted(response.versions) == response.versions
        errors = [abs(float(logprobs[start - 1 + i, response.output_ids[i]]) - response.logprobs[i]) for i in new]
        assert max(errors, default=0.0) < TOLERANCE
    return episodes


def test_an_adapter_on_another_base_model_is_refused(server: Any, tmp_path: Path) -> None:
    other = load_policy("tiny")
    change(other, seed=1)
    save_weights(tmp_path, other)
    server.reload(tmp_path)
    try:
        with pytest.raises(CanaryError, match="another base model"):
            next(engine_of(server, load_policy("tiny", lora=LoraSpec(r=8))))
    finally:
        server.reload(TINY_WEIGHTS)


def test_a_restart_in_the_middle_costs_nothing(server: Any, lora: tuple[VllmEngine, PolicyModel]) -> None:
    engine, policy = lora
    change(policy, seed=3)
    engine.update_weights(5)

    async def scenario() -> list[Episode]:
        episodes = mixed(6)
        await asyncio.gather(*(episode.take_turn(policy, engine, SIZES[0]) for episode in episodes))
        restart = await asyncio.to_thread(server.restart)
        await asyncio.gather(*(episode.take_turn(policy, engine, SIZES[1]) for episode in episodes))
        restart.join()
        return episodes

    episodes = asyncio.run(scenario())
    server.wait()
    assert all(len(episode.responses) == 2 for episode in episodes)
    assert {version for episode in episodes for version in episode.versions()} == {5}
    assert max(episode.error(policy) for episode in episodes) < TOLERANCE
    assert engine.counters["restores"] == 1
    assert server.adapters() == {f"{engine.weights_dir.name}-v5"}
