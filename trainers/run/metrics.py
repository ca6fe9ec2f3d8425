"""What a run reports: the metrics row of a step, the files and trackers it goes to, and the progress display's seam."""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cua_agent.scratch import process_scratch, temporary_files_in
from trainers.config import ConfigError, LoggingConfig
from trainers.config.validation import shown
from trainers.protocol import EvalRecord, TrainResult
from trainers.run.shown_episodes import COLUMNS, ShownEpisode

NAN = float("nan")
_ERROR_WIDTH = 300
_IMAGES = 4
"""Screens of an evaluation that TensorBoard shows."""


@dataclass(frozen=True)
class StepMetrics:
    """One row of `metrics.jsonl`: one training step, the same keys on every backend.

    Times are seconds of wall time. `reward_*`, `success_rate` and `score_mean` (how well goals held, 0..1) are over all
    scored episodes of the step, those of filtered groups included; `episodes` counts these, `episodes_infra_error` the
    lost ones beside them, and `outcomes` both by kind. `staleness_*` is the policy's version minus the version that
    served a token, over sampled tokens. `logprob_gap` is mean exp|training log-prob - rollout log-prob| over sampled
    tokens. `tokens` are the sampled and prompt tokens that were trained on; `tokens_per_s` divides them by `step_s`,
    `train_tokens_per_s` by `train_s` and the processes that trained, and `train_tflops` likewise the operations that
    the updates ask for (`trainers.run.operations`); `mfu` is the share of what the card does at most. `gpu_wait_s`:
    seconds of `train_s` in which the first process's GPU had nothing to do; `gpu_peak_gib`: the most memory that its
    tensors took meanwhile. With `inference=vllm`, since the row before: tokens that the servers generated a second
    (`engine_tokens_per_s`), and seconds that a request waited in their queues (`engine_queue_s`), of whoever asked.
    `blind_gap` is the same of turns whose screenshot was blanked (`trainers.grpo.blindness`), before the updates.
    `clip_fraction` is the share of the trained tokens whose ratio was clipped, `clip_fraction_high` from above;
    `correction_fraction` the share beyond the bounds of the decoupled loss, and `effective_sample_size` how many tokens
    its weights leave, as a share.
    `env_utilisation`: environment-seconds lent to an episode during the rollouts, divided by (pool size x `rollout_s`).
    Since the step before: seconds that episodes waited for an environment (`env_wait_s`, summed) and minutes that
    environments existed, which a provider bills (`box_minutes`). Loss figures are NaN (null in the file) in a step that
    trained on nothing; `updates_skipped` counts updates whose loss or gradient was not finite. `truncated` is the share
    of the turns that `rollout.max_new_tokens` cut off. `groups_dropped` came too late for the staleness bound;
    `episodes_branched` went on from a turn of another one, which `episodes`, success and rewards do not count;
    `episodes_replayed` are past successes in groups that failed, which `staleness_*` counts and `episodes` does not.
    `worlds` has, where there are several, the figures of each one's episodes. `entropy_action` and `entropy_thought`
    are those of the tokens of tool calls and of what comes before them. `repeated_actions` is the share of the turns
    that did the same as the turn before. `group_successes` counts the groups, filtered ones included, by how many of
    their episodes succeeded; `advantage_by_turn` is the mean advantage of the turns that were trained on, by their
    number in the episode: 1, 2, 3 to 4, 5 to 8 and so on.
    """

    step: int
    policy_version: int
    loss: float = NAN
    policy_loss: float = NAN
    kl: float = NAN
    entropy: float = NAN
    entropy_action: float = NAN
    entropy_thought: float = NAN
    grad_norm: float = NAN
    clip_fraction: float = NAN
    clip_fraction_high: float = NAN
    correction_fraction: float = NAN
    effective_sample_size: float = NAN
    lr: float = NAN
    reward_mean: float = NAN
    reward_std: float = NAN
    score_mean: float = NAN
    success_rate: float = NAN
    turns_mean: float = NAN
    truncated: float = NAN
    repeated_actions: float = NAN
    groups_kept: int = 0
    groups_filtered: int = 0
    groups_dropped: int = 0
    episodes_branched: int = 0
    episodes_replayed: int = 0
    episodes: int = 0
    episodes_infra_error: int = 0
    updates_skipped: int = 0
    staleness_mean: float = 0.0
    staleness_max: int = 0
    logprob_gap: float = NAN
    blind_gap: float = NAN
    rollout_s: float = 0.0
    train_s: float = 0.0
    sync_s: float = 0.0
    step_s: float = 0.0
    env_utilisation: float = 0.0
    env_wait_s: float = 0.0
    box_minutes: float = 0.0
    tokens: int = 0
    tokens_per_s: float = 0.0
    train_tokens_per_s: float = NAN
    train_tflops: float = NAN
    mfu: float = NAN
    gpu_wait_s: float = NAN
    gpu_peak_gib: float = NAN
    engine_tokens_per_s: float = NAN
    engine_queue_s: float = NAN
    outcomes: Mapping[str, int] = field(default_factory=dict)
    worlds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    group_successes: Mapping[int, int] = field(default_factory=dict)
    advantage_by_turn: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, float | int | None]:
        """Flat and JSON-safe: `outcomes` becomes `outcome/<kind>`, `worlds` `<figure>/<world>`, `group_successes`
        `groups_with_successes/<number>`, `advantage_by_turn` `advantage/<turns>`, and a number that is not finite None.
        """
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.default_factory is MISSING}
        flat |= {f"outcome/{kind}": count for kind, count in self.outcomes.items()}
        flat |= {f"groups_with_successes/{number}": count for number, count in self.group_successes.items()}
        flat |= {f"advantage/{turns}": value for turns, value in self.advantage_by_turn.items()}
        flat |= {f"{figure}/{world}": value for world, of in self.worlds.items() for figure, value in of.items()}
        return {key: json_safe(value) for key, value in flat.items()}


class ProgressReporter(Protocol):
    """What a person sees while a run goes on. Called from the training loop; must not raise and must be quick."""

    def phase(self, name: str, done: int, total: int) -> None:
        """`done` of `total` units (episodes, micro-batches) of the phase called `name` are finished."""
        ...

    def step(self, metrics: StepMetrics, max_steps: int) -> None:
        """A training step ended."""
        ...

    def evaluation(self, record: EvalRecord, split: str) -> None:
        """An evaluation ended; `split` is "seeds" or "templates"."""
        ...

    def message(self, text: str) -> None:
        """One line worth knowing."""
        ...

    def close(self) -> None:
        """The run is over; safe to call twice."""
        ...


class Tracker(Protocol):
    """A service that draws curves."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step, by name."""
        ...

    def episodes(self, shown: Sequence[ShownEpisode], split: str, step: int) -> None:
        """Episodes of an evaluation on `split` after `step`."""
        ...

    def close(self) -> None:
        """Flush, and end the run there."""
        ...


class MetricsWriter:
    """Appends `metrics.jsonl` and `eval.jsonl` in `directory`, writes `summary.json`, and feeds the trackers.

    Each row is on disk when the call returns, so an interrupted run keeps all it had. A tracker that fails is let
    go, and `tell` is told once.
    """

    def __init__(self, directory: Path, trackers: list[Tracker], tell: Callable[[str], None] = print) -> None:
        self._directory = directory
        self._trackers = trackers
        self._tell = tell
        directory.mkdir(parents=True, exist_ok=True)

    def step(self, metrics: StepMetrics) -> None:
        row = metrics.row()
        self._append("metrics.jsonl", row)
        self._track({f"train/{key}": value for key, value in row.items() if key != "step"}, metrics.step)

    def evaluation(self, record: EvalRecord, split: str) -> None:
        row: dict[str, Any] = {key: json_safe(value) for key, value in asdict(record).items()}
        if worlds := record.by_world:
            row["by_world"] = worlds
        self._append("eval.jsonl", {"split": split, **row})
        values = {
            f"eval_{split}/{key}": row[key] for key in ("success_rate", "reward_mean", "score_mean", "turns_mean")
        }
        for name, (successes, episodes) in {**record.by_category, **record.by_world}.items():
            values[f"eval_{split}/{name}"] = successes / max(episodes, 1)
        self._track(values, record.step)

    def episodes(self, shown: Sequence[ShownEpisode], split: str, step: int) -> None:
        """Show episodes of an evaluation on the trackers."""
        if shown:
            self._trackers = [t for t in self._trackers if self._guarded(t, partial(t.episodes, shown, split, step))]

    @property
    def tracked(self) -> bool:
        """Whether there is a tracker."""
        return bool(self._trackers)

    def summary(self, result: TrainResult, **identity: Any) -> None:
        """`summary.json`: the result and what the run was (`backend`, `phase`, `seed`, ...)."""
        content = {**identity, **{key: json_safe(value) for key, value in asdict(result).items()}}
        target = self._directory / "summary.json"
        partial = target.with_suffix(".json.part")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(target)

    def close(self) -> None:
        """Flush and end the trackers; safe to call twice."""
        while self._trackers:
            tracker = self._trackers.pop()
            self._guarded(tracker, tracker.close)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self._directory / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before a checkpoint that comes after it

    def _track(self, values: Mapping[str, float | int | None], step: int) -> None:
        numbers = {key: float(value) for key, value in values.items() if value is not None}
        self._trackers = [t for t in self._trackers if self._guarded(t, partial(t.log, numbers, step))]

    def _guarded(self, tracker: Tracker, call: Callable[[], None]) -> bool:
        """Whether `call` went well; curves elsewhere are no reason to lose a run."""
        try:
            call()
        except Exception as error:
            self._tell(f"{tracker.name} gets no further metrics: {next(iter(str(error).splitlines()), error)}")
            return False
        return True


def open_trackers(config: LoggingConfig, directory: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that `config` asks for; `settings` is shown beside the curves. Raises `ConfigError`."""
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(_TensorBoard(directory / "tensorboard"))
    for name, wanted in (("wandb", config.wandb), ("trackio", config.trackio)):
        if wanted:
            trackers.append(_HostedRun(name, config.project, directory, settings))
    return trackers


def check_trackers(config: LoggingConfig) -> None:
    """Raise `ConfigError` when a tracker that `config` asks for lacks its package or a login; nobody is asked."""
    if config.wandb:
        _check_wandb(_tracker_package("wandb"))
    if config.trackio:
        _tracker_package("trackio")
        _check_trackio()


def _tracker_package(name: str) -> Any:
    # What is printed is not sent along: the package would read it before secrets are masked.
    os.environ.setdefault("WANDB_CONSOLE", "off")
    try:
        with temporary_files_in(process_scratch()):  # wandb makes some when it is imported
            return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"logging.{name}=true needs the package: pip install {name}") from error


def _check_wandb(wandb: Any) -> None:
    """Where wandb itself looks: the environment, its settings files, and netrc."""
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    logged_in = settings.api_key or getattr(settings, "identity_token_file", None) or get_netrc_auth(settings.base_url)
    if settings.mode in ("online", "shared") and not logged_in:
        raise ConfigError(
            f"logging.wandb=true: no login for {settings.base_url}; set WANDB_API_KEY, run `wandb login`, or set "
            "WANDB_MODE=offline"
        )


def _check_trackio() -> None:
    """It writes to this machine unless a variable names a place that needs a key."""
    from huggingface_hub import get_token

    server = os.environ.get("TRACKIO_SERVER_URL", "")
    if os.environ.get("TRACKIO_SPACE_ID"):
        if not get_token():
            raise ConfigError(
                "logging.trackio=true with TRACKIO_SPACE_ID: no login; set HF_TOKEN or run `hf auth login`"
            )
    elif server and "write_token=" not in server and not os.environ.get("TRACKIO_WRITE_TOKEN"):
        raise ConfigError("logging.trackio=true with TRACKIO_SERVER_URL: no key; set TRACKIO_WRITE_TOKEN")


class _TensorBoard:
    """Event files, written in the calling thread: tensorboardX's own thread dies on a full disk, and its queue then
    blocks the run."""

    name = "TensorBoard"

    def __init__(self, directory: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for key, value in values.items():
            self._writer.write_event(Event(step=step, wall_time=time.time(), summary=scalar(key, value)))
        self._writer.flush()

    def episodes(self, shown: Sequence[ShownEpisode], split: str, step: int) -> None:
        """The last screens of a few."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import image

        screens = [episode.screen for episode in shown if episode.screen is not None]
        for number, screen in enumerate(screens[:_IMAGES]):
            summary = image(f"eval_{split}/episode_{number}", np.asarray(screen), dataformats="HWC")
            self._writer.write_event(Event(step=step, wall_time=time.time(), summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _HostedRun:
    """wandb or trackio, which share wandb's interface."""

    def __init__(self, module: str, project: str, directory: Path, settings: Mapping[str, Any]) -> None:
        self.name = module
        self._module = _tracker_package(module)
        try:
            self._module.init(project=project, name=directory.name, config=dict(settings))
        except Exception as error:  # each package has its own for a key that is refused, a server that is not there
            raise ConfigError(f"logging.{module}=true: {shown(str(error), _ERROR_WIDTH)}") from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)

    def episodes(self, shown: Sequence[ShownEpisode], split: str, step: int) -> None:
        """A table with the last screens."""
        rows = [[*each.cells, each.screen and self._module.Image(each.screen)] for each in shown]
        table = self._module.Table(columns=[*COLUMNS, "last screen"], data=rows)
        self._module.log({f"eval_{split}/episodes": table}, step=step)

    def close(self) -> None:
        self._module.finish()


def json_safe(value: Any) -> Any:
    """`value` itself, or None for a float that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
