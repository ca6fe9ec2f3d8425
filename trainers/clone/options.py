"""What `python -m trainers.clone` is asked for."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainers.config.own_keys import own_key_lines
from trainers.config.presets import OPTION
from trainers.config.types import PathText, ServerUrl
from trainers.config.validation import STRICT

ORACLE = "oracle"


@dataclass(frozen=True, config=STRICT)
class CloneConfig:
    """The keys of a clone."""

    source: tuple[PathText, ...] = Field(
        default=(ORACLE,),
        min_length=1,
        description="oracle: an expert plays env=pocket; or run directories: their recorded successes in training",
    )
    teacher: ServerUrl | None = Field(
        default=None, description="an OpenAI-compatible server instead: what its model does well is imitated"
    )
    teacher_model: str | None = Field(
        default=None, min_length=1, description="what the model is called there; null: the first that it serves"
    )
    teacher_episodes: int = Field(default=200, ge=1, description="episodes that the teacher plays")
    out: PathText | None = Field(
        default=None, description="model directory to write, a new one; null: clone-<time> in output_dir"
    )
    fresh: bool = Field(default=False, description="begin with random weights of the model's shape, and train all")
    steps: int = Field(default=3000, ge=1, description="updates at most")
    minutes: float | None = Field(default=None, gt=0, description="end after so many minutes of training")
    batch: int = Field(default=32, ge=1, description="examples of an update")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak: linear warm-up, then a cosine to a twentieth")
    warmup: int = Field(default=50, ge=0, description="updates of warm-up")
    explore: float = Field(
        default=0.15, ge=0, lt=1, description="oracle: share of wrong turns that are shown, not imitated: recoveries"
    )
    mistakes: float = Field(default=0.0, ge=0, lt=1, description="oracle: share of wrong turns that are imitated")
    descriptions: float = Field(
        default=0.3, ge=0, lt=1, description="oracle: share of questions about a screen instead of episodes"
    )
    workers: int = Field(default=2, ge=0, description="processes that make examples; 0: this one")


def help_text(command: str) -> str:
    """What `--help` prints; `command` is what cloning is called with."""
    lines = [
        "Give a model a supervised start: behaviour cloning of an expert, or of recorded successes.",
        "",
        f"  {command} fresh=true minutes=8                              a random tiny model, all by demonstrations",
        f"  {command} model=./my-model model.grounding=coordinates      positions instead of names",
        f"  {command} source=outputs/my-run                             what a run did well",
        f"  {command} teacher=http://127.0.0.1:8000 teacher_episodes=500   what another model does well",
        "",
        "Keys (default in brackets):",
        *own_key_lines(CloneConfig),
        "",
        "Model, loader, adapter, prompts and tasks are keys of train.py: model=... model.freeze_vision=false",
        "lora.enabled=true loader.device=cuda env.tasks=[word] seed=1. eval.episodes are played before and after.",
        "",
        f"Options: --help, {OPTION} <directory> (presets of your own)",
        "Exit status: 0 done, 1 it failed, 2 bad configuration, 130 interrupted (nothing is written then)",
    ]
    return "\n".join(lines)
