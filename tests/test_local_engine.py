"""What the in-process engine samples: exact, the same in any company, with the newest weights, from its cache."""

import asyncio
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import tiny_random
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cua_agent.inference.local import LocalEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.vision_features import VisionFeatures
from tests.local_engine_rig import SIZES, Episode, assert_exact, full_forward_logprobs, many, policy, serve

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

    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(drawn=episode_lists, max_batch=st.integers(1, 4))
    def check(drawn: list[tuple[Any, int, float, bool, int]], max_batch: int) -> None:
        episodes = [
            Episode(f"e{i}", turns, seed, temperature, greedy, delay)
            for i, (turns, seed, temperature, greedy, delay) in enumerate(drawn)
        ]
        assert_exact(model, serve(model, episodes, max_batch=max_batch))

    check()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_small_prefill_budget_only_splits_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    together = serve(policy(), many(7))
    monkeypatch.setattr("cua_agent.inference.local.PREFILL_TOKENS", 100)
    split = serve(policy(), many(7))
    assert [e.ids for e in split] == [e.ids for e in together]
    assert_exact(policy(), split)
