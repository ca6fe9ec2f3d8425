"""Sweeps, as Hydra writes them: `-m seed=1,2,3 optim.learning_rate=1e-4,2e-4` is a run for every combination."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from itertools import product

from trainers.config.overrides import parse_sweep, typed_text
from trainers.config.presets import OPTION
from trainers.config.validation import ConfigError

_UNFIT = re.compile(r"[^\w.+=-]+")


def runs_of(arguments: Sequence[str], output_dir: str, now: datetime | None = None) -> list[list[str]]:
    """The arguments of every run: in a directory of the sweep's own below `output_dir`, named after what differs.

    Raises `ConfigError` when nothing differs, or for a key that names what the sweep names.
    """
    choices: list[list[str]] = []
    for argument in arguments:
        swept = None if argument.startswith(OPTION) else parse_sweep(argument)
        choices.append(swept or [argument])
        if swept and argument.partition("=")[0] in ("run_name", "output_dir", "resume"):
            raise ConfigError(f"{argument}: not in a sweep, which names its runs; allowed: one value")
    varied = [place for place, values in enumerate(choices) if len(values) > 1]
    if not varied:
        raise ConfigError("-m: nothing to sweep; write several values, as in seed=1,2,3")
    folder = f"{output_dir}/sweep-{now or datetime.now():%Y%m%d-%H%M%S}"
    kept = [place for place, argument in enumerate(arguments) if not argument.startswith(("run_name=", "output_dir="))]
    return [
        [
            *(run[place] for place in kept),
            typed_text("output_dir", folder),
            f"run_name={_UNFIT.sub('-', '+'.join(run[place] for place in varied))}",
        ]
        for run in product(*choices)
    ]
