"""Recorded batches: one safetensors file per step, read back exactly, so that any update can be replayed.

A file holds each trajectory's arrays (`<i>/input_ids` ...), each distinct screenshot once (`image/<sha256>`, PNG
bytes: lossless) and, as JSON in the header, everything else. No pickle, no code. `Turn.screenshot` is not kept; the
screenshots that the model saw are in `Trajectory.images`.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from cua_agent.error_text import first_line
from cua_agent.image_bytes import png_bytes
from cua_agent.image_hash import image_hash
from cua_agent.trajectory import NO_VERSION, Fork, Outcome, Trajectory, Turn
from trainers.protocol import Batch

FORMAT = "cua-grpo-batch-1"
ARRAYS = {"input_ids": np.int64, "loss_mask": np.int32, "logprobs": np.float32, "versions": np.int32}
SCALARS = ("reward", "task_id", "group_id", "episode_id", "seed", "weight")
TURN_FIELDS = ("text", "action", "result", "generate_s", "env_s", "point", "truncated", "state", "reward")

Arrays = dict[str, npt.NDArray[Any]]
_MALFORMED = (
    SafetensorError,
    Image.DecompressionBombError,
    OSError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


class TrajectoryFileError(ValueError):
    """A file that is not a complete recorded batch; the message is one line naming it."""


@dataclass(frozen=True)
class TrajectoryStore:
    """The recorded batches of a run: `<directory>/step_000012.safetensors`, the newest `keep` of them (0: none)."""

    directory: Path
    keep: int

    def path(self, step: int) -> Path:
        """The file of a step's batch."""
        return self.directory / f"step_{step:06d}.safetensors"

    def record(self, step: int, batch: Batch) -> None:
        """Write a step's batch and delete the oldest ones beyond `keep`."""
        if self.keep == 0:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        save_batch(self.path(step), batch)
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink()

    def read(self, step: int) -> Batch:
        """A step's batch. Raises `TrajectoryFileError`."""
        return load_batch(self.path(step))

    def is_empty(self, step: int) -> bool:
        """Whether the batch has no trajectory; its arrays are not read. Raises `TrajectoryFileError`."""
        with _opened(self.path(step)) as (_, content):
            return not content["trajectories"]

    def steps(self) -> list[int]:
        """Recorded steps, oldest first."""
        return sorted(int(path.stem.removeprefix("step_")) for path in self.directory.glob("step_*.safetensors"))


def save_batch(path: Path, batch: Batch) -> None:
    """Write `batch` to `path`, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(encode_batch(batch))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def encode_batch(batch: Batch) -> bytes:
    """The content of a batch's file."""
    arrays: Arrays = {}
    rows = []
    for index, trajectory in enumerate(batch.trajectories):
        for name, dtype in ARRAYS.items():
            arrays[f"{index}/{name}"] = np.ascontiguousarray(getattr(trajectory, name), dtype=dtype)
        rows.append(_describe(trajectory, [_store_image(arrays, image) for image in trajectory.images]))
    content = {
        "advantages": list(batch.advantages),
        "step_advantages": [list(steps) for steps in batch.step_advantages],
        "trajectories": rows,
    }
    data: bytes = save(arrays, metadata={"format": FORMAT, "batch": json.dumps(content, default=float)})
    return data


def decode_batch(data: bytes) -> Batch:
    """What `encode_batch` made. Raises `TrajectoryFileError`."""
    with _explained("these bytes"):
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        return _batch(_content(header), arrays)


def load_batch(path: Path) -> Batch:
    """Read what `save_batch` wrote. Raises `TrajectoryFileError`."""
    with _opened(path) as (file, content):
        return _batch(content, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def sampled_versions(path: Path) -> set[int]:
    """The policy versions of the sampled tokens in a recorded batch; its images are not read. Raises
    `TrajectoryFileError`."""
    with _opened(path) as (file, content):
        found = [file.get_tensor(f"{index}/versions") for index in range(len(content["trajectories"]))]
        return {int(version) for versions in found for version in np.unique(versions) if version != NO_VERSION}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The file of a batch, and what its header says. Raises `TrajectoryFileError`."""
    with _explained(path), safe_open(path, framework="numpy") as file:
        yield file, _content(file.metadata() or {})


@contextmanager
def _explained(what: Path | str) -> Iterator[None]:
    """Whatever is wrong with `what` becomes a `TrajectoryFileError`."""
    try:
        yield
    except _MALFORMED as error:
        raise TrajectoryFileError(f"{what}: not a recorded batch: {first_line(error)}") from error


def _content(header: Mapping[str, str]) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        raise ValueError(f"format {header.get('format')!r}, expected {FORMAT!r}")
    content: dict[str, Any] = json.loads(header["batch"])
    return content


def _batch(content: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Batch:
    images = {name: _decode(array) for name, array in arrays.items() if name.startswith("image/")}
    rows = [_restore(row, i, arrays, images) for i, row in enumerate(content["trajectories"])]
    return Batch(rows, content["advantages"], content.get("step_advantages", ()))


def _store_image(arrays: Arrays, image: npt.NDArray[np.uint8]) -> str:
    """Add a screenshot to the file's arrays, unless it is there, and return its name."""
    name = f"image/{image_hash(image)}"
    if name not in arrays:
        arrays[name] = np.frombuffer(png_bytes(Image.fromarray(image)), dtype=np.uint8)
    return name


def _decode(png: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(png.tobytes())))


def _describe(trajectory: Trajectory, images: list[str]) -> dict[str, Any]:
    return {
        **{name: getattr(trajectory, name) for name in (*SCALARS, "score")},
        "outcome": trajectory.outcome.value,
        "fork": None if trajectory.fork is None else asdict(trajectory.fork),
        "turns": [{name: getattr(turn, name) for name in TURN_FIELDS} for turn in trajectory.turns],
        "images": images,
    }


def _restore(
    row: Mapping[str, Any],
    index: int,
    arrays: Mapping[str, npt.NDArray[Any]],
    images: Mapping[str, npt.NDArray[np.uint8]],
) -> Trajectory:
    values: dict[str, Any] = {name: arrays[f"{index}/{name}"] for name in ARRAYS}
    return Trajectory(
        **values,
        **{name: row[name] for name in SCALARS},
        score=row.get("score", 0.0),  # batches that were recorded before there was one, or a fork
        fork=Fork(**row["fork"]) if row.get("fork") else None,
        outcome=Outcome(row["outcome"]),
        images=[images[name] for name in row["images"]],
        turns=tuple(_turn(turn) for turn in row["turns"]),
    )


def _turn(values: Mapping[str, Any]) -> Turn:
    point = values["point"]
    return Turn(**{**values, "point": None if point is None else (point[0], point[1])})
