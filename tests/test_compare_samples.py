"""The held-out episodes that a comparison shows side by side."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.compare_rig import learning_run
from trainers.compare.comparison import Comparison, compare
from trainers.compare.runs import load_run
from trainers.compare.samples import MOST, samples_of
from trainers.episodes.files import EPISODES
from trainers.episodes.screens import ScreenStore

HOSTILE = "<script>window.planted = 1</script>"


def record(run: Path, outcomes: Mapping[tuple[str, int], str], *, version: int = 20, turns: int = 2) -> Path:
    """Add recorded episodes of an evaluation of `version`."""
    store = ScreenStore(run / EPISODES, "0", 1e7)
    store.directory.mkdir(exist_ok=True)
    rows = []
    for shade, ((task, seed), outcome) in enumerate(outcomes.items()):
        names = [
            store.put(Image.new("RGB", (320, 560), (10 * turn, shade, 90)), version, evaluation=True)
            for turn in range(turns + 1)
        ]
        played = [{"action": f"tap {HOSTILE}", "screen": name} for name in names[:-1]]
        rows.append(
            {"evaluation": True, "version": version, "task": task, "seed": seed, "goal": f"{task} {HOSTILE}",
             "outcome": outcome, "turns": played, "final": names[-1]}
        )  # fmt: skip
    with (run / EPISODES / "0.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return run


def recorded(tmp_path: Path) -> Comparison:
    """An arm each that recorded an old and a new evaluation; tasks `b` and `d` ended differently in the new one."""
    legacy, areal = (learning_run(tmp_path / backend, backend) for backend in ("legacy", "areal"))
    for run in (legacy, areal):
        record(run, {("a", 1): "false_claim"}, version=0)
    tasks = [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1), ("f", 1)]
    record(legacy, {**dict.fromkeys(tasks, "success"), ("only here", 1): "success"})
    record(areal, {**dict.fromkeys(tasks, "success"), ("b", 1): "false_claim", ("d", 1): "out_of_turns"}, turns=11)
    return compare([load_run(legacy), load_run(areal)], 0.9, 0.05)


def test_every_arm_shows_the_same_seeds_those_that_differ_first(tmp_path: Path) -> None:
    samples = samples_of(recorded(tmp_path).arms)
    assert [sample.task for sample in samples] == ["b", "d", "a", "c"] and len(samples) == MOST
    legacy, areal = samples[0].films
    assert (legacy.outcome, areal.outcome) == ("success", "false claim")
    assert (len(legacy.frames), legacy.left_out) == (3, 0) and (len(areal.frames), areal.left_out) == (9, 3)
    assert all(frame.screen.startswith("data:image/webp;base64,") for frame in areal.frames)
    assert sum(len(frame.screen) for sample in samples for film in sample.films for frame in film.frames) < 100_000


@pytest.mark.parametrize("damage", ["no recording", "another seed", "damaged rows"])
def test_without_a_common_episode_there_is_none(damage: str, tmp_path: Path) -> None:
    legacy, areal = (learning_run(tmp_path / backend, backend, steps=2, every=2) for backend in ("legacy", "areal"))
    record(legacy, {("a", 1): "success"})
    if damage == "another seed":
        record(areal, {("a", 2): "success"})
    elif damage == "damaged rows":
        record(areal, {})
        odd: list[Any] = [{"evaluation": True}, {"evaluation": True, "task": ["a"], "seed": 1, "version": 2}, 7]
        (areal / EPISODES / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    assert samples_of(compare([load_run(legacy), load_run(areal)], 0.9, 0.05).arms) == []


def test_a_screen_outside_of_the_recording_is_not_read(tmp_path: Path) -> None:
    comparison = recorded(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.webp")
    rows = tmp_path / "legacy" / EPISODES / "0.jsonl"
    rows.write_text(rows.read_text().replace('"final": "', '"final": "../../../secret.webp", "was": "'))
    assert samples_of(comparison.arms)[0].films[0].frames[-1].screen == ""
