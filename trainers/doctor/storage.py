"""Where the run writes: that it may, and that it all fits."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from cua_agent.models.memory import ModelShape
from trainers.config import TrainConfig
from trainers.doctor.context import Context
from trainers.doctor.devices import model_shape
from trainers.doctor.finding import Finding, error, ok, warning

_DESCRIPTION = 20e6
"""Tokenizer, configuration and the like, of one checkpoint."""
_LOGS = 0.5e9
"""Metrics, TensorBoard and recorded batches of a long run."""
_BOTH, _IN_WORK = 2, 1  # best and last; the one that is being written


def output_directory(context: Context) -> Finding:
    """Whether a run directory can be made and written, flushed to disk."""
    wanted = Path(context.config.output_dir).expanduser()
    there = nearest_directory(wanted)
    try:
        with TemporaryDirectory(prefix=".doctor-", dir=there) as place, (Path(place) / "file").open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as problem:
        return error(f"output_dir={wanted}: {there} cannot be written: {problem.strerror}", "set another output_dir")
    return ok(f"output_dir={wanted} can be written")


def disk(context: Context) -> Finding:
    """Free space against all checkpoints that are kept."""
    config = context.config
    place = nearest_directory(Path(config.output_dir).expanduser())
    size, kept = checkpoint_bytes(model_shape(config), config), checkpoints_kept(config)
    free = shutil.disk_usage(place).free
    said = f"{kept} checkpoints of {size_in_words(size)} each, {size_in_words(free)} free in {place}"
    remedy = "make room, set another output_dir, a lower checkpoint.keep, or lora.enabled=true"
    if kept * size > free:
        return error(said, remedy)
    if kept * size + _LOGS > free:
        return warning(f"{said}: little is left for records", remedy)
    return ok(said)


def checkpoint_bytes(shape: ModelShape, config: TrainConfig) -> int:
    """Bytes of one checkpoint: what is trained in float32 with AdamW's two moments; of full weights also the rest of
    the model, in float32."""
    if config.lora.enabled:
        return round(12 * config.lora.r * shape.adapter_per_rank + _DESCRIPTION)
    trained = shape.parameters - (shape.vision if config.model.freeze_vision else 0)
    return round(4 * shape.parameters + 8 * trained + _DESCRIPTION)


def checkpoints_kept(config: TrainConfig) -> int:
    """Checkpoints that lie on the disk at one time, the one that is being written among them."""
    checkpoint = config.checkpoint
    periodic = checkpoint.keep if checkpoint.every_steps or checkpoint.every_minutes else 0
    return periodic + _BOTH + _IN_WORK


def nearest_directory(path: Path) -> Path:
    """`path` itself, or the first directory above it that is there."""
    path = path.absolute()
    return next((place for place in (path, *path.parents) if place.exists()), path)


def size_in_words(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
