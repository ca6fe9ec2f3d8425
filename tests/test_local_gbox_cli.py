"""`python -m cua_agent.envs.local_gbox` as a process."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
from fastapi.testclient import TestClient
from local_gbox_rig import sdk

from cua_agent.envs.local_gbox.__main__ import main, parse_options
from cua_agent.envs.local_gbox.faults import FaultKind, FaultPlan
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.envs.local_gbox.server import LocalGBox, listen, make_app, running
from cua_agent.envs.pocket.latency import Latency

COMMAND = [sys.executable, "-m", "cua_agent.envs.local_gbox"]
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def line_of(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


@pytest.mark.slow
def test_help() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True, cwd=ROOT, env=ENVIRONMENT)
    for option in ("--port", "--host", "--seed", "--latency", "--fault-rate", "--faults", "--quota"):
        assert option in done.stdout
    assert "127.0.0.1" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_serve_and_stop(interrupt: signal.Signals) -> None:
    """A signal ends it at once, also while a request hangs; it says what is left, and no traceback."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--api-key", "secret", "--fault-rate", "1", "--faults", "timeout", "--seed", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    try:
        first = line_of(process.stdout)
        match = re.fullmatch(
            r"local GBox: GBOX_CLIENT_BASE_URL=(http://127\.0\.0\.1:\d+)/api/v1/ GBOX_API_KEY=secret\n", first
        )
        assert match, first
        server = LocalGBox(match[1], "secret")
        assert line_of(process.stdout) == f"ledger:     {match[1]}/ledger\n"
        with sdk(server, timeout=0.3) as client, pytest.raises(Exception, match="timed out"):
            client(lambda c: c.v1.boxes.list())
        hanging = subprocess.Popen(
            [sys.executable, "-c", _LIST, server.base_url, "secret"], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while len(server.ledger()["faults"]) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(interrupt)
        rest, errors = process.communicate(timeout=20)
        hanging.wait(timeout=20)
    finally:
        process.kill()
    assert errors == ""
    assert rest == "0 boxes created, 0 still running; 0 actions, 0 sent twice; faults: 2 timeout\n"
    assert process.returncode == 128 + interrupt


_LIST = """
import sys, httpx
httpx.get(f"{sys.argv[1]}boxes", headers={"Authorization": f"Bearer {sys.argv[2]}"}, timeout=60)
"""


def test_options_reach_the_server() -> None:
    latency = ["--latency", "lognormal", "--action-s", "0.5", "--create-s", "2", "--sigma", "0.7"]
    faults = ["--fault-rate", "0.2", "--faults", "drop,death", "--fault-moment", "after"]
    durations = ["--hang-s", "9", "--slow-create-s", "8", "--retry-after-s", "7"]
    phones = ["--layout", "fixed", "--scale", "2", "--quota", "3"]
    options = parse_options(["--port", "0", "--seed", "4", *phones, *latency, *faults, *durations])
    assert options == LocalGBoxOptions(
        port=0,
        seed=4,
        layout="fixed",
        scale=2,
        quota=3,
        action_latency=Latency("lognormal", 0.5, 0.7, 4),
        create_latency=Latency("lognormal", 2.0, 0.7, 4),
        faults=FaultPlan(0.2, (FaultKind.DROP, FaultKind.DEATH), "after", 4),
        hang_s=9,
        slow_create_s=8,
        retry_after_s=7,
    )
    assert parse_options([]) == LocalGBoxOptions(port=8600, **_default_latencies())


def _default_latencies() -> dict[str, Latency]:
    return {"action_latency": Latency("none", 1.0), "create_latency": Latency("none", 5.0)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fault-rate", "1.5"], "error: --fault-rate=1.5 must be from 0 to 1"),
        (["--faults", "drop,rain"], "error: --faults: 'rain' is not one of server_error,rate_limit,"),
        (["--scale", "9"], "error: --scale 9: Input should be less than or equal to 8"),
        (["--hang-s", "0"], "error: --hang-s 0.0: Input should be greater than 0"),
        (["--port", "70000"], "error: --port 70000: Input should be less than or equal to 65535"),
        (["--quota", "0"], "error: --quota 0: Input should be greater than or equal to 1"),
    ],
)
def test_bad_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(package: str) -> None:
    program = (
        f"import sys; sys.modules['{package}'] = None; from cua_agent.envs.local_gbox.__main__ import main; main([])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert (done.stdout, done.stderr) == ("", f"error: {package} is missing: pip install 'cua-grpo[local-gbox]'\n")


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with listen(LocalGBoxOptions()) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert capsys.readouterr().err == f"error: --port {port} on 127.0.0.1: Address already in use\n"


def documented(pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / "docs" / "gbox.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_documented_commands_parse() -> None:
    commands = documented(r"^python -m cua_agent\.envs\.local_gbox([^\n]*)$")
    assert len(commands) >= 4
    for command in commands:
        parse_options(command.split())


@pytest.mark.slow
def test_documented_example_runs() -> None:
    (example,) = documented(r"^```python\n(from gbox_sdk import GboxClient\n.*?local_gbox.*?)^```")
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=ENVIRONMENT)
    assert (done.stdout, done.stderr) == ("Make sure Wi-Fi is on.\n\n", "")


def test_documented_faults_are_those_there_are() -> None:
    assert documented(r"^\| (\w+) \| [^|\n]+ \| [^|\n]+ \| [^|\n]+ \|$")[1:] == list(FaultKind)


def test_a_server_in_a_thread_leaves_nothing_behind() -> None:
    with running() as server, sdk(server) as client:
        client(lambda c: c.v1.boxes.create_android())
    with sdk(server) as client, pytest.raises(Exception, match="Connection error"):
        client(lambda c: c.v1.boxes.list())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", ""])
def test_an_address_that_others_reach_needs_a_key_of_its_own(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", host, "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --host {host}: other machines reach it, and everybody knows")
    assert parse_options(["--host", host, "--api-key", "mine"]).host == host


def test_the_ledger_needs_the_key_where_others_reach_it() -> None:
    for host, status in (("127.0.0.1", 200), ("0.0.0.0", 401)):
        client = TestClient(make_app(LocalGBoxOptions(host=host, api_key="mine")))
        assert client.get("/ledger").status_code == status
        assert client.get("/ledger", headers={"authorization": "Bearer mine"}).status_code == 200
