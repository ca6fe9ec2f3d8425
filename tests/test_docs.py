"""The documentation says what is there: links, commands, keys, presets and the example of a world of one's own."""

import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cua_agent.__main__ import find_task, parse_options
from cua_agent.envs.pocket.tasks import FAMILIES, HELD_OUT_FAMILIES
from cua_agent.envs.registry import BUILT_IN, options_of
from trainers.clone.options import CloneConfig
from trainers.clone.training import check_source
from trainers.compare.options import read_arguments
from trainers.compare.plan import plan
from trainers.config import TrainConfig, compose
from trainers.config.compose import choices, load_config
from trainers.config.from_env import convert, render
from trainers.config.old_variables import VARIABLES
from trainers.config.own_keys import read_own
from trainers.config.validation import fields_of
from trainers.evaluate.options import EvaluateConfig
from trainers.parity.__main__ import parser as parity_parser
from trainers.parity.cases import CASES
from trainers.parity.greedy import LIVE_CASES
from trainers.rollouts.task_sampler import training_tasks
from trainers.watch.__main__ import parser as watch_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED_DIRECTORIES = (
    *("outputs/my-run/checkpoints/best", "outputs/my-lora/checkpoints/best", "my-model", "tiny-again"),
    *(
        "outputs/my-legacy/checkpoints/best",
        "outputs/my-phase-3",
        "outputs/my-way-back",
        "outputs/grpo_cua/checkpoint-120",
    ),
)
"""What the documented commands suppose to be there."""
FILE_NAMES = {"eval.jsonl"}
"""What reads like a key and is none."""


def page_id(page: Path) -> str:
    return page.name


def text_of(page: Path) -> str:
    return re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands() -> Iterator[list[str]]:
    """Every command of a shell block, and every one written inline, as its words."""
    for page in PAGES:
        blocks = "\n".join(fenced(page, "bash")).replace("\\\n", " ")
        inline = [code for code in inline_code(page) if re.match(r"(python|make) ", code) and "..." not in code]
        for line in [*blocks.splitlines(), *inline]:
            if words := shlex.split(line, comments=True):
                yield words


def commands_of(*start: str) -> list[list[str]]:
    """The arguments of the documented commands that begin with `start` and have any, each once."""
    found = [words[len(start) :] for words in commands() if words[: len(start)] == list(start)]
    return [list(words) for words in dict.fromkeys(map(tuple, found)) if words]


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_images_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = text_of(PAGES[0])
    assert len(PAGES) > 6
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


@pytest.fixture
def named_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the documented commands suppose to be there, the preset of an old `.env` included."""
    shutil.copytree(compose.CONF, tmp_path / "conf")
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("todo_world.py").write_text(fenced(ROOT / "docs" / "environments.md", "python")[0], encoding="utf-8")
    for directory in NAMED_DIRECTORIES:
        Path(directory).mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(render(convert({}), "old.env"), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", commands_of("python", "train.py"), ids=" ".join)
def test_training_commands_compose(arguments: list[str], named_directories: None) -> None:
    overrides = [argument for argument in arguments if argument not in ("--config", "--help")]
    if "env=mobilegym" in arguments:
        pytest.importorskip("bench_env", reason="MobileGym's tasks are in a checkout of its own: test_mobilegym")
    assert training_tasks(load_config(overrides).env)


@pytest.mark.parametrize("arguments", commands_of("python", "-m", "cua_agent"), ids=" ".join)
def test_episode_commands_name_tasks_and_keys_that_exist(arguments: list[str], named_directories: None) -> None:
    options = parse_options([argument for argument in arguments if argument not in ("--list", "--help")])
    if not {"--list", "--help"} & set(arguments):
        find_task(options)
    assert options.model == "tiny" or Path(options.model).is_dir()


@pytest.mark.parametrize("arguments", commands_of("python", "compare.py"), ids=" ".join)
def test_comparing_commands_compose(arguments: list[str]) -> None:
    if arguments != ["--help"]:
        options, overrides = read_arguments(arguments)
        assert options.runs or plan(options, overrides)


@pytest.mark.parametrize("arguments", commands_of("python", "-m", "trainers.parity"), ids=" ".join)
def test_parity_commands_are_understood(arguments: list[str]) -> None:
    given = parity_parser().parse_args(arguments)
    if arguments[0] == "record":
        assert load_config(given.overrides)


@pytest.mark.parametrize("arguments", commands_of("python", "-m", "trainers.watch"), ids=" ".join)
def test_watching_commands_are_understood(arguments: list[str]) -> None:
    assert watch_parser().parse_args(arguments).runs


@pytest.mark.parametrize("arguments", commands_of("python", "-m", "trainers.evaluate"), ids=" ".join)
def test_evaluating_commands_are_understood(arguments: list[str]) -> None:
    options, _, overrides = read_own(EvaluateConfig, arguments)
    assert options.checkpoint and load_config(overrides)


@pytest.mark.parametrize("arguments", commands_of("python", "-m", "trainers.clone"), ids=" ".join)
def test_cloning_commands_are_understood(arguments: list[str], named_directories: None) -> None:
    options, _, overrides = read_own(CloneConfig, arguments)
    check_source(options, load_config(overrides))


def test_training_and_episode_commands_were_found() -> None:
    assert len(commands_of("python", "train.py")) > 20
    assert len(commands_of("python", "-m", "cua_agent")) > 4


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {target for (target, *_) in commands_of("make")}
    assert {"run", "test", "setup", "browser"} <= named
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_scripts_know_the_options_that_are_given_to_them() -> None:
    scripts = [words[1:] for words in commands() if words[0] == "python" and words[1].startswith(("scripts", "bench"))]
    assert scripts
    for script, *arguments in scripts:
        source = (ROOT / script).read_text(encoding="utf-8")
        unknown = [argument for argument in arguments if argument.startswith("--") and f'"{argument}"' not in source]
        assert unknown == [], script


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_keys_named_in_the_text_exist(page: Path) -> None:
    known = {name for name, _ in fields_of(TrainConfig)}
    known |= {f"env.args.{name}" for world in BUILT_IN for name, _ in fields_of(options_of(world))}
    sections = {name.partition(".")[0] for name in known if "." in name}
    keys = {code.partition("=")[0] for code in inline_code(page) if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(=.*)?", code)}
    assert {key for key in keys if key.partition(".")[0] in sections and key not in known | FILE_NAMES} == set()


def test_the_readme_lists_every_preset() -> None:
    table = {words[2].removeprefix("experiment=") for words in commands_in_table(PAGES[0])}
    assert table == set(choices("experiment"))


def commands_in_table(page: Path) -> list[list[str]]:
    return [shlex.split(command) for command in re.findall(r"^\| `(python train\.py [^`]+)` \|", prose(page), re.M)]


def test_the_table_of_families_is_complete() -> None:
    section = prose(ROOT / "docs" / "environments.md").partition("### Task families")[2].partition("###")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE))
    assert set(table) == {family.category for family in (*FAMILIES, *HELD_OUT_FAMILIES)}
    assert {family for family, default in table.items() if default == "yes"} == set(load_config([]).env.tasks)


def test_the_table_of_old_variables_is_complete() -> None:
    rows = re.findall(
        r"^\| `([A-Z_0-9]+)` \| `([a-z_.0-9]+)` \| (.+) \|$", prose(ROOT / "docs" / "migration-env.md"), re.M
    )
    assert rows == [
        (variable.name, variable.key, "none" if variable.default is None else f"`{variable.default}`")
        for variable in VARIABLES
    ]


def names_of_the_guide() -> list[list[str]]:
    """The dotted names in the cells of every row of the guide's names: theirs, AReaL's (not in each table), ours."""
    section = prose(ROOT / "docs" / "backends.md").partition("## Names of the guide")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [[" ".join(re.findall(r"`((?:\w+\.)+\w+)(?:\(\))?`", cell)) for cell in row] for row in rows]


def test_the_names_to_use_instead_of_the_guides_exist() -> None:
    rows = names_of_the_guide()
    ours = [name for row in rows for name in row[-1].split() if name.startswith(("trainers.", "cua_agent."))]
    assert len(rows) > 25
    assert len(ours) > 25
    for name in ours:
        assert pkgutil.resolve_name(name) is not None


@pytest.mark.slow
def test_areal_has_the_names_that_are_given_as_its_own_and_not_the_guides(tmp_path: Path) -> None:
    tables = [row for row in names_of_the_guide() if len(row) == 3]
    invented = [name for theirs, _, _ in tables for name in theirs.split() if name.startswith("areal.")]
    real = [name for _, names, _ in tables for name in names.split() if name.startswith("areal.")]
    assert len(invented) > 5
    assert len(real) > 9
    found = run_python(
        "import pkgutil, pathlib\n"
        "from trainers.areal.process import prepare_process\n"
        "prepare_process(pathlib.Path())\n"
        f"for name in {invented + real}:\n"
        "    try:\n        pkgutil.resolve_name(name)\n"
        "    except (ImportError, AttributeError):\n        continue\n"
        "    print(name)\n",
        tmp_path,
    )
    assert found.split() == real


def run_python(source: str, folder: Path) -> str:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{source}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_example_workflow_plays_as_printed(tmp_path: Path) -> None:
    workflow, driver = fenced(ROOT / "docs" / "migration.md", "python")
    (tmp_path / "my_workflow.py").write_text(workflow, encoding="utf-8")
    played = run_python(driver, tmp_path).splitlines()
    assert len(played) == 8
    assert all(re.fullmatch(r"\d+ tokens, \d+ sampled, reward [01]\.0", line) for line in played)


def test_every_row_of_the_algorithms_is_held_by_cases_of_the_ladder() -> None:
    cases = {case.name for case in (*CASES, *LIVE_CASES)}
    table = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8").split("\n\n")[3]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert len(rows) > 12
    for row in rows:
        assert set(row[-1].split(", ")) <= cases, row[0]
