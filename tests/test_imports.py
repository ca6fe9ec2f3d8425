"""The direction of dependencies, and what importing the entry points costs."""

import importlib
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
HEAVY = {
    *("torch", "transformers", "peft", "playwright", "gymnasium", "areal", "matplotlib", "wandb", "trackio"),
    *("unsloth", "vllm", "browsergym"),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages' sources and of the contracts."""
    copy = tmp_path_factory.mktemp("checkout")
    for package in ("cua_agent", "trainers"):
        shutil.copytree(ROOT / package, copy / package, ignore=lambda folder, names: skipped(Path(folder), names))
    shutil.copy(ROOT / ".importlinter", copy)
    return copy


def skipped(folder: Path, names: list[str]) -> set[str]:
    return {name for name in names if not (folder / name).is_dir() and not name.endswith(".py")}


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, env=environment)


def test_the_contracts_hold(checkout: Path) -> None:
    done = lint(checkout)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("trainers/rollouts/task_sampler", "from trainers.run.metrics import NAN", "trainers point down"),
        ("trainers/grpo/kl", "import trainers.areal.tensors", "trainers point down"),
        ("trainers/legacy/trainer", "import trainers.areal.tensors", "trainers point down"),
        ("trainers/config/types", "from trainers.config.run import TrainConfig", "No circles"),
        ("cua_agent/envs/miniwob/page", "from cua_agent.envs.miniwob.browser import MiniWobBrowser", "No circles"),
        ("cua_agent/tasks", "import cua_agent.envs.pocket.tasks", "depends on no world"),
        ("cua_agent/acting", "import trainers.protocol", "know nothing of training"),
        ("trainers/loop", "import areal.api", "areal is imported in"),
        ("cua_agent/envs/pool", "import gbox_sdk", "gbox_sdk is imported in"),
        ("cua_agent/models/loaders", "import unsloth", "unsloth is imported in"),
        ("cua_agent/envs/pocket/draw", "from playwright.async_api import Page", "playwright is imported in"),
        ("cua_agent/envs/web/page", "import gymnasium", "gymnasium is imported in"),
        ("trainers/components", "import hydra", "hydra is imported in"),
    ],
)
def test_a_wrong_import_is_found(checkout: Path, module: str, line: str, broken: str) -> None:
    file = checkout / f"{module}.py"
    sound = file.read_text(encoding="utf-8")
    file.write_text(f"{sound}\n\ndef planted() -> None:\n    {line}\n", encoding="utf-8")
    try:
        done = lint(checkout)
    finally:
        file.write_text(sound, encoding="utf-8")
    assert done.returncode == 1
    assert any(broken in name and "BROKEN" in name for name in done.stdout.splitlines()), done.stdout


def test_the_picture_of_the_packages_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_structure_picture.py"))
    assert script["TARGET"].read_text(encoding="utf-8") == script["render"](), "run: make docs"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("CUAGRPOTrainer", "trainers.legacy.trainer"),
        ("AReaLGRPOTrainer", "trainers.areal.trainer"),
        ("GBoxAReaLEnv", "trainers.areal.env"),
        ("StandaloneGBoxCUAAgent", "cua_agent.agent"),
        ("load_model_with_unsloth", "cua_agent.models.unsloth"),
        ("get_training_tasks", "cua_agent.tasks"),
        ("get_eval_tasks", "cua_agent.tasks"),
    ],
)
def test_names_that_users_know_stay_where_they_are(name: str, module: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(
    "module",
    [
        "train",
        "cua_agent",
        "cua_agent.actions",
        "cua_agent.tasks",
        "trainers",
        "trainers.config",
        "trainers.config.compose",
    ],
)
def test_importing_an_entry_point_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {name.partition(".")[0] for name in done.stdout.split()} & HEAVY == set()
