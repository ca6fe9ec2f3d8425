"""What happened when: rows within their bound, the trace-event format, how long devices waited."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.test_episodes import DONE, TAP, play_and_record
from trainers.config import LoggingConfig
from trainers.config.saved import read_saved
from trainers.timeline.__main__ import main
from trainers.timeline.log import RUN, TIMELINE, Row, TimelineLog, episode_row, evaluation_row, read_timeline, step_row
from trainers.timeline.spans import phases_of
from trainers.timeline.trace import CLOCK, write_trace
from trainers.timeline.waits import DeviceWaits, device_waits
from trainers.watch.strip import strip

HOSTILE = "<script>window.planted = 1</script>"


def episode(name: str, device: int, began: float, ended: float) -> Row:
    middle = (began + ended) / 2
    return episode_row(name, "tap", device, 3, began, ended, [("starting", began), ("sampling", middle)])


def hand_made(directory: Path) -> None:
    """Two devices, one step: its batch was complete at 110 s, and its figures are about the 10 s before."""
    times = {"rollout_s": 8.0, "train_s": 4.0, "sync_s": 1.0, "capacity_s": 20.0}
    for process, rows in {
        "0": [episode("g0-0", 0, 96, 104), episode("g0-1", 1, 101, 109), episode(HOSTILE, 0, 104, 112)],
        RUN: [evaluation_row("seeds", 0, 90, 95), step_row(1, 110.0, times)],
    }.items():
        log = TimelineLog(directory, process, 1.0)
        for row in rows:
            log.append(row)


def check_events(trace: Path) -> dict[str, set[str]]:
    """Hold a trace to the JSON object format of trace events; the names of the tracks by that of their group."""
    content = json.loads(trace.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # NaN is no JSON
    assert set(content) == {"traceEvents", "displayTimeUnit"}
    assert isinstance(content["traceEvents"], list) and content["displayTimeUnit"] in ("ms", "ns")
    names: dict[tuple[str, int, int], str] = {}
    spans = defaultdict(list)
    for event in content["traceEvents"]:
        assert event["ph"] in ("X", "M", "i", "C"), event
        assert isinstance(event["name"], str) and isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert isinstance(event["ts"], int) and event["ts"] >= 0
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
            assert event["name"].endswith("_sort_index") or isinstance(event["args"]["name"], str)
            names[event["name"], event["pid"], event["tid"]] = str(event["args"].get("name"))
        elif event["ph"] == "X":
            assert isinstance(event["dur"], int) and event["dur"] >= 0 and isinstance(event.get("args", {}), dict)
            assert isinstance(event.get("cat", ""), str) and event["ts"] < 5e15  # microseconds since the epoch
            spans[event["pid"], event["tid"]].append((event["ts"], -event["dur"]))
    tracks = defaultdict(set)
    for (pid, tid), own in spans.items():
        tracks[names["process_name", pid, 0]].add(names.get(("thread_name", pid, tid), ""))
        open_until: list[int] = []
        for began, length in sorted(own):  # spans of a track lie within each other, or apart
            while open_until and open_until[-1] <= began + 1:
                open_until.pop()
            assert not open_until or began - length <= open_until[-1] + 1, (pid, tid, began)
            open_until.append(began - length)
    return dict(tracks)


def test_the_trace_keeps_to_the_format_with_a_track_each(tmp_path: Path) -> None:
    hand_made(tmp_path)
    trace = write_trace(tmp_path)
    content = json.loads(trace.read_text())
    assert check_events(trace) == {
        "run": {"waiting for rollouts", "training", "publishing weights", "evaluation"},
        "devices of process 0": {"device 0", "device 1"},
        "model requests of process 0": {"device 0", "device 1"},
    }
    (trained,) = [event for event in content["traceEvents"] if event.get("cat") == "run" and event["tid"] == 2]
    assert (trained["name"], trained["ts"], trained["dur"]) == ("step 1", 110_000_000, 4_000_000)


def test_areals_own_spans_are_moved_to_our_clock(tmp_path: Path) -> None:
    hand_made(tmp_path)
    own = tmp_path / "areal" / "logs" / "me" / "a" / "b" / "perf_tracer" / "master" / "traces-r0.jsonl"
    own.parent.mkdir(parents=True)
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 7, "tid": 0, "ts": 0, "args": {"name": "x"}},
        {"name": CLOCK, "ph": "i", "ts": 500, "pid": 7, "tid": 1, "args": {"time": 100.0}},
        {"name": "train.ppo_update", "ph": "X", "ts": 1_000_500, "dur": 9, "pid": 7, "tid": 1, "args": {}},
    ]
    own.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"name": "cut sh')
    trace = write_trace(tmp_path)
    content = json.loads(trace.read_text())
    check_events(trace)
    (moved,) = [event for event in content["traceEvents"] if event["name"] == "train.ppo_update"]
    assert moved["ts"] == 101_000_000


def test_how_long_devices_waited_by_hand(tmp_path: Path) -> None:
    hand_made(tmp_path)
    # From 100 to 110 s: device 0 plays 4 + 6 s, device 1 plays 8 s, of 20.
    assert device_waits(read_timeline(tmp_path), 2) == [DeviceWaits(1, 18.0, 2.0)]


def test_the_newest_rows_are_kept_within_their_bound(tmp_path: Path) -> None:
    log = TimelineLog(tmp_path, "0", 0.01)
    for number in range(500):
        log.append(episode(f"g{number}", 0, number, number + 1))
        assert sum(path.stat().st_size for path in (tmp_path / TIMELINE).iterdir()) <= 10_000
    kept = [row["episode"] for row in read_timeline(tmp_path)["0"]]
    assert kept == [f"g{number}" for number in range(500 - len(kept), 500)] and len(kept) > 20
    TimelineLog(tmp_path / "none", "0", 0.0).append(episode("g0", 0, 0, 1))
    assert not (tmp_path / "none").exists()


def test_an_episode_tells_its_phases_recorded_or_not(tmp_path: Path) -> None:
    assert play_and_record(tmp_path, [TAP, DONE], config=LoggingConfig(record_groups=0)) == []
    (row,) = read_timeline(tmp_path)["0"]
    assert (row["episode"], row["device"], row["version"]) == ("g000000-0", 0, 7)
    phases = list(phases_of(row))
    assert [what for what, _, _ in phases] == ["reset", "model", "device", "model", "device", "scoring"]
    assert all(began <= ended for _, began, ended in phases) and phases[-1][2] == row["ended"]


def test_the_strip_of_a_step_has_a_lane_each(tmp_path: Path) -> None:
    hand_made(tmp_path)
    told = strip(tmp_path, 1)
    assert told is not None and told["seconds"] == 13.0
    lanes = {lane["name"]: lane["spans"] for lane in told["lanes"]}
    assert list(lanes)[-2:] == ["device 0", "device 1"]
    assert lanes["training"] == [("training", 8.0, 4.0, "step 1")]
    assert lanes["device 1"] == [
        ("episode", 0.0, 7.0, "g0-1"),
        ("reset", 0.0, 3.0, "reset"),
        ("model", 3.0, 4.0, "model"),
    ]
    assert strip(tmp_path, 2) is None


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no run with a timeline (logging.timeline_mb)\n"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", [("backend=legacy",), ("backend=areal", "phase=3")])
def test_the_timeline_answers_how_long_devices_waited(backend: tuple[str, ...], tmp_path: Path) -> None:
    keys = ("experiment=quick", "threads=1", "max_steps=3", "eval.episodes=4", "rollout.concurrency=6", "seed=3")
    slow = "env.args.latency={kind:constant,mean_s:0.3}"
    command = [sys.executable, "train.py", *backend, *keys, slow, f"output_dir={tmp_path}", "run_name=run"]
    subprocess.run(command, check=True, capture_output=True)
    run = tmp_path / "run"
    tracks = check_events(run / "trace.json")
    assert {"run", "devices of process 0", "model requests of process 0"} <= set(tracks)
    assert tracks["devices of process 0"] == {f"device {number}" for number in range(6)}
    if "phase=3" in backend:
        assert any(name.startswith("AReaL") for name in tracks)
    waits = device_waits(read_timeline(run), int(read_saved(run).settings["rollout.concurrency"]))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [each.step for each in waits] == [1, 2, 3]
    for each, row in zip(waits, rows, strict=True):
        capacity_s = each.playing_s + each.waiting_s
        assert each.waiting_s == pytest.approx(
            capacity_s * (1 - row["env_utilisation"]), rel=0.01, abs=0.002 * capacity_s
        )
