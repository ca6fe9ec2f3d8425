"""What `compare.py` is asked for: its own keys, and those that go on to `train.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from trainers.config import ConfigError
from trainers.config.overrides import parse_override
from trainers.config.own_keys import own_key_lines, read_own
from trainers.config.presets import OPTION, split_options
from trainers.config.types import Name, PathText
from trainers.config.validation import STRICT, shown

_SET_BY_US = {
    "backend": "use backends=[...]",
    "seed": "use seeds=[...]",
    "run_name": "compare.py names the runs",
    "resume": "compare.py goes on with interrupted runs itself",
}


@dataclass(frozen=True, config=STRICT)
class CompareConfig:
    """The keys of a comparison."""

    runs: tuple[PathText, ...] = Field(default=(), description="run directories; * stands for any text")
    backends: tuple[Name, ...] = Field(default=(), description="instead of runs: backends to train and compare")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        default=(0, 1, 2), min_length=1, description="with backends: seeds of each"
    )
    phase: tuple[Annotated[int, Field(ge=1, le=3)], ...] = Field(
        default=(), description="with backends: phases of areal, one or several; empty: train.py's default"
    )
    out: PathText | None = Field(default=None, description="directory of the report; null: outputs/compare-...")
    target: float = Field(default=0.9, gt=0, le=1, description="success rate whose time is taken")
    margin: float = Field(
        default=0.05, ge=0, lt=1, description="how far below zero the interval of the difference of success may reach"
    )

    @model_validator(mode="after")
    def _consistent(self) -> CompareConfig:
        if bool(self.runs) == bool(self.backends):
            raise ValueError("give either runs=[outputs/A,outputs/B] or backends=[legacy,areal]")
        if self.phase and "areal" not in self.backends:
            raise ValueError(f"phase={list(self.phase)} is for backends=[areal]")
        return self


def read_arguments(arguments: Sequence[str]) -> tuple[CompareConfig, list[str]]:
    """The comparison's own keys, and the other arguments, which are `train.py`'s. Raises `ConfigError`.

    A single value stands for a list of one: `backends=legacy`.
    """
    for argument in split_options(arguments)[1]:
        key = parse_override(argument, CompareConfig)[0]
        if key in _SET_BY_US:
            raise ConfigError(f"{shown(argument)}: not a key of compare.py; {_SET_BY_US[key]}")
    config, directories, for_training = read_own(CompareConfig, arguments)
    if config.runs and for_training:
        raise ConfigError(
            f"{shown(for_training[0])}: a key of train.py; allowed only with backends=[...], not with runs="
        )
    return config, [*directories, *for_training]


def help_text(command: str) -> str:
    """What `--help` prints; `command` is what the comparison is called with."""
    lines = [
        "Compare runs side by side: a page, a picture, a text and tables.",
        "",
        f"  {command} runs=[outputs/A,outputs/B]                  runs that are there",
        f"  {command} backends=[legacy,areal] seeds=[0,1,2]       train what is missing first",
        f"  {command} backends=[legacy,areal] phase=[1,2,3] seeds=[0,1,2] experiment=pocket",
        "",
        "Keys (default in brackets):",
        *own_key_lines(CompareConfig),
        "",
        "Any key of train.py goes on to the runs of backends=[...]: max_steps=10 eval.episodes=100 env=miniwob.",
        "Finished runs of the same configuration are found in output_dir and not run again; interrupted ones go on.",
        "",
        f"Options: --help, {OPTION} <directory> (presets of your own)",
        "Exit status: 0 done, 1 a run failed (the report has the others), 2 bad configuration, 130 interrupted",
    ]
    return "\n".join(lines)
