"""What a finished run says about itself in plain words."""

from __future__ import annotations

from pathlib import Path

from trainers.curves import CURVE, draw, read_curve
from trainers.protocol import TrainResult


def closing_words(result: TrainResult, directory: Path) -> str:
    """How the run ended, and where everything is; draws the learning curve on the way."""
    draw([read_curve(directory)], directory / CURVE)
    shown = _relative(directory)
    lines = [
        f"Done after {result.steps} steps in {result.wall_s / 60:.1f} min ({result.stop_reason}).",
        f"Success on unseen seeds: {_percent(result.eval_success_start)} at the start, "
        f"{_percent(result.eval_success_end)} at the end, best {_percent(result.eval_success_best)}.",
        "",
        f"Results are in {shown}:",
        "  summary.json          the figures of the run",
        f"  {CURVE}    success over steps and minutes",
        "  metrics.jsonl, eval.jsonl   a row per step, a row per evaluation",
        "  checkpoints/          the best and the last weights",
        "",
        f"Go on:            python train.py resume={shown} max_steps=...",
        f"Curves, live:     tensorboard --logdir {shown}/tensorboard   (pip install tensorboard)",
    ]
    return "\n".join(lines)


def _relative(path: Path) -> Path:
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"
