import math
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from PIL import Image
from tiny_random import screenshot
from toy_world import trajectory

from cua_agent.trajectory import Outcome, Trajectory, Turn
from trainers.protocol import Batch
from trainers.rollouts.trajectory_store import TrajectoryFileError, TrajectoryStore, load_batch, save_batch

text = st.text(st.characters(), max_size=20)
number = st.floats(allow_nan=False)
turns = st.builds(
    Turn,
    text=text,
    action=st.none() | text,
    result=text,
    generate_s=number,
    env_s=number,
    point=st.none() | st.tuples(st.integers(0, 1000), st.integers(0, 1000)),
)
images = nps.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3)))


@st.composite
def trajectories(draw):
    n = draw(st.integers(0, 20))
    return Trajectory(
        input_ids=draw(nps.arrays(np.int64, n)),
        loss_mask=draw(nps.arrays(np.int32, n, elements=st.integers(0, 1))),
        logprobs=draw(nps.arrays(np.float32, n)),
        versions=draw(nps.arrays(np.int32, n)),
        images=draw(st.lists(images, max_size=3)),
        reward=draw(number),
        outcome=draw(st.sampled_from(Outcome)),
        task_id=draw(text),
        group_id=draw(text),
        episode_id=draw(text),
        seed=draw(st.integers(0, 2**63)),
        turns=tuple(draw(st.lists(turns, max_size=3))),
        weight=draw(number),
    )


def assert_same(a, b):
    for field in fields(Trajectory):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype and mine.tobytes() == other.tobytes(), field.name
        elif field.name == "images":
            assert len(mine) == len(other)
            for x, y in zip(mine, other, strict=True):
                np.testing.assert_array_equal(x, y, strict=True)
        else:
            assert mine == other and type(mine) is type(other), field.name


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(trajectories(), number), max_size=4))
def test_what_is_written_is_read(rows):
    batch = Batch([t for t, _ in rows], [a for _, a in rows], [[a] * i for i, (_, a) in enumerate(rows)])
    with TemporaryDirectory() as directory:
        save_batch(Path(directory) / "batch.safetensors", batch)
        again = load_batch(Path(directory) / "batch.safetensors")
    assert list(again.advantages) == list(batch.advantages)
    assert list(again.step_advantages) == list(batch.step_advantages)
    assert len(again.trajectories) == len(rows)
    for a, b in zip(batch.trajectories, again.trajectories, strict=True):
        assert_same(a, b)


def test_numpy_scalars_and_screenshots_of_turns(tmp_path):
    seen = Turn("t", None, "", 0.0, 0.0, screenshot=Image.new("RGB", (2, 2)))
    row = replace(trajectory(), reward=np.float32(0.5), seed=np.int64(7), turns=(seen,))
    save_batch(tmp_path / "b", Batch([row], [np.float32(0.25)]))
    again = load_batch(tmp_path / "b")
    assert (again.trajectories[0].reward, again.trajectories[0].seed, again.advantages) == (0.5, 7, [0.25])
    assert again.trajectories[0].turns[0].screenshot is None


def test_a_screenshot_shared_by_rows_is_stored_once(tmp_path):
    image = screenshot(200, 200, 0)  # noise: as PNG at least its raw 120 kB
    save_batch(tmp_path / "b", Batch([replace(trajectory(), images=[image] * 3) for _ in range(3)], [0.0] * 3))
    assert (tmp_path / "b").stat().st_size < 2 * image.size
    assert all(np.array_equal(i, image) for t in load_batch(tmp_path / "b").trajectories for i in t.images)


def test_damaged_files_are_refused_with_one_line(tmp_path):
    path = tmp_path / "b"
    save_batch(path, Batch([trajectory()], [1.0]))
    data = path.read_bytes()
    for broken in (b"", data[:-4], data[: len(data) // 2], data.replace(b"cua-grpo-batch-1", b"cua-grpo-batch-9")):
        path.write_bytes(broken)
        with pytest.raises(TrajectoryFileError, match="not a recorded batch") as error:
            load_batch(path)
        assert "\n" not in str(error.value)
    with pytest.raises(TrajectoryFileError):
        load_batch(tmp_path / "missing")


def test_store_keeps_the_newest(tmp_path):
    store = TrajectoryStore(tmp_path / "trajectories", keep=2)
    for step in (1, 2, 10):
        store.record(step, Batch([trajectory(reward=step)], [0.5]))
    assert store.steps() == [2, 10]
    assert store.read(10).trajectories[0].reward == 10
    assert {p.name for p in store.directory.iterdir()} == {"step_000002.safetensors", "step_000010.safetensors"}


def test_a_store_that_keeps_nothing_writes_nothing(tmp_path):
    TrajectoryStore(tmp_path / "trajectories", keep=0).record(1, Batch([trajectory()], [math.pi]))
    assert list(tmp_path.iterdir()) == []
