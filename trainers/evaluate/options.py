"""What `python -m trainers.evaluate` is asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainers.config.own_keys import own_key_lines
from trainers.config.presets import OPTION
from trainers.config.types import PathText
from trainers.config.validation import STRICT


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig:
    """The keys of an evaluation."""

    checkpoint: PathText = Field(
        description="run directory (its best checkpoint), checkpoint, model directory or hub id, or tiny"
    )
    against: PathText | None = Field(default=None, description="another one, played on the same starts")
    tasks: tuple[PathText, ...] = Field(
        default=(), description="categories or ids of held-out tasks; empty: those of the run's own evaluations"
    )
    split: Literal["seeds", "templates"] = Field(
        default="seeds", description="seeds: goals of the training on unseen starts; templates: unseen wordings"
    )
    episodes: int | None = Field(default=None, ge=1, description="starts to play from; null: the run's eval.episodes")
    k: int = Field(default=1, ge=1, description="episodes of each start, for pass@k")
    out: PathText | None = Field(
        default=None, description="JSON file to write; null: evaluate-<time>.json in the run directory or here"
    )


def help_text(command: str) -> str:
    """What `--help` prints; `command` is what the evaluation is called with."""
    lines = [
        "Play held-out episodes with a checkpoint: success, pass@k, partial score, turns and false claims.",
        "",
        f"  {command} checkpoint=outputs/my-run                                what its best checkpoint can do",
        f"  {command} checkpoint=outputs/my-run/checkpoints/last k=8           pass@k",
        f"  {command} checkpoint=outputs/my-run against=tiny episodes=400      two of them on the same starts",
        "",
        "Keys (default in brackets):",
        *own_key_lines(EvaluateConfig),
        "",
        "World, prompts and sampling are those that the run saved. Any key of train.py changes them:",
        "rollout.temperature=0.5 rollout.greedy=true loader.device=cuda env=miniwob.",
        "",
        f"Options: --help, {OPTION} <directory> (presets of your own)",
        "Exit status: 0 done, 1 it failed, 2 bad configuration, 130 interrupted",
    ]
    return "\n".join(lines)
