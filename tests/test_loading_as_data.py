"""What is read is data: no file, and nothing that another process says, can run code; what is damaged is one line."""

import ast
import base64
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cua_agent.cloning.recordings import RecordingError, read_arrays
from cua_agent.envs.pool import PoolStats
from tests.toy_world import toy_task, trajectory
from trainers.areal.rollout.group_results import FinishedGroup
from trainers.config import ConfigError
from trainers.parity.evidence import Episodes, Evidence, Figures, load_episodes, load_evidence
from trainers.parity.recording import read_config
from trainers.protocol import EpisodeSpec, Group, GroupSpec, Played
from trainers.rollouts.trajectory_store import TrajectoryFileError

ROOT = Path(__file__).parents[1]


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, (str(self._path),)


SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
NEVER = (
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "marshal.loads",
    "eval",
    "exec",
)
OWN = {
    "trainers/distributed/torch_process_group.py",  # what it has just dumped itself, to see whether it can be
    "cua_agent/envs/browsergym/environment.py",  # pipes between a process and the one that it has started
    "cua_agent/envs/browsergym/worker.py",
}


def unsafe_loads(source: str) -> Iterator[str]:
    """Calls in a module that could run what they read."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in NEVER or (name in SAFE and given.get(SAFE[name][0]) != str(SAFE[name][1])):
                yield f"{node.lineno}: {name}"


@pytest.mark.slow
def test_no_module_loads_what_could_be_code() -> None:
    files = [
        file for folder in ("cua_agent", "trainers", "scripts", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    ]
    found = {str(file.relative_to(ROOT)): list(unsafe_loads(file.read_text())) for file in files}
    assert {name for name, calls in found.items() if calls} == OWN
    assert list(unsafe_loads("np.load(f)\ntorch.load(f, weights_only=True)\npickle.loads(b)")) == [
        "1: np.load",
        "3: pickle.loads",
    ]


@pytest.fixture
def reports():
    pytest.importorskip("areal")
    from trainers.areal.cluster import group_reports

    return group_reports


def test_what_workers_report_comes_back_as_it_was(reports) -> None:
    spec = GroupSpec(toy_task(), 7, "g000003")
    rows = [trajectory(1.0, episode_id="a"), trajectory(episode_id="b"), replace(trajectory(episode_id="b"), score=0.5)]
    rows[0] = replace(rows[0], images=[np.zeros((2, 2, 3), np.uint8)])
    finished = FinishedGroup(3, Group(spec, [[rows[0]], rows[1:]]), ["c: lost"], KeyError("k"))
    text = reports.pack_report(reports.Report(finished, "w1", PoolStats(started=2, busy_s=0.1)))
    again = reports.unpack_report(text, {3: spec}.__getitem__)
    assert (again.worker, again.stats) == ("w1", PoolStats(started=2, busy_s=0.1))
    assert again.finished.group.spec is spec
    assert again.finished.lost == ["c: lost", "g000003: KeyError: 'k'"] and again.finished.error is None
    [[first], others] = again.finished.group.episodes
    assert first.images == [] and (first.versions == rows[0].versions).all()
    assert [(row.episode_id, row.score, row.turns) for row in others] == [
        (row.episode_id, row.score, row.turns) for row in rows[1:]
    ]


def test_episodes_to_play_and_played_ones_come_back_as_they_were(reports) -> None:
    task = toy_task()
    specs = [EpisodeSpec(task, 2**40, "e", f"e{i}") for i in range(3)]
    assert reports.unpack_specs(reports.pack_specs(specs), {task.id: task}) == specs
    with pytest.raises(ValueError, match="task 'tap' is none of the configuration's tasks"):
        reports.unpack_specs(reports.pack_specs(specs), {})
    played = [Played([trajectory(1.0)]), Played(None, ("why",)), Played([trajectory(), trajectory()], ("a", "b"))]
    again = reports.unpack_played(reports.pack_played(played))
    assert [(each.rows and len(each.rows), each.lost) for each in again] == [(1, ()), (None, ("why",)), (2, ("a", "b"))]
    assert reports.unpack_played(reports.pack_played([])) == []


def test_a_report_that_is_crafted_runs_nothing(reports, tmp_path: Path) -> None:
    trap = base64.b64encode(pickle.dumps(Trap(tmp_path / "trap"))).decode()
    with pytest.raises(ValueError):
        reports.unpack_report(trap, {}.__getitem__)
    with pytest.raises(TrajectoryFileError, match="these bytes: not a recorded batch: "):
        reports.unpack_played(json.dumps({"ends": [[True, []]], "episodes": {"lengths": [1], "rows": trap}}))
    assert not (tmp_path / "trap").exists()


def recording(path: Path, **changes: object) -> Path:
    arrays = {name: np.arange(3) for name in ("step_frame", "step_episode", "frame_png", "frame_end")}
    words = {name: np.array(["a", "b"]) for name in ("episode_goal", "episode_task", "step_action")}
    np.savez(path, **(arrays | words | changes))
    return path


def test_a_recording_of_pages_is_whole_or_one_line(tmp_path: Path) -> None:
    whole = recording(tmp_path / "demos.npz")
    assert read_arrays(whole)["episode_goal"].tolist() == ["a", "b"]
    data, other = whole.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("step_frame.npy", b"\x93NUMPY")
    flipped = bytearray(data)
    flipped[200] ^= 0xFF
    for content in (
        b"",
        data[: len(data) // 2],
        b"text",
        other.getvalue(),
        pickle.dumps(Trap(tmp_path / "trap")),
        bytes(flipped),
    ):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(RecordingError, match=r"bad\.npz is not a recording: ") as error:
            read_arrays(tmp_path / "bad.npz")
        assert "\n" not in str(error.value)
    trapped = recording(tmp_path / "objects.npz", episode_goal=np.array([Trap(tmp_path / "trap")], dtype=object))
    with pytest.raises(RecordingError, match="Object arrays cannot be loaded"):
        read_arrays(trapped)
    with pytest.raises(RecordingError, match=r"gone\.npz"):
        read_arrays(tmp_path / "gone.npz")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("name", ["rows.safetensors", "moments.safetensors", "figures.json", "episodes.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b'{"unknown": 1}', pickle.dumps(None)])
def test_damaged_evidence_of_a_side_is_its_error(name: str, content: bytes, tmp_path: Path) -> None:
    Evidence(Figures(loss=1.0), rows={"0/x": np.arange(2)}).save(tmp_path)
    Episodes({"e": []}).save(tmp_path)
    assert load_evidence(tmp_path).figures.error is load_episodes(tmp_path).error is None
    (tmp_path / name).write_bytes(content)
    error = load_episodes(tmp_path).error or load_evidence(tmp_path).figures.error
    assert error is not None and error.startswith(f"{tmp_path / name} cannot be read: ") and "\n" not in error


@pytest.mark.parametrize("content", [b"a: [", b"- 1", b"\xff\xfe", b"!!python/object/apply:os.mkdir [trap]"])
def test_a_recordings_configuration_is_data(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path)
    assert "config.yaml" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "trap").exists()
