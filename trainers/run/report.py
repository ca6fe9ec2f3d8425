"""What a finished run says about itself in plain words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from trainers.config import TrainConfig
from trainers.protocol import TrainResult
from trainers.rollouts.task_sampler import training_tasks
from trainers.run.curves import CURVE, draw, read_curve
from trainers.run.directory import display_path, resume_command


def closing_words(result: TrainResult, directory: Path, config: TrainConfig, overrides: Sequence[str]) -> str:
    """How the run that was started with `overrides` ended, and where everything is; draws its learning curve."""
    draw([read_curve(directory)], directory / CURVE)
    shown = shlex.quote(str(display_path(directory)))
    model, task = config.model, training_tasks(config.env)[0]
    lines = [
        f"Done after {result.steps} steps in {result.wall_s / 60:.1f} min ({result.stop_reason}).",
        f"Success on unseen seeds: {_percent(result.eval_success_start)} at the start, "
        f"{_percent(result.eval_success_end)} at the end, best {_percent(result.eval_success_best)}.",
        *_cut_off_words(result),
        "",
        f"Results are in {shown}:",
        "  summary.json                 the figures of the run",
        f"  {CURVE:<28} success over steps and minutes",
        "  metrics.jsonl, eval.jsonl    a row per step, a row per evaluation",
        "  checkpoints/                 the best and the last weights",
        "",
        "Watch an episode, go on training, browse the curves (pip install tensorboard):",
        f"  python -m cua_agent env={config.env.name} task={task.id} model={shown}/checkpoints/best "
        f"grounding={model.grounding} prompt={model.prompt}",
        f"  {resume_command(overrides, directory, max_steps=2 * config.max_steps)}",
        f"  tensorboard --logdir {shown}/tensorboard",
    ]
    return "\n".join(lines)


def _cut_off_words(result: TrainResult) -> list[str]:
    """A line about turns that ran into the token limit, if there were any."""
    if not result.truncated:
        return []
    return [f"{_percent(result.truncated)} of the turns were cut off at rollout.max_new_tokens: give it room."]


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"
