"""The direction of dependencies, read from the source, and what importing the entry points costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "peft", "playwright", "areal", "matplotlib", "wandb", "trackio", "unsloth", "vllm"}


def sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def imported(file: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports anywhere, lazy imports included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def files_importing(package: str, *folders: str) -> set[str]:
    return {
        str(file.relative_to(ROOT))
        for file in sources(*folders)
        if any(name == package or name.startswith(f"{package}.") for name in imported(file))
    }


def test_the_agent_knows_nothing_of_the_trainers() -> None:
    assert len(sources("cua_agent")) > 5
    assert files_importing("trainers", "cua_agent") == set()
    assert files_importing("train", "cua_agent", "trainers") == set()


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("areal", "trainers/areal"),
        ("gbox_sdk", "cua_agent/envs/gbox"),
        ("unsloth", "cua_agent/models/unsloth"),
        ("playwright", "cua_agent/envs/miniwob"),
        ("miniwob", "cua_agent/envs/miniwob"),
        ("hydra", "trainers/config/compose.py"),
    ],
)
def test_a_foreign_system_is_imported_in_one_place_only(package: str, home: str) -> None:
    strangers = {file for file in files_importing(package, "cua_agent", "trainers") if not file.startswith(home)}
    assert strangers == set()


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
