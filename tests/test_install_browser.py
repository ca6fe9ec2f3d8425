"""`make browser` installs what the distribution has, or says what to do: it never stops `make test`."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install_browser.sh"


def fake_tools(directory: Path, **tools: str) -> Path:
    """A directory with shell scripts of these names that do what they say."""
    directory.mkdir()
    for name, body in tools.items():
        tool = directory / name.replace("_", "-")
        tool.write_text(f'#!/bin/sh\necho "{tool.name} $*" >>{directory}/calls\n{body}\n')
        tool.chmod(0o755)
    return directory


def install(tools: Path, browser: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{tools}:/usr/bin:/bin"}
    return subprocess.run(["sh", SCRIPT, browser], capture_output=True, text=True, env=environment, timeout=60)


def test_a_browser_that_is_there_is_left_alone(tmp_path: Path) -> None:
    tools = fake_tools(tmp_path / "bin", apt_get="exit 1", browser="exit 0")
    done = install(tools, tools / "browser")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tools / "calls").exists()


def test_a_package_that_the_distribution_has_is_installed(tmp_path: Path) -> None:
    browser = tmp_path / "chromium"
    does = f'[ "$1" = install ] && {{ echo >{browser}; chmod +x {browser}; }}; exit 0'
    tools = fake_tools(tmp_path / "bin", apt_get=does, apt_cache="exit 0", id="echo 0")
    done = install(tools, browser)
    assert (done.returncode, done.stderr) == (0, "")
    assert "apt-get install -y -qq --no-install-recommends chromium-headless-shell" in (tools / "calls").read_text()


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ({"apt_get": "exit 0", "apt_cache": "exit 100", "id": "echo 0"}, "this distribution has no package"),
        ({"apt_get": "exit 100", "apt_cache": "exit 0", "id": "echo 0"}, "apt-get update failed"),
        ({"apt_get": '[ "$1" = update ]', "apt_cache": "exit 0", "id": "echo 0"}, "apt-get install chromium"),
        ({"apt_get": "exit 0", "apt_cache": "exit 0", "id": "echo 0"}, "is installed elsewhere"),
        ({"apt_get": "exit 100", "apt_cache": "exit 0", "id": "echo 1000"}, "install it as root: sudo apt-get"),
    ],
    ids=["ubuntu", "no network", "broken package", "another place", "not root"],
)
def test_what_cannot_be_installed_is_a_hint_and_status_0(tools: dict[str, str], words: str, tmp_path: Path) -> None:
    done = install(fake_tools(tmp_path / "bin", **tools), tmp_path / "chromium")
    assert done.returncode == 0
    assert words in done.stderr
    assert "env.args.browser_path=<path>" in done.stderr
