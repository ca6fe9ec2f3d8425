"""What a finished run says about itself in plain words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from cua_agent.envs.registry import all_options
from cua_agent.options import ConfigError, leaves
from trainers.config import TrainConfig
from trainers.protocol import TrainResult
from trainers.rollouts.task_sampler import training_tasks
from trainers.run.commands import resume_command, typed
from trainers.run.curves import CURVE, draw, read_curve
from trainers.run.directory import path_to_type


def closing_words(result: TrainResult, directory: Path, config: TrainConfig, overrides: Sequence[str]) -> str:
    """How the run that was started with `overrides` ended, and where everything is; draws its learning curve."""
    draw([read_curve(directory)], directory / CURVE)
    shown = shlex.quote(path_to_type(directory))
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
        "Watch an episode, go on training, draw the curves, look at what was played:",
        f"  {_episode_command(directory, config)}",
        f"  {resume_command(overrides, directory, max_steps=2 * config.max_steps)}",
        f"  {shlex.join([*typed('trainers.curves'), path_to_type(directory)])}",
        f"  {shlex.join([*typed('trainers.watch'), path_to_type(directory)])}",
    ]
    if config.logging.tensorboard:
        logs = path_to_type(directory / "tensorboard")
        lines.append(f"  {shlex.join(['tensorboard', '--logdir', logs])}  # pip install tensorboard")
    return "\n".join(lines)


def _cut_off_words(result: TrainResult) -> list[str]:
    """A line about turns that ran into the token limit, if there were any."""
    if not result.truncated:
        return []
    return [f"{_percent(result.truncated)} of the turns were cut off at rollout.max_new_tokens: give it room."]


def _episode_command(directory: Path, config: TrainConfig) -> str:
    """The command that plays an episode with the best weights of the run, as it was trained."""
    model, env = config.model, config.env
    best, last = (directory / "checkpoints" / name for name in ("best", "last"))
    keys = {
        "env": env.name,
        "task": training_tasks(env)[0].id,
        "model": path_to_type(last if last.is_dir() and not best.is_dir() else best),
        "grounding": model.grounding,
        "prompt": model.prompt,
    }
    if model.observation != "screenshot":
        keys["observation"] = model.observation
    if model.coordinates is not None:
        keys["coordinates"] = model.coordinates
    if model.thinking is not None:
        keys["thinking"] = str(model.thinking).lower()
    try:
        defaults = dict(leaves(all_options(env.name, {}), "env.args."))
    except ConfigError:  # an option of this world has no default
        defaults = {}
    for key, value in leaves(env.args, "env.args."):
        if value != defaults.get(key) and key != "env.args.run":
            keys[key] = value if isinstance(value, str) else json.dumps(value)
    if config.loader.device != "cpu":
        keys |= {"device": config.loader.device, "dtype": model.dtype}
    return shlex.join([*typed("cua_agent"), *(f"{key}={value}" for key, value in keys.items())])


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"
