"""The pages on runs: what is read, served, refused and exported."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.watch_rig import PLANTED, read, record_run
from trainers.episodes.tail import Tail
from trainers.watch.__main__ import main
from trainers.watch.export import export
from trainers.watch.recording import Recording
from trainers.watch.server import application
from trainers.watch.views import answer


def test_groups_stand_with_their_siblings_and_reasons(tmp_path: Path) -> None:
    recording = read(record_run(tmp_path / "run"))
    kept, filtered = sorted(answer([recording], "0/groups"), key=lambda group: group["group"])
    assert (kept["group"], kept["step"], kept["state"]) == ("g10", 1, "kept")
    assert (filtered["state"], filtered["why"]) == ("filtered", "no signal: all 2 rewards are 0")
    assert [member["outcome"] for member in filtered["members"]] == ["false_claim", "false_claim", "infra_error"]
    won, failed = answer([recording], "0/group/0/g10")
    assert (won["id"], won["advantage"], failed["advantage"]) == ("g10-0", 1.0, -1.0)
    assert won["turns"][0]["point"] == [500, 250] and won["turns"][0]["screen"] != failed["turns"][0]["screen"]


def test_a_group_that_no_step_used_says_so_when_the_run_is_over(tmp_path: Path) -> None:
    run = record_run(tmp_path / "run")
    steps = run / "episodes" / "steps.jsonl"
    steps.write_text("".join(line for line in steps.open() if '"g11"' not in line))
    live = run / "episodes" / "live-0.json"
    live.write_text(json.dumps({"process": "0", "open": True, "time": time.time(), "devices": []}))
    newest, _ = answer([read(run)], "0/groups")
    assert (newest["group"], newest["state"]) == ("g11", None)
    live.write_text(json.dumps({"process": "0", "open": True, "time": time.time() - 60, "devices": []}))
    newest, _ = answer([read(run)], "0/groups")
    assert (newest["state"], newest["why"]) == ("unused", "the run ended before a step used it")


def test_evaluations_show_a_seed_after_every_checkpoint(tmp_path: Path) -> None:
    data = answer([read(record_run(tmp_path / "run"))], "0/evaluations")
    (row,) = data["rows"]
    assert data["steps"] == [0, 1]
    assert [row["played"][step]["outcome"] for step in data["steps"]] == ["false_claim", "success"]


def test_a_lineage_is_read_as_one_run_without_what_was_lost(tmp_path: Path) -> None:
    former = record_run(tmp_path / "former", first=1)
    lost = record_run(tmp_path / "lost", first=2, resumed_from=former)
    run = record_run(tmp_path / "run", first=2, resumed_from=lost)  # goes on from step 1: step 2 of `lost` is lost
    recording = read(run)
    assert [part.directory.name for part in recording.parts] == ["former", "lost", "run"]
    groups = answer([recording], "0/groups")
    assert [(group["part"], group["group"]) for group in groups] == [(2, "g21"), (2, "g20"), (0, "g11"), (0, "g10")]
    assert answer([recording], "0/evaluations")["steps"] == [0, 1, 2]


def test_now_tells_steps_and_lost_episodes(tmp_path: Path) -> None:
    state = answer([read(record_run(tmp_path / "run"))], "0/now")
    assert (state["live"], state["version"], state["settings"]["max_steps"]) == (False, 1, 9)
    assert state["steps"][0]["rollout_s"] == 1.0
    assert [(lost["id"], lost["failure"]) for lost in state["lost"]] == [("g11-1.1", "Tap it.")]


def test_a_row_counts_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"a": 1}\n[1]\nno json\n{"a": ')
    assert [row for _, row in tail.read()] == [{"a": 1}]
    with path.open("a") as file:
        file.write("2}\n")
    ((place, row),) = tail.read()
    assert row == {"a": 2} == place.read()


@pytest.mark.parametrize("name", ["", "nothing", "7/now", "0/nothing", "0/episode/999", "0/group/0", "../0/now"])
def test_what_is_not_there_is_not_answered(tmp_path: Path, name: str) -> None:
    assert answer([read(record_run(tmp_path / "run"))], name) is None


def ask(directory: Path, path: str, **headers: str) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(application([Recording(directory)]))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(get())


def test_the_server_shows_screens_of_its_runs_and_no_other_file(tmp_path: Path) -> None:
    run = record_run(tmp_path / "run")
    (tmp_path / "secret.webp").write_text("secret")
    screen = next((run / "episodes" / "screens").rglob("*.webp"))
    name = screen.relative_to(run / "episodes" / "screens")
    assert ask(run, f"/screens/0/0/{name}").content == screen.read_bytes()
    for path in ("../../../secret.webp", "%2e%2e/%2e%2e/%2e%2e/secret.webp", "/etc/passwd", f"../screens/{name}"):
        assert ask(run, f"/screens/0/0/{path}").status_code == 404
    assert ask(run, f"/screens/0/7/{name}").status_code == 404
    assert ask(run, "/static/../server.py").status_code == 404


def test_a_page_elsewhere_cannot_read_along(tmp_path: Path) -> None:
    run = record_run(tmp_path / "run")
    assert ask(run, "/data/runs").json() == [{"name": "run", "parts": 1}]
    assert ask(run, "/data/runs", host="rebound.example").status_code == 400
    policy = ask(run, "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_an_export_holds_everything_and_asks_nobody(tmp_path: Path) -> None:
    run = record_run(tmp_path / "run", goal=PLANTED)
    page = export([Recording(run)], tmp_path / "out")
    text = page.read_text()
    assert "data-exported" in text and '"/static' not in text and "http" not in text
    recording = read(run)
    for name in ("runs", "curves", "0/now", "0/groups", "0/group/0/g10", "0/episodes", "0/episode/0", "0/evaluations"):
        content = (tmp_path / "out" / "data" / f"{name}.js").read_text()
        assert content.startswith(f'received("{name}", ')
        told: Any = json.loads(content.removeprefix(f'received("{name}", ').removesuffix(");\n"))
        if name != "0/now":
            assert told == json.loads(json.dumps(answer([recording], name)))
    screens = {path.name for path in (run / "episodes" / "screens").rglob("*.webp")}
    assert {path.name for path in (tmp_path / "out" / "screens").rglob("*.webp")} == screens


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = record_run(tmp_path / "run")
    assert main([str(tmp_path / "nothing")]) == 2
    assert main([str(run), "--export", str(tmp_path)]) == 2
    assert main([str(run), "--port", "99999"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert errors[0] == f"error: {tmp_path / 'nothing'}: no run directory of train.py"
    assert errors[2].startswith("error: --port 99999: ")
    assert main([str(run), "--export", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'index.html'}\n"
