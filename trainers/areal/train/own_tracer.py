"""AReaL's own tracer, whose spans become part of the run's trace.json."""

from __future__ import annotations

import time
from pathlib import Path

from areal.api.cli_args import PerfTracerConfig
from areal.utils import perf_tracer

from trainers.areal.config.translation import experiment_name, trial_name
from trainers.config import TrainConfig
from trainers.timeline.trace import CLOCK


def tracer_config(config: TrainConfig, run_directory: Path) -> PerfTracerConfig | None:
    """Where AReaL's trainer writes its spans; None with `logging.timeline_mb=0`."""
    if not config.logging.timeline_mb:
        return None
    end_tracer()  # of a former trainer in this process
    return PerfTracerConfig(
        experiment_name=experiment_name(config),
        trial_name=trial_name(config),
        fileroot=str(run_directory / "areal"),
        enabled=True,
    )


def tell_the_time() -> None:
    """The tracer counts from an arbitrary moment: its first event says when that was."""
    perf_tracer.instant(CLOCK, args={"time": time.time()})


def end_tracer() -> None:
    """Write what is left, and let another trainer have a tracer."""
    if perf_tracer.is_configured():
        perf_tracer.save(force=True)
        perf_tracer.reset()
