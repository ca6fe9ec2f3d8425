import asyncio
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_random
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cua_agent.inference.base import GenerateRequest, GenerateResponse, InferenceFailure
from cua_agent.inference.local import LocalEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from cua_agent.models.vision_features import VisionFeatures

SIZES = [(64, 64), (64, 96), (32, 100), (128, 64)]


@cache
def policy(family: tiny_random.Family = "qwen3_vl") -> PolicyModel:
    return load_policy(str(tiny_random.build(Path(mkdtemp()), family)))


@dataclass
class Episode:
    """A scripted conversation: each turn shows an image (or none) after some text and samples an answer."""

    id: str
    turns: list[tuple[str, tuple[int, int] | None, int]]  # text, image size, max_new_tokens
    seed: int = 0
    temperature: float = 1.0
    greedy: bool = False
    delay: int = 0  # loop iterations before each turn
    ids: list[int] = field(default_factory=list)
    images: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)  # indices into ids
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def observe(self, model: PolicyModel, text: str, size: tuple[int, int] | None) -> None:
        image = ""
        if size is not None:
            self.images.append(tiny_random.screenshot(*size, seed=self.seed + len(self.images)))
            image = f"<|vision_start|>{'<|image_pad|>' * model.image_tokens(*size)}<|vision_end|>"
        self.ids += model.encode(f"<|im_start|>user\n{text}{image}<|im_end|>\n<|im_start|>assistant\n")

    def request(self, max_new_tokens: int) -> GenerateRequest:
        return GenerateRequest(
            self.id, list(self.ids), list(self.images), max_new_tokens, self.temperature, self.greedy, self.seed
        )

    def record(self, response: GenerateResponse) -> None:
        self.sampled += range(len(self.ids), len(self.ids) + len(response.output_ids))
        self.ids += response.output_ids
        self.logprobs += response.logprobs
        self.versions += response.versions

    async def run(self, model: PolicyModel, engine: LocalEngine) -> None:
        for text, size, max_new_tokens in self.turns:
            for _ in range(self.delay):
                await asyncio.sleep(0)
            self.observe(model, text, size)
            self.record(await engine.generate(self.request(max_new_tokens)))
        engine.release(self.id)


def serve(model: PolicyModel, episodes: list[Episode], **engine_options: Any) -> list[Episode]:
    async def run_all() -> None:
        engine = LocalEngine(model, **engine_options)
        await asyncio.gather(*(episode.run(model, engine) for episode in episodes))
        await engine.close()

    asyncio.run(run_all())
    return episodes


@torch.no_grad()
def full_forward_logprobs(model: PolicyModel, episode: Episode) -> npt.NDArray[np.float32]:
    """Log-probabilities of the sampled tokens by one plain forward pass over the whole row."""
    pixel_values, grids = model.pixels(episode.images) if episode.images else (None, None)
    logits = model.model(
        input_ids=torch.tensor([episode.ids]),
        position_ids=torch.from_numpy(model.positions(episode.ids, episode.images))[:, None],
        pixel_values=pixel_values,
        image_grid_thw=grids,
    ).logits[0]
    logits[:, list(model.special.banned)] = -torch.inf
    logprobs = (logits / (1.0 if episode.greedy else episode.temperature)).log_softmax(-1)
    return np.array([logprobs[i - 1, episode.ids[i]].item() for i in episode.sampled])


def assert_exact(model: PolicyModel, episodes: list[Episode]) -> None:
    for episode in episodes:
        assert len(episode.sampled) >= len(episode.turns)
        np.testing.assert_allclose(episode.logprobs, full_forward_logprobs(model, episode), atol=1e-4)


turns = st.lists(
    st.tuples(st.text("ab c", max_size=12), st.sampled_from([None, *SIZES]), st.integers(1, 6)), min_size=1, max_size=3
)
episode_lists = st.lists(
    st.tuples(turns, st.integers(0, 9), st.sampled_from([0.5, 1.0, 2.0]), st.booleans(), st.integers(0, 4)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_logprobs_equal_a_full_forward_pass_in_any_batch_composition(family: tiny_random.Family) -> None:
    model = policy(family)

    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(drawn=episode_lists, max_batch=st.integers(1, 4))
    def check(drawn: list[tuple[Any, int, float, bool, int]], max_batch: int) -> None:
        episodes = [
            Episode(f"e{i}", turns, seed, temperature, greedy, delay)
            for i, (turns, seed, temperature, greedy, delay) in enumerate(drawn)
        ]
        assert_exact(model, serve(model, episodes, max_batch=max_batch))

    check()


def many(n: int, **options: Any) -> list[Episode]:
    """Episodes of two to four turns with different texts, image sizes, lengths and arrival times."""
    return [
        Episode(
            f"e{i}",
            [("x" * (3 * i % 7 + turn), SIZES[(i + turn) % len(SIZES)], 4 + i % 5) for turn in range(2 + i % 3)],
            seed=100 * i,
            delay=i % 3,
            **options,
        )
        for i in range(n)
    ]


def test_samples_do_not_depend_on_who_shares_the_batch() -> None:
    together = serve(policy(), many(9))
    alone = [serve(policy(), [episode], max_batch=1)[0] for episode in many(9)]
    crowded = serve(policy(), many(9), max_batch=2)
    assert [e.ids for e in together] == [e.ids for e in alone] == [e.ids for e in crowded]
    assert len({tuple(e.ids) for e in together}) == 9


def test_seed_decides_the_sample_and_greedy_takes_the_most_likely_token() -> None:
    turn = [("hello", (64, 64), 12)]
    first, again, other, greedy = serve(
        policy(),
        [Episode("a", turn, 1), Episode("b", turn, 1), Episode("c", turn, 2), Episode("d", turn, 1, greedy=True)],
    )
    assert first.ids == again.ids
    assert first.sampled and [first.ids[i] for i in first.sampled] != [other.ids[i] for i in other.sampled]
    assert_exact(policy(), [greedy])
    assert sum(greedy.logprobs) / len(greedy.logprobs) > sum(first.logprobs) / len(first.logprobs)


def test_sampled_frequencies_follow_the_distribution() -> None:
    """2,000 samples of one next token: every frequent token's share is its probability within four standard errors."""
    n = 2000
    episodes = serve(policy(), [Episode(f"e{i}", [("hello", None, 1)], seed=i) for i in range(n)])
    counts: dict[int, int] = {}
    probability = {}
    for episode in episodes:
        token = episode.ids[-1]
        counts[token] = counts.get(token, 0) + 1
        probability[token] = float(np.exp(episode.logprobs[0]))
    frequent = [token for token in counts if probability[token] > 0.01]
    assert frequent
    for token in frequent:
        p = probability[token]
        assert abs(counts[token] / n - p) < 4 * (p * (1 - p) / n) ** 0.5
    assert not set(counts) & set(policy().special.banned)


def test_new_weights_in_the_middle_of_a_turn_serve_the_rest_of_it() -> None:
    model = load_policy(str(tiny_random.build(Path(mkdtemp()), seed=3)))
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    episode = Episode("a", [], seed=4)
    episode.observe(model, "hi", (64, 96))

    async def run() -> None:
        engine = LocalEngine(model, version=6)
        turn = asyncio.create_task(engine.generate(episode.request(40)))
        for _ in range(10):
            await asyncio.sleep(0)
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.mul_(0.9)
        engine.update_weights(7)
        assert engine.version == 7
        episode.record(await turn)
        await engine.close()

    asyncio.run(run())
    assert set(episode.versions) == {6, 7}
    assert sorted(episode.versions) == episode.versions
    served_by_new = np.array(episode.versions) == 7
    new = full_forward_logprobs(model, episode)
    model.model.load_state_dict(before, strict=False)
    old = full_forward_logprobs(model, episode)
    np.testing.assert_allclose(episode.logprobs, np.where(served_by_new, new, old), atol=1e-4)
    assert np.abs(new - old).max() > 0.01


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_a_screen_goes_through_the_vision_tower_once_until_the_tower_changes(freeze_vision: bool) -> None:
    model = load_policy(str(tiny_random.build(Path(mkdtemp()), seed=3)), freeze_vision=freeze_vision)
    seen: list[int] = []
    served = model.frozen_copy()
    served.base_model.model.visual.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))

    async def run() -> list[Episode]:
        engine = LocalEngine(served)
        rows = []
        for version in range(3):
            for name in "ab":  # two episodes of a group see the same
                episode = Episode(f"{name}{version}", [], seed=4)
                episode.observe(model, "hi", (64, 96))
                episode.record(await engine.generate(episode.request(3)))
                rows.append(episode)
            engine.update_weights(version + 1)
        await engine.close()
        return rows

    rows = asyncio.run(run())
    assert len(seen) == (1 if freeze_vision else 3)
    assert_exact(model, rows)


def test_features_of_screens_make_room_for_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy()
    a, b = (tiny_random.screenshot(64, 96, seed=seed) for seed in (0, 1))
    asked: list[int] = []
    pixels = model.pixels
    with torch.inference_mode():
        [alone] = VisionFeatures(model).of([a])
        monkeypatch.setattr(model, "pixels", lambda images: (asked.append(len(images)), pixels(images))[1])
        features = VisionFeatures(model, most_bytes=sum(part.nbytes for part in alone))
        for images in ([a, a], [a], [b], [b], [a, b]):
            first, *_ = features.of(images)
            if images[0] is a:
                torch.testing.assert_close(first, alone, atol=1e-5, rtol=0)
    assert asked == [1, 1, 1]  # a; b in its place; a again, beside b


def test_a_prompt_that_does_not_extend_the_cache_is_prefilled_afresh() -> None:
    """context=last_k drops an old screenshot: other ids; and the same ids with another screenshot: other pixels."""
    model = policy()

    async def run() -> list[Episode]:
        engine = LocalEngine(model)
        rows = []
        for size, seed in [((64, 64), 0), ((64, 96), 0), ((64, 96), 50), ((64, 96), 50)]:
            episode = Episode("same", [("look", size, 5)], seed=seed)
            episode.observe(model, "look", size)
            episode.record(await engine.generate(episode.request(5)))
            rows.append(episode)
        changed = Episode("same", [("look", (64, 96), 5)], ids=list(rows[-1].ids), images=list(rows[-1].images))
        changed.images[0] = 255 - changed.images[0]
        changed.observe(model, "and now?", (64, 64))
        changed.record(await engine.generate(changed.request(5)))
        return [*rows, changed]

    assert_exact(model, asyncio.run(run()))


def test_turns_extend_the_cache_instead_of_prefilling_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy()
    fed: list[int] = []
    backbone = model.base_model.model
    forward = backbone.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        fed.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone, "forward", counting)
    (episode,) = serve(model, [Episode("a", [("go", (64, 96), 3)] * 4)])
    assert sum(fed) == len(episode.ids) - 1  # every token once; the last one sampled is never fed


def test_a_small_prefill_budget_only_splits_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    together = serve(policy(), many(7))
    monkeypatch.setattr("cua_agent.inference.local.PREFILL_TOKENS", 100)
    split = serve(policy(), many(7))
    assert [e.ids for e in split] == [e.ids for e in together]
    assert_exact(policy(), split)


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
