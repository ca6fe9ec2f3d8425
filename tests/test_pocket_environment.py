"""The simulated phone behind the environment protocol, and how long its actions take."""

import asyncio
import itertools
import time

import numpy as np
import pytest
from pocket_rig import environment_in, phone, task

from cua_agent.actions import Action, Direction, Point, Scroll, Tap, Wait
from cua_agent.envs.base import Environment
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.latency import Latency
from cua_agent.envs.pocket.state import Layout
from cua_agent.envs.pocket.validators import SwitchesAre

ACTIONS: list[Action] = [Tap(Point(300, 300)), Scroll(Direction.DOWN), Tap(Point(700, 500)), Tap(Point(200, 940))]


async def episode(environment: Environment, seed: int) -> list[bytes]:
    """The screenshots of a few actions."""
    shots = [(await environment.reset(task(), seed)).screenshot]
    shots += [(await environment.step(action)).observation.screenshot for action in ACTIONS]
    return [np.asarray(shot).tobytes() for shot in shots]


@pytest.mark.parametrize("layout", ["fixed", "themed", "shuffled"])
def test_the_same_task_and_seed_give_the_same_pixels(layout: Layout) -> None:
    first, second = PocketEnvironment(layout), PocketEnvironment(layout)
    episodes = [asyncio.run(episode(first, seed)) for seed in range(6)]
    # Neither another object nor what was played before makes a difference.
    assert episodes == [asyncio.run(episode(second, seed)) for seed in range(6)]
    assert episodes == [asyncio.run(episode(first, seed)) for seed in range(6)]
    assert len(set(map(tuple, episodes))) == 6


def test_scale_sets_the_size() -> None:
    for scale in (1, 3):
        observation = asyncio.run(PocketEnvironment(scale=scale).reset(task(), 0))
        assert (observation.screenshot.size, observation.screenshot.mode) == ((128 * scale, 224 * scale), "RGB")
        assert observation.text == ""


def test_a_step_never_ends_the_episode() -> None:
    result = asyncio.run(environment_in(phone("home")).step(Tap(Point(500, 930))))
    assert (result.done, result.error, result.observation.text) == (False, None, "")


def test_the_reward_is_the_validators() -> None:
    wifi_on = task(SwitchesAre((("global wifi_on", "1"),)))
    environment = PocketEnvironment()

    async def rewards() -> tuple[float, float]:
        await environment.reset(wifi_on, 0)
        environment.state.toggles["Wi-Fi"] = True
        right = await environment.compute_reward()
        environment.state.toggles["Wi-Fi"] = False
        return right, await environment.compute_reward()

    assert asyncio.run(rewards()) == (1.0, 0.0)
    assert environment.task is wifi_on


def test_nothing_works_before_reset_or_after_close() -> None:
    environment = PocketEnvironment()
    for _ in range(2):
        for call in (
            lambda: environment.step(Wait(0)),
            lambda: environment.locate("Home"),
            lambda: environment.compute_reward(),
            lambda: environment.shell("dumpsys battery | grep level"),
        ):
            with pytest.raises(RuntimeError, match="reset the environment first"):
                asyncio.run(call())
        asyncio.run(environment.reset(task(), 0))
        asyncio.run(environment.close())


def test_waiting_is_bounded() -> None:
    environment = environment_in(phone())
    started = time.monotonic()
    asyncio.run(environment.step(Wait(30)))
    assert time.monotonic() - started < 20


def samples(kind: str, n: int = 20_000, **options: float) -> np.ndarray:
    latency = Latency(kind, **options)  # type: ignore[arg-type]
    return np.array([latency.sample() for _ in range(n)])


def test_latency_constant_and_none() -> None:
    assert set(samples("none", mean_s=5.0)) == {0.0}
    assert set(samples("constant", mean_s=0.25)) == {0.25}
    assert set(samples("lognormal", mean_s=0.0)) == {0.0}


def test_lognormal_latency_has_its_mean_and_a_heavy_tail() -> None:
    delays = samples("lognormal", mean_s=2.0, sigma=1.0)
    assert delays.min() > 0
    assert delays.mean() == pytest.approx(2.0, rel=0.05)
    # The median of a log-normal is exp(mu) = mean * exp(-sigma^2 / 2); above six times the mean lies
    # P(z > ln 6 + 1/2) = P(z > 2.292) = 1.1 %.
    assert np.median(delays) == pytest.approx(2.0 * np.exp(-0.5), rel=0.05)
    assert (delays > 12.0).mean() == pytest.approx(0.011, abs=0.004)


def test_latency_is_seeded() -> None:
    assert list(samples("lognormal", 50, mean_s=1.0, seed=3)) == list(samples("lognormal", 50, mean_s=1.0, seed=3))
    assert list(samples("lognormal", 50, mean_s=1.0, seed=3)) != list(samples("lognormal", 50, mean_s=1.0, seed=4))


def test_every_reset_and_step_is_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    numbers = itertools.count(1)
    latency = Latency("constant", mean_s=1.0)
    monkeypatch.setattr(latency, "sample", lambda: float(next(numbers)))

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(episode(PocketEnvironment(latency=latency), 0))
    assert slept == [1.0, 2.0, 3.0, 4.0, 5.0]
