"""Several worlds in one run: shares, options of each, their environments, metrics by world, and real training."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.miniwob.browser import DEFAULT_BROWSER
from cua_agent.envs.mix import MixWorld, Part
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.envs.registry import make_world, open_world
from cua_agent.tasks import CUATask, world_of
from tests.toy_world import Always, SquareEnvironment, trajectory
from trainers.config import ConfigError
from trainers.config.compose import compose_run, load_config
from trainers.protocol import EvalRecord
from trainers.rollouts.evaluation import evaluation_episodes
from trainers.rollouts.task_sampler import TaskSampler, training_tasks
from trainers.run.step_metrics import _episode_figures

ROOT = Path(__file__).parents[1]
BOTH = "env.mix={pocket:0.5,miniwob:0.5}"


def task(name: str, category: str, share: float = 1.0) -> CUATask:
    return CUATask(name, name, "do it", "easy", category, 2, Always(), share=share)


class TestShares:
    def test_three_quarters_and_a_quarter(self) -> None:
        tasks = [task("a::1", "a::x", 3.0), task("a::2", "a::y", 3.0), task("b::1", "b::x", 1.0)]
        drawn = [group.task.id for group in TaskSampler(tasks, seed=0).next(8)]
        assert Counter(world_of(name) for name in drawn) == {"a": 6, "b": 2}
        assert Counter(drawn) == {"a::1": 3, "a::2": 3, "b::1": 2}

    @given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(0, 60), st.integers(1, 60))
    def test_every_window_has_each_world_by_its_share(self, shares: list[int], start: int, length: int) -> None:
        tasks = [task(f"w{n}::t", f"w{n}::c", share) for n, share in enumerate(shares)]
        sampler = TaskSampler(tasks, seed=1)
        drawn = Counter(world_of(sampler.at(index).task.id) for index in range(start, start + length))
        for n, share in enumerate(shares):
            assert abs(drawn[f"w{n}"] - length * share / sum(shares)) <= 2

    def test_a_group_depends_on_its_position_alone(self) -> None:
        tasks = [task(f"{world}::{n}", f"{world}::c") for world in "ab" for n in range(3)]
        forwards = TaskSampler(tasks, 0).next(20)
        assert [TaskSampler(tasks, 0).at(index) for index in (19, 3, 7)] == [forwards[index] for index in (19, 3, 7)]

    def test_processes_share_the_sequence(self) -> None:
        tasks = [task(f"{world}::{n}", f"{world}::c") for world in "ab" for n in range(3)]
        whole = TaskSampler(tasks, 0).next(6)
        parts = [TaskSampler(tasks, 0, share=(rank, 2)).next(3) for rank in (0, 1)]
        assert [group for pair in zip(*parts, strict=True) for group in pair] == whole

    def test_evaluation_has_each_world_by_its_share(self) -> None:
        tasks = [task("a::1", "a::x", 2.0), task("b::1", "b::x"), task("b::2", "b::y")]
        assert [spec.task.id for spec in evaluation_episodes(tasks, 6)] == [
            "a::1",
            "b::1",
            "a::1",
            "a::1",
            "b::2",
            "a::1",
        ]


class TestConfiguration:
    def test_each_world_is_as_its_preset_has_it_and_has_options_of_its_own(self) -> None:
        env = load_config([BOTH, "env.args.worlds.pocket.args.layout=fixed"]).env
        pocket, miniwob = (env.args["worlds"][name] for name in ("pocket", "miniwob"))
        assert pocket["args"]["layout"] == "fixed" and "browser_path" in miniwob["args"]
        assert pocket["tasks"] == ["battery", "brightness", "notification", "timeout", "word"]
        assert {world_of(task.category) for task in training_tasks(env)} == {"pocket", "miniwob"}
        assert env.names == {"pocket", "miniwob"}

    def test_a_preset_may_name_it(self, tmp_path: Path) -> None:
        (tmp_path / "env").mkdir()
        (tmp_path / "env" / "two.yaml").write_text(
            "name: mix\ntasks: ['near::brightness']\nargs: {worlds: {near: {world: pocket, share: 2}, pocket: 1}}\n"
        )
        composition = compose_run([f"--config-dir={tmp_path}", "env=two"])
        assert {task.category for task in training_tasks(composition.config.env)} == {"near::brightness"}

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([BOTH.replace("miniwob", "nowhere")], r"env.mix: nowhere: no such env; allowed: .*pocket"),
            (["env.mix=pocket"], r"env.mix=pocket: allowed: \{<world>: <share>, ...\}"),
            (["env.mix={pocket:0}"], r"env.args.worlds.pocket.share=0: must be greater than 0"),
            (["env.mix={pocket:1}", "env.args.worlds.pocket.args.layout=x"], r"pocket.args.layout=x: must be 'fixed'"),
            (
                ["env.mix={pocket:{share:1,tasks:[x]}}"],
                r"env.args.worlds.pocket.tasks='x' is not a category; allowed: ",
            ),
            (["env=mix"], "env.args.worlds: has no default and must be given"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, words: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=said) as error:
            training_tasks(load_config(words).env)
        assert "\n" not in str(error.value)

    def test_the_runs_label_reaches_the_worlds(self) -> None:
        world = make_world("mix", {"worlds": {"gbox": {"share": 1}}, "run": "mine"})
        assert isinstance(world, MixWorld) and world.parts["gbox"].run == "mine"
        assert "worlds.gbox.args.prewarm" in world.PRACTICAL and "worlds.gbox.args.reset" not in world.PRACTICAL


LIVING: list["Square"] = []


class Square(SquareEnvironment):
    def __init__(self, world: str, breaks_at: int = 0) -> None:
        super().__init__(breaks_at)
        self.world, self.seen = world, []
        LIVING.append(self)

    async def reset(self, task: CUATask, seed: int):
        self.seen.append((task.id, task.category))
        return await super().reset(task, seed)

    async def close(self) -> None:
        if self in LIVING:
            LIVING.remove(self)


@dataclass
class SquareWorld:
    """Implements `World`."""

    name: str
    breaks_at: int = 0
    made: list[Square] = field(default_factory=list)

    def check(self) -> None: ...

    @asynccontextmanager
    async def open(self):
        async def new() -> Square:
            self.made.append(Square(self.name, self.breaks_at))
            return self.made[-1]

        yield new

    def training_tasks(self) -> list[CUATask]:
        return [task(f"{self.name}-task", "category")]

    def eval_tasks(self, split: str) -> list[CUATask]:
        return [] if split == "templates" else self.training_tasks()


def mixture(*worlds: SquareWorld) -> MixWorld:
    made = MixWorld({"pocket": Part(1.0)})
    vars(made)["parts"] = {world.name: world for world in worlds}
    vars(made)["worlds"].update({world.name: made.worlds["pocket"] for world in worlds})
    return made


class TestEnvironments:
    def test_an_episode_plays_in_its_tasks_world_under_the_names_that_it_has_there(self) -> None:
        a, b = SquareWorld("a"), SquareWorld("b")
        mixed = mixture(a, b)

        async def play() -> None:
            async with open_world(mixed, 5) as factory:
                environment = await factory()
                for each in (*mixed.training_tasks(), *mixed.eval_tasks("templates")):
                    await environment.reset(each, 0)
                    assert await environment.compute_reward() == 1.0
                await environment.close()

        asyncio.run(play())
        assert [made.seen for made in a.made] == [[("a-task", "category")]] * 2
        assert [made.seen for made in b.made] == [[("b-task", "category")]] * 2
        assert LIVING == []

    def test_there_are_never_more_environments_than_the_pool_has(self) -> None:
        a, b = SquareWorld("a"), SquareWorld("b")
        mixed = mixture(a, b)
        seen: list[int] = []

        async def play() -> None:
            async with open_world(mixed, 5) as factory, EnvironmentPool(factory, 3) as pool:

                async def episode(each: CUATask) -> None:
                    async with pool.lend() as environment:
                        await environment.reset(each, 0)
                        seen.append(len(LIVING))
                        await asyncio.sleep(0)

                one, other = mixed.training_tasks()
                await asyncio.gather(*map(episode, [one] * 4 + [other] * 4 + [one, other] * 4))

        asyncio.run(play())
        assert max(seen) <= 3 and LIVING == []
        assert len(a.made) + len(b.made) < 16  # they are used again

    def test_one_that_broke_is_not_played_in_again(self) -> None:
        a = SquareWorld("a", breaks_at=2)
        mixed = mixture(a)

        async def play() -> int:
            broken = 0
            async with open_world(mixed, 5) as factory, EnvironmentPool(factory, 1) as pool:
                for _ in range(4):
                    try:
                        async with pool.lend() as environment:
                            await environment.reset(mixed.training_tasks()[0], 0)
                    except EnvironmentFailure:
                        broken += 1
            return broken

        assert asyncio.run(play()) == 2 and len(a.made) == 2 and LIVING == []

    def test_a_call_that_hangs_in_one_world_is_given_up(self) -> None:
        class Stuck(Square):
            async def reset(self, task: CUATask, seed: int):
                await asyncio.sleep(60)

        class StuckWorld(SquareWorld):
            @asynccontextmanager
            async def open(self):
                async def new() -> Stuck:
                    return Stuck("a")

                yield new

        mixed = mixture(StuckWorld("a"))

        async def play() -> None:
            async with open_world(mixed, 0.1) as factory:
                environment = await factory()
                with pytest.raises(EnvironmentFailure, match=r"env\.timeout_s"):
                    await environment.reset(mixed.training_tasks()[0], 0)
                await environment.close()

        asyncio.run(play())


def test_figures_are_said_for_each_world() -> None:
    rows = [
        replace(trajectory(reward), task_id=name, score=reward)
        for name, reward in (("a::1", 1.0), ("a::2", 0.0), ("b::1", 1.0))
    ]
    figures = _episode_figures([[row] for row in rows])
    assert figures["worlds"] == {
        "a": {"episodes": 2, "success_rate": 0.5, "score_mean": 0.5, "reward_mean": 0.5},
        "b": {"episodes": 1, "success_rate": 1.0, "score_mean": 1.0, "reward_mean": 1.0},
    }
    assert _episode_figures([[trajectory(1.0)]])["worlds"] == {}
    record = EvalRecord(0, 6, 0.5, 0.5, 2.0, {"a::x": (1, 2), "a::y": (2, 3), "b::x": (0, 1)})
    assert record.by_world == {"a": (3, 5), "b": (0, 1)}


SHORT = (
    *("experiment=quick", "max_steps=1", "threads=1", "rollout.groups_per_step=2", "rollout.group_size=2"),
    *("rollout.max_turns=2", "eval.baseline=false", "eval.episodes=4", "logging.tensorboard=false"),
)
MINE = "env.mix={pocket:1,mine:{world:'their_world:World',share:1,tasks:[brightness]}}"


def train(folder: Path, *words: str) -> list[dict]:
    (folder / "their_world.py").write_text("from cua_agent.envs.pocket.world import PocketWorld as World\n")
    command = [sys.executable, str(ROOT / "train.py"), *words]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    name = next(word.partition("=")[2] for word in words if word.startswith("run_name="))
    run = folder / "outputs" / name
    (evaluated, *_) = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert (
        len(evaluated["by_world"]) == 2 and sum(n for _, n in evaluated["by_world"].values()) == evaluated["episodes"]
    )
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestTraining:
    def test_a_run_and_its_resumption_play_both_worlds_and_are_compared(self, tmp_path: Path) -> None:
        (row,) = train(tmp_path, *SHORT, MINE, "backend=legacy", "run_name=first")
        assert row["episodes/pocket"] == row["episodes/mine"] == 2
        (row,) = train(tmp_path, "resume=outputs/first", "max_steps=2", "run_name=second")
        assert row["step"] == 2 and row["episodes/pocket"] == row["episodes/mine"] == 2
        command = [sys.executable, str(ROOT / "compare.py"), "runs=[outputs/second]", "out=report"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        assert "success on mine, end" in "".join(file.read_text() for file in (tmp_path / "report").glob("*.md"))

    @pytest.mark.parametrize("words", ["phase=3", "scheduler=local"])
    def test_on_areal(self, words: str, tmp_path: Path) -> None:
        pytest.importorskip("areal")
        (row,) = train(tmp_path, *SHORT, MINE, words, f"run_name={words}")
        played = {key: count for key, count in row.items() if key.startswith("episodes/")}
        assert sum(played.values()) >= 4 and {*played} <= {"episodes/pocket", "episodes/mine"}  # who ends first counts

    @pytest.mark.skipif(shutil.which(DEFAULT_BROWSER) is None, reason="no browser: make browser")
    def test_the_phone_and_web_pages_in_chromium(self, tmp_path: Path) -> None:
        (row,) = train(tmp_path, *SHORT, BOTH, "backend=legacy", "run_name=both")
        assert row["episodes/pocket"] == row["episodes/miniwob"] == 2 and row["episodes_infra_error"] == 0
