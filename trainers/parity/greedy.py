"""Rung 4: a short live run in which nothing is drawn, so that every backend must say the very same tokens.

Episodes are greedy and rollouts wait for updates. The run is a real one (rollouts, advantages, updates, publishing,
evaluation), with two changes: members of a group play different worlds, because greedy members of one world would be
alike and teach nothing; and their rewards alternate, between 1 and 0 in most groups and between 0.5 and 0 in every
third, whose deviation is 0.25 (of the population; of the sample it would be 0.35). Every fifth group fails as a whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cua_agent.envs.base import Environment
from cua_agent.inference.base import InferenceEngine
from cua_agent.trajectory import Outcome, Trajectory
from trainers.components import Components, build_components
from trainers.config import EvalConfig, TrainConfig
from trainers.parity.cases import Weights, replayable, with_keys
from trainers.parity.evidence import Episodes, Rows
from trainers.parity.replay import PartsFor, Silent, opened
from trainers.protocol import EpisodeRunner, EpisodeSpec
from trainers.run.metrics import StepMetrics

STEPS = 3
_EVALUATED = 4
_RATE = 5.0
"""The learning rate is this many times the recorded one: a few updates have to change what is said."""
_WEAK_GROUPS, _LOST_GROUPS = 3, 5
_MEASURED_IN_TIME = (
    *("env_utilisation", "box_minutes", "tokens_per_s", "train_tokens_per_s", "train_tflops", "mfu"),
    *("gpu_wait_s", "gpu_peak_gib", "engine_tokens_per_s", "engine_queue_s"),
)


@dataclass(frozen=True)
class LiveCase:
    """One live run. `keys` replaces keys of the recorded configuration; `broken_after`: steps after which all sides but
    the first are interrupted, and go on from their checkpoint in a fresh trainer; `weights`: see `Case`."""

    name: str
    about: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    broken_after: int = 0
    weights: Weights | None = None

    def config(self, recorded: TrainConfig, weights: Weights) -> TrainConfig:
        """The configuration to play with."""
        config = replayable(recorded, weights)
        plain = replace(
            config,
            max_steps=STEPS,
            max_minutes=None,
            rollout=replace(
                config.rollout,
                greedy=True,
                max_staleness=0,
                group_size=2,
                groups_per_step=2,
                concurrency=8,
                max_refills=0,
            ),
            loss=replace(config.loss, decoupled=False, kl_coefficient=0.0),
            optim=replace(
                config.optim, learning_rate=_RATE * config.optim.learning_rate, warmup_steps=0, updates_per_batch=1
            ),
            eval=EvalConfig(every_steps=0, episodes=_EVALUATED),
        )
        return with_keys(plain, self.keys)


LIVE_CASES = (
    LiveCase("greedy", "a live run with greedy decoding", weights="lora"),
    LiveCase(
        "live",
        "a live run with KL, the decoupled loss, groups without enough signal, tasks by difficulty and replay, "
        "interrupted and resumed",
        keys={
            "loss.kl_coefficient": 0.1,
            "loss.decoupled": True,
            "rollout.temperature": 0.8,  # greedy log-probs are at 1: training is off-policy
            "advantage.min_group_std": 0.3,
            "advantage.credit": "turn",
            "sampling.strategy": "difficulty",
            "replay.share": 0.5,
            "logging.blindness_every_steps": 1,
            "optim.warmup_steps": 2,
        },
        broken_after=2,
        weights="full",
    ),
)


def play(
    config: TrainConfig, start: Path, parts_for: PartsFor = build_components, *, broken_after: int = 0
) -> Episodes:
    """Every episode and every step of the run that starts at the weights of the checkpoint `start`, interrupted after
    step `broken_after` (0: never) and resumed."""
    said: dict[str, Rows] = {}
    steps: list[dict[str, float | None]] = []
    interrupting = _Steps(steps, broken_after)
    with tempfile.TemporaryDirectory() as directory:
        with opened(config, _recording(parts_for(config), said), Path(directory), interrupting) as side:
            side.trainer.load(start)
            try:
                side.trainer.train()
            except KeyboardInterrupt:
                if len(steps) != broken_after:
                    raise
        if broken_after:
            with opened(config, _recording(parts_for(config), said), progress=_Steps(steps)) as side:
                side.trainer.load(Path(directory) / "checkpoints" / "last")
                side.trainer.train()
    return Episodes(said, steps)


class _Steps(Silent):
    """Keeps what steps report, and presses Ctrl-C after step `last` (0: never)."""

    def __init__(self, steps: list[dict[str, float | None]], last: int = 0) -> None:
        self._steps = steps
        self._last = last

    def step(self, metrics: StepMetrics, max_steps: int) -> None:
        del max_steps
        row = metrics.row()
        self._steps.append({key: value for key, value in row.items() if not _is_time(key)})
        if metrics.step == self._last:
            raise KeyboardInterrupt


def _is_time(key: str) -> bool:
    return key.endswith("_s") or key in _MEASURED_IN_TIME


def _recording(components: Components, said: dict[str, Rows]) -> Components:
    """The components, with episodes that leave what they say in `said`."""

    def runner_for(engine: InferenceEngine) -> EpisodeRunner:
        run = components.runner_for(engine)

        async def record(environment: Environment, spec: EpisodeSpec) -> list[Trajectory]:
            evaluated = spec.group_id == spec.episode_id
            member = 0 if evaluated else _number(spec.episode_id.rpartition("-")[2])
            rows = await run(environment, replace(spec, seed=spec.seed + member))
            said[_name(spec.episode_id, said)] = [_said(row) for row in rows]
            return rows if evaluated else [_rewarded(row, _reward(spec, member)) for row in rows]

        return record

    return replace(components, runner_for=runner_for)


def _reward(spec: EpisodeSpec, member: int) -> float:
    group = _number(spec.group_id.lstrip("g"))
    if member % 2 or group % _LOST_GROUPS == _LOST_GROUPS - 1:
        return 0.0
    return 0.5 if group % _WEAK_GROUPS == 1 else 1.0


def _number(text: str) -> int:
    """Of a group or of a member; a replacement's is that of the lost episode."""
    return int(text.partition(".")[0])


def _name(episode_id: str, taken: Mapping[str, Rows]) -> str:
    """Evaluations play the same episodes again: the second time is another one."""
    number = sum(name.partition("#")[0] == episode_id for name in taken)
    return f"{episode_id}#{number}"


def _said(row: Trajectory) -> dict[str, list[int]]:
    trained = row.loss_mask == 1
    return {"tokens": row.input_ids[trained].tolist(), "versions": row.versions[trained].tolist()}


def _rewarded(row: Trajectory, reward: float) -> Trajectory:
    return replace(row, reward=reward, outcome=Outcome.SUCCESS if reward == 1 else Outcome.FAILURE)
