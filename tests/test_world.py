"""The door: a world in a file of one's own, by its name, with its typed options; and the former keys of ours."""

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from cua_agent.__main__ import OptionError, parse_options
from cua_agent.envs import registry
from cua_agent.envs.guard import GuardedFactory
from cua_agent.envs.registry import BUILT_IN, all_options, make_world, open_world
from cua_agent.envs.world import World
from cua_agent.tasks import CUATask, EvalSplit
from tests.refusals import refusal
from tests.toy_world import SquareEnvironment, toy_task
from trainers.components import held_out_tasks
from trainers.config import ConfigError, from_mapping
from trainers.config.compose import compose_run, load_config
from trainers.config.former_keys import renamed
from trainers.run.directory import create_run_directory


@dataclass(frozen=True)
class SquareWorld:
    """Squares."""

    size: int = Field(default=3, ge=1, le=9, description="squares in a row")
    colour: Literal["red", "blue"] = "red"
    title: str = ""
    run: str | None = None

    def check(self) -> None: ...

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        async def new() -> SquareEnvironment:
            return SquareEnvironment()

        yield new

    def training_tasks(self) -> list[CUATask]:
        return [toy_task(f"tap-{number}") for number in range(self.size)]

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        return self.training_tasks()[:1] if split == "seeds" else []


@dataclasses.dataclass(frozen=True)
class Plain(SquareWorld):  # as a dataclass of the standard library
    depth: int = 1


def by_function(size: int = 2, *, title: str = "x") -> SquareWorld:
    return SquareWorld(size=size, title=title)


def untyped(size=2):  # type: ignore[no-untyped-def]
    return SquareWorld(size)


def no_world(size: int = 2) -> int:
    return size


HERE = __name__


def test_the_built_in_worlds_are_worlds_like_any_other() -> None:
    for name in BUILT_IN:
        assert isinstance(make_world(name, {}), World)
    assert isinstance(make_world(f"{HERE}:SquareWorld", {}), World)


def test_a_world_of_ones_own_is_a_value_of_env_and_its_options_are_complete() -> None:
    config = load_config([f"env={HERE}:SquareWorld", "env.args.size=4"])
    assert (config.env.name, config.env.tasks) == (f"{HERE}:SquareWorld", ())  # no task of the default world's
    assert config.env.args == {"size": 4, "colour": "red", "title": "", "run": None}
    assert len(config.env.world.training_tasks()) == 4


@pytest.mark.parametrize("written", ["env.args={size:4,title:007}", "++env.args.size=4 +env.args.title=007"])
def test_options_are_written_in_one_or_each_and_texts_stay_as_typed(written: str) -> None:
    config = load_config([f"env={HERE}:SquareWorld", *written.split()])
    assert (config.env.args["size"], config.env.args["title"]) == (4, "007")


def test_a_function_that_makes_a_world_has_its_parameters_as_options() -> None:
    assert all_options(f"{HERE}:by_function", {"size": 5}) == {"size": 5, "title": "x"}
    assert make_world(f"{HERE}:by_function", {"size": 5}) == SquareWorld(size=5, title="x")
    with pytest.raises(ConfigError, match=r"env\.args\.size=true: must be a valid integer"):
        make_world(f"{HERE}:by_function", {"size": True})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["env.args.size=0"], ["env.args.size=0", "greater than or equal to 1"]),
        (["env.args.size=true"], ["env.args.size=true", "integer"]),
        (["env.args.size='2'"], ["env.args.size=2", "integer"]),
        (["env.args.colour=green"], ["env.args.colour=green", "'red' or 'blue'"]),
        (["env.args.sise=1"], ["env.args.sise=1: unknown key; did you mean env.args.size?"]),
        (["env.args.zzz=1"], ["env.args.zzz=1: unknown key; keys of env.args: colour, run, size, title"]),
        (["env.args.zzz.deep=1"], ["env.args.zzz.deep=1: unknown key"]),
        (["env.args=3"], ["env.args=3", "env.args.<option>=value"]),
    ],
)
def test_an_option_that_is_wrong_is_one_line(overrides: list[str], words: list[str]) -> None:
    message = refusal(f"env={HERE}:SquareWorld", *overrides)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{HERE}:Nothing", ["test_world:Nothing", "has no Nothing"]),
        ("tests.no_such_file:World", ["there is no module tests.no_such_file"]),
        ("no_such_package.deep:World", ["there is no module no_such_package"]),
        (f"{HERE}:untyped", ["parameter size has no type", "frozen pydantic dataclass"]),
        (f"{HERE}:no_world", ["makes no world but int"]),
        ("tests.toy_world:SquareEnvironment", ["parameter", "open, training_tasks"]),
        ("cua_agent.tasks:CUATask", ["it lacks check, open, training_tasks, eval_tasks"]),
    ],
)
def test_a_name_that_leads_to_no_world_is_one_line(name: str, words: list[str]) -> None:
    message = refusal(f"env={name}")
    assert [word for word in words if word not in message] == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A present directory that is not on the path yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("broken_world", "half_world"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_library", "importing it fails with ModuleNotFoundError: No module named 'no_such_library'"),
        ("def", "importing it fails with SyntaxError"),
        ("1 / 0", "broken_world.py, line 1"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why_and_where(folder: Path, source: str, words: str) -> None:
    (folder / "broken_world.py").write_text(source)
    assert words in refusal("env=broken_world:World")


def test_an_installed_package_brings_a_world_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="squares", value=f"{HERE}:SquareWorld")
    monkeypatch.setattr(registry, "_installed", lambda: {"squares": point})
    config = load_config(["env=squares", "env.args.size=2"])
    assert (config.env.name, config.env.args["size"]) == ("squares", 2)
    assert "squares" in refusal("env=sqares") and "squares" in refusal("env.name=sqares")


def test_a_world_without_templates_is_evaluated_on_its_seeds() -> None:
    tasks = held_out_tasks(load_config([f"env={HERE}:SquareWorld"]))
    assert [task.id for task in tasks["templates"]] == [task.id for task in tasks["seeds"]] == ["tap-0"]


def test_what_a_world_starts_is_guarded() -> None:
    async def opened() -> Any:
        async with open_world(SquareWorld(), timeout_s=5.0) as factory:
            return factory

    assert isinstance(asyncio.run(opened()), GuardedFactory)


def test_one_episode_takes_the_options_as_keys() -> None:
    options = parse_options([f"env={HERE}:SquareWorld", "size=4", "env.args.title=007"])
    assert options.args == {"size": 4, "title": "007"}
    with pytest.raises(OptionError, match=r"env\.args\.size=0: must be greater"):
        parse_options([f"env={HERE}:SquareWorld", "size=0"])
    with pytest.raises(OptionError, match="size, colour, title"):
        parse_options([f"env={HERE}:SquareWorld", "sise=4"])


# Resuming.


def saved(folder: Path, *overrides: str) -> str:
    composition = compose_run([*overrides, f"output_dir={folder}", "run_name=former"])
    return str(create_run_directory(composition.config, presets=composition.presets))


def test_a_resumed_run_has_its_world_and_what_is_typed_is_told(tmp_path: Path) -> None:
    former = saved(tmp_path, f"env={HERE}:SquareWorld", "env.args.size=4", "env.args.title=007")
    assert compose_run([f"resume={former}"]).changes == ()
    found = compose_run([f"resume={former}", "env.args.size=5"])
    assert found.changes == ("env.args.size: 4 -> 5",)
    assert found.config.env.args["title"] == "007"


@pytest.mark.slow
def test_a_resumed_run_may_change_to_another_world_and_back(tmp_path: Path) -> None:
    former = saved(tmp_path, f"env={HERE}:SquareWorld", "env.args.size=4")
    found = compose_run([f"resume={former}", "env=pocket"])
    assert (found.config.env.name, "word" in found.config.env.tasks, found.presets["env"]) == ("pocket", True, "pocket")
    assert found.config.env.args == all_options("pocket", {})
    same = compose_run([f"resume={former}", f"env={HERE}:SquareWorld", "backend=legacy"])
    assert same.config.env.args["size"] == 4


# Former keys.


@pytest.mark.parametrize(
    ("typed", "args"),
    [
        (["env.layout=fixed", "env.latency.kind=constant", "env.latency.mean_s=0.5"],
         {"layout": "fixed", "scale": 1, "horizon": "short",
          "latency": {"kind": "constant", "mean_s": 0.5, "sigma": 1.0}}),
        (["env.latency={kind:constant,mean_s:0.5}"],
         {"layout": "shuffled", "scale": 1, "horizon": "short",
          "latency": {"kind": "constant", "mean_s": 0.5, "sigma": 1.0}}),
        (["env=miniwob", "env.browser_path=/a b"], {"browser_path": "/a b"}),
    ],
)  # fmt: skip
def test_commands_with_former_keys_mean_what_they_did(typed: list[str], args: dict[str, Any]) -> None:
    assert load_config(typed).env.args == args


def test_the_screenshots_of_a_box_and_the_pixels_of_its_phone_are_told_apart() -> None:
    args = load_config(["env=gbox_local", "env.scale=2", "env.gbox.scale=0.5", "env.gbox.run=mine"]).env.args
    assert (args["pixel_scale"], args["scale"], args["run"], args["reset"]) == (2, 0.5, "mine", "pocket")


def test_a_configuration_that_was_saved_with_former_keys_is_read() -> None:
    former = {
        "name": "pocket", "layout": "themed", "scale": 2, "tasks": ["word"], "browser_path": "/b",
        "latency": {"kind": "none", "mean_s": 0.0, "sigma": 1.0},
        "gbox": {"base_url": "http://box/api/v1", "reset": "pocket", "prewarm": 2},
    }  # fmt: skip
    pocket = from_mapping({"env": former}).env
    assert (pocket.args["layout"], pocket.args["scale"], pocket.tasks) == ("themed", 2, ("word",))
    assert from_mapping({"env": {**former, "name": "miniwob"}}).env.args == {"browser_path": "/b"}
    box = from_mapping({"env": {**former, "name": "gbox"}}).env.args
    assert (box["prewarm"], box["layout"], box["pixel_scale"], box["scale"]) == (2, "themed", 2, 1.0)
    present = {"env": {"name": "pocket", "args": {"layout": "fixed"}}}
    assert renamed(present) == present
