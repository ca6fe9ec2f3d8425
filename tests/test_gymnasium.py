"""`env=gymnasium`: keys and taps become an environment's actions, its pixels and rewards come back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gymnasium")

from cua_agent.actions import Action, DoubleTap, Point, PressKey, Tap, TypeText, Wait
from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.gymnasium.environment import EPISODE_OVER
from cua_agent.envs.gymnasium.mapping import NoMeaning, Tables
from cua_agent.envs.gymnasium.world import GymnasiumWorld
from cua_agent.envs.registry import make_world, open_world
from cua_agent.options import ConfigError
from cua_agent.rewards import outcome_of
from cua_agent.trajectory import Outcome
from trainers.config.compose import load_config

ROOT = Path(__file__).parents[1]
DOORS: dict[str, Any] = {
    "id": "tests.gymnasium_doors:Doors-v0",
    "make": {},
    "goal": "Open the green door: tap it.",
    "actions": {"left": 0, "right": 1, "stay": 2},
    "presses": {"a": "left", "Right": "right"},
    "taps": [["left", "right"]],
    "wait": "stay",
}
ARGUMENTS = [
    *("env=gymnasium", "env.args.id=tests.gymnasium_doors:Doors-v0", "env.args.make={}"),
    *("env.args.goal=Open the green door: tap it.", "env.args.actions={left:0,right:1,stay:2}"),
    *("env.args.presses={a:left,Right:right}", "env.args.taps=[[left,right]]", "env.args.wait=stay"),
]
LEFT, RIGHT = Point(250, 500), Point(750, 500)
LAKE = ("down", "down", "right", "right", "down", "right")  # around the holes of the 4x4 map


def doors(**changed: Any) -> GymnasiumWorld:
    world = make_world("gymnasium", {**DOORS, **changed})
    assert isinstance(world, GymnasiumWorld)
    return world


def played(world: GymnasiumWorld, *acts: Action, seed: int = 0) -> tuple[Any, list[Any], float]:
    """The first screen, the result of every action, and the score at the end."""

    async def play() -> tuple[Any, list[Any], float]:
        async with open_world(world, 60.0) as factory:
            environment = await factory()
            try:
                first = await environment.reset(world.training_tasks()[0], seed)
                results = [await environment.step(act) for act in acts]
                return first, results, await environment.compute_reward()
            finally:
                await environment.close()

    return asyncio.run(play())


def green_side(seed: int) -> str:
    screen = np.asarray(played(doors(), seed=seed)[0].screenshot)
    assert screen.shape == (64, 128, 3)
    return "left" if tuple(screen[10, 10]) == (0, 160, 0) else "right"


SIDES = {side: next(seed for seed in range(40) if green_side(seed) == side) for side in ("left", "right")}


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_seed_decides_what_is_seen_and_a_tap_there_is_rewarded(side: str) -> None:
    right_place, wrong_place = (LEFT, RIGHT) if side == "left" else (RIGHT, LEFT)
    for place, score in ((right_place, 1.0), (wrong_place, 0.0)):
        _, [result], scored = played(doors(), Tap(place), seed=SIDES[side])
        assert (result.done, result.error, scored) == (True, None, score)


def test_keys_are_those_of_the_table_whatever_their_spelling() -> None:
    for key in ("Right", "arrow_right", "ArrowRight"):
        assert played(doors(), PressKey(key), seed=SIDES["right"])[2] == 1.0
    assert played(doors(), PressKey("a"), seed=SIDES["left"])[2] == 1.0


def test_what_means_nothing_leaves_the_environment_alone_and_says_what_does() -> None:
    acts = (PressKey("b"), DoubleTap(LEFT), TypeText("x"))
    _, results, score = played(doors(), *acts, Tap(LEFT), Tap(LEFT), seed=SIDES["left"])
    assert [result.done for result in results] == [False, False, False, True, True]
    assert results[0].error == "no key 'b' here; allowed: the keys a, Right and a tap on the screen"
    assert results[1].error == "DoubleTap means nothing here; allowed: the keys a, Right and a tap on the screen"
    assert results[1].observation.text == results[1].error
    assert (results[4].error, score) == (EPISODE_OVER, 1.0)


def test_the_sum_of_the_rewards_is_the_score() -> None:
    """Ten steps of -0.01 and then 1: 0.9 of the way from 0 to 1, and half of that from -1 to 1 is 0.95."""
    waits = [Wait(1.0)] * 5
    world = doors(repeat=2)
    assert played(world, *waits, Tap(LEFT), seed=SIDES["left"])[2] == pytest.approx(0.9)
    world = doors(repeat=2, returns=[-1.0, 1.0])
    assert played(world, *waits, Tap(LEFT), seed=SIDES["left"])[2] == pytest.approx(0.95)
    assert played(doors(wait=None), *waits, Tap(LEFT), seed=SIDES["left"])[2] == 1.0


def test_a_mapping_of_ones_own_stands_for_the_tables() -> None:
    world = doors(mapping="tests.gymnasium_doors:by_typing")
    world.check()
    assert played(world, Tap(RIGHT), TypeText("left"), seed=SIDES["left"])[2] == 1.0


def test_cells_are_found_by_the_names_of_their_actions() -> None:
    tables = Tables(DOORS["actions"], DOORS["presses"], [["left", None], [None, "right", "stay"]])
    assert tables.locate(" Left") == Point(250, 250) and tables.locate("right") == Point(500, 750)
    assert tables.locate("nothing") is None
    with pytest.raises(NoMeaning, match="a tap there does nothing"):
        tables(Tap(Point(999, 0)))


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_a_named_cell_is_hit_where_it_is_found(rows: int, columns: int, data: st.DataObject) -> None:
    names = [[f"{row}/{column}" for column in range(columns)] for row in range(rows)]
    tables = Tables({name: name for row in names for name in row}, {}, names)
    name = data.draw(st.sampled_from(sorted(tables.actions)))
    at = tables.locate(name)
    assert at is not None and tables(Tap(at)) == name
    corner = Point(data.draw(st.integers(0, 1000)), data.draw(st.integers(0, 1000)))
    assert tables(Tap(corner)) in tables.actions


def test_the_tables_are_typed_as_mappings_and_lists() -> None:
    assert load_config(ARGUMENTS).env.world == doors()


@pytest.mark.parametrize("trouble", ["hangs", "breaks"])
def test_trouble_costs_the_episode_only(trouble: str) -> None:
    async def play() -> tuple[str, float]:
        world = doors(make={"trouble": trouble})
        async with open_world(world, timeout_s=3.0) as factory:
            environment = await factory()
            await environment.reset(world.training_tasks()[0], 0)
            with pytest.raises(EnvironmentFailure) as failure:
                for _ in range(3):
                    await environment.step(Wait(0.0))
            await environment.close()
            fresh = await factory()
            await fresh.reset(world.training_tasks()[0], SIDES["left"])
            await fresh.step(Tap(LEFT))
            return str(failure.value), await fresh.compute_reward()

    said, score = asyncio.run(play())
    words = {"hangs": "Wait: no end within 3 s (env.timeout_s)", "breaks": "step: RuntimeError: the doors fell off"}
    assert (said, score) == (words[trouble], 1.0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"presses": {"a": "jump"}}, "presses names 'jump'; actions: left, right, stay"),
        ({"taps": [["left", "up"]]}, "taps names 'up'"),
        ({"wait": "sleep"}, "wait names 'sleep'"),
        ({"taps": [], "presses": {}}, "presses and taps are empty"),
        ({"taps": [["left"], []]}, "a row of taps is empty"),
        ({"returns": [1, 1]}, "two different sums are wanted"),
        ({"repeat": 0}, "env.args.repeat=0: must be greater than or equal to 1"),
        ({"idd": "x"}, "env.args.idd=x: unknown key; did you mean env.args.id?"),
    ],
)
def test_options_that_do_not_fit_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        doors(**changed)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"id": "Doors-v0" + "0"}, "env.args.id=Doors-v00: "),
        ({"id": "no_such_module:Doors-v0"}, "No module named 'no_such_module'"),
        ({"make": {"colour": "red"}}, "unexpected keyword argument 'colour'"),
        ({"actions": {**DOORS["actions"], "far": 3}}, "3 is no action of Discrete(3)"),
        ({"id": "Pendulum-v1", "actions": {"left": [1, 2], "right": [2], "stay": [0]}}, "[1, 2] is no action of Box"),
    ],
)
def test_an_environment_that_cannot_be_played_is_known_before_anything_starts(
    changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(WorldUnavailable) as refusal:
        doors(**changed).check()
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


class TestGymnasiumsOwn:
    """What gymnasium brings along draws with pygame."""

    @pytest.fixture(autouse=True)
    def _pygame(self) -> None:
        pytest.importorskip("pygame")

    def test_the_example_of_the_defaults_is_solved_with_the_arrow_keys(self) -> None:
        world = make_world("gymnasium", {})
        assert isinstance(world, GymnasiumWorld)
        world.check()
        first, results, score = played(world, *(PressKey(step) for step in LAKE))
        assert first.screenshot.size == (256, 256)
        assert [result.done for result in results] == [False] * 5 + [True]
        assert outcome_of(score, claimed=False, world_done=True) is Outcome.SUCCESS

    def test_actions_of_a_box_are_lists_of_numbers(self) -> None:
        world = doors(id="Pendulum-v1", actions={"left": [-2.0], "right": [2], "stay": [0]}, returns=[-100.0, 0.0])
        world.check()
        _, results, score = played(world, Tap(LEFT), Wait(0.0), PressKey("right"))
        assert [result.error for result in results] == [None] * 3 and 0.0 < score < 1.0


@pytest.mark.slow
def test_it_trains(tmp_path: Path) -> None:
    words = [
        *("experiment=quick", "max_steps=1", "rollout.groups_per_step=1", "rollout.group_size=2", "eval.episodes=2"),
        *("rollout.max_turns=2", "eval.baseline=false", "run_name=run"),
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *ARGUMENTS, *words, f"output_dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
