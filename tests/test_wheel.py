"""The package as others get it: a wheel in an environment of its own, used in a folder that knows nothing of us."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[1]
SHORT = (
    *("experiment=quick", "max_steps=1", "threads=1", "rollout.groups_per_step=1", "rollout.group_size=2"),
    *("rollout.max_turns=2", "eval.baseline=false", "eval.episodes=2"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this state, built from nothing but what the build reads."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("cua_agent", "trainers", "conf"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip("wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(built))
    (made,) = built.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone. Everything that it depends on is taken from ours, so that nothing is
    downloaded; our own package there is out of reach, because a .pth file is not read for those of its folder."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip("--python", str(python), "install", "--no-index", "--no-deps", str(wheel))
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somewhere else, with a world of one's own in it."""
    directory = tmp_path_factory.mktemp("folder")
    (directory / "mine.py").write_text("from cua_agent.envs.pocket.world import PocketWorld as World\n")
    return directory


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def typed(line: str, installed: Path, folder: Path, *, activated: bool = True) -> subprocess.CompletedProcess[str]:
    """What a shell in `folder` makes of `line`."""
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if activated:
        settings["PATH"] = f"{installed / 'bin'}:{settings['PATH']}"
    shell = ["sh", "-c", line]
    return subprocess.run(shell, cwd=folder, env=settings, capture_output=True, text=True, timeout=1500, check=False)


def done(line: str, installed: Path, folder: Path, *, activated: bool = True) -> str:
    ended = typed(line, installed, folder, activated=activated)
    assert ended.returncode == 0, f"{line}\n{ended.stderr}"
    return ended.stdout


def test_it_has_no_module_of_a_common_name_and_all_presets(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"cua_agent", "trainers"}
    presets = {str(file.relative_to(ROOT / "conf")) for file in (ROOT / "conf").rglob("*.yaml")}
    assert {name.removeprefix("trainers/conf/") for name in names if name.startswith("trainers/conf/")} == presets


def test_our_own_checkout_is_out_of_reach(installed: Path, folder: Path) -> None:
    where = done(
        "python -c 'import trainers, cua_agent; print(trainers.__file__, cua_agent.__file__)'", installed, folder
    )
    assert where.count(str(installed)) == 2


@pytest.mark.parametrize(
    "command", ["cua-train", "cua-compare", "cua-agent", "cua-doctor", "cua-watch", "cua-evaluate", "cua-clone"]
)
def test_every_command_says_how_it_is_used(command: str, installed: Path, folder: Path) -> None:
    words = done(f"{command} --help", installed, folder)
    assert "train.py [key" not in words and "python compare.py" not in words


def test_a_run_and_everything_that_it_says_to_type_next(installed: Path, folder: Path) -> None:
    words = done(shlex.join(["cua-train", *SHORT, "backend=legacy", "run_name=first"]), installed, folder)
    play, go_on, draw = words.split("draw the curves")[1].splitlines()[1:4]
    assert play.split()[0] == "cua-agent" and go_on.split()[0] == "cua-train"
    assert "trace: outputs/trace.html" in done(play, installed, folder)
    done(go_on, installed, folder)
    done(draw, installed, folder)
    rows = [json.loads(file.read_text()) for file in (folder / "outputs").glob("*/metrics.jsonl")]
    assert sorted(row["step"] for row in rows) == [1, 2]


def test_what_it_says_to_type_where_the_environment_is_not_activated(installed: Path, folder: Path) -> None:
    words = done(
        f"{installed}/bin/cua-train {shlex.join(SHORT)} backend=legacy run_name=apart",
        installed,
        folder,
        activated=False,
    )
    commands = [line.strip() for line in words.split("draw the curves")[1].splitlines()[1:4]]
    assert [command.split()[0] for command in commands] == [
        f"{installed}/bin/{name}" for name in ("cua-agent", "cua-train", "python")
    ]
    done(commands[2], installed, folder, activated=False)


def test_runs_are_compared_and_trained_where_they_are_missing(installed: Path, folder: Path) -> None:
    words = ["cua-compare", "backends=[legacy]", "seeds=[3]", *SHORT, "output_dir=compared", "out=report"]
    done(shlex.join(words), installed, folder)
    assert (folder / "report" / "compare.html").is_file()


def test_a_sweep_and_a_supervised_run_start_the_command(installed: Path, folder: Path) -> None:
    done(shlex.join(["cua-train", "-m", *SHORT, "backend=legacy", "seed=5,6", "output_dir=swept"]), installed, folder)
    assert len(list((folder / "swept").glob("*/summary.json")) + list((folder / "swept").glob("*/*/summary.json"))) == 2
    done(
        shlex.join(["python", "-m", "trainers.supervise", "run_name=kept", *SHORT, "backend=legacy"]), installed, folder
    )
    assert (folder / "outputs" / "kept" / "summary.json").is_file()


def test_workers_of_a_cluster_and_a_resumed_run_find_the_world_of_the_folder(installed: Path, folder: Path) -> None:
    pytest.importorskip("areal")
    mine = ["cua-train", *SHORT, "env=mine:World", "env.tasks=[brightness]"]
    done(shlex.join([*mine, "scheduler=local", "run_name=cluster"]), installed, folder)
    done("cua-train resume=outputs/cluster max_steps=2 run_name=longer", installed, folder)
    assert json.loads((folder / "outputs/longer/metrics.jsonl").read_text())["step"] == 2


def test_what_is_missing_is_said_without_what_only_a_checkout_has(installed: Path, folder: Path) -> None:
    ended = typed("cua-train env=miniwob env.args.browser_path=/nowhere/chromium", installed, folder)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "install a headless Chromium" in ended.stderr and "make" not in ended.stderr


def test_the_doctor_looks_at_a_run(installed: Path, folder: Path) -> None:
    ended = typed(shlex.join(["cua-doctor", *SHORT, "--json"]), installed, folder)
    checks = json.loads(ended.stdout)["checks"]
    assert ended.returncode == 0 and len(checks) > 5, ended.stdout
