"""The `Trainer` protocol that every backend implements, and the records it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cua_agent.envs.base import Environment
from cua_agent.tasks import CUATask, world_of
from cua_agent.trail import BranchPoint
from cua_agent.trajectory import Trajectory

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Trajectories with one advantage each (`advantages[i]` belongs to `trajectories[i]`): a replayable update.

    `step_advantages[i]` is what each turn that `trajectories[i]` trains adds to it, in order; empty: nothing anywhere.
    """

    trajectories: Sequence[Trajectory]
    advantages: Sequence[float]
    step_advantages: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        if len(self.trajectories) != len(self.advantages):
            raise ValueError(f"{len(self.trajectories)} trajectories but {len(self.advantages)} advantages")
        if len(self.step_advantages) not in (0, len(self.trajectories)):
            raise ValueError(f"{len(self.trajectories)} trajectories but steps of {len(self.step_advantages)}")

    @property
    def steps(self) -> Sequence[Sequence[float]]:
        """`step_advantages` of every trajectory."""
        return self.step_advantages or [()] * len(self.trajectories)


@dataclass(frozen=True)
class LossRecord:
    """Loss of a batch at the present weights: metrics of `trainers.grpo.loss` (all scalars), and, by parameter name,
    the gradients (float32, on the CPU)."""

    metrics: Mapping[str, float]
    gradients: Mapping[str, torch.Tensor] = field(repr=False)


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step. `skipped`: something in it was not finite (`reason` names it) and nothing was changed."""

    metrics: Mapping[str, float]
    skipped: bool = False
    reason: str = ""


@dataclass(frozen=True)
class EvalRecord:
    """Success of the present policy on a set of tasks; `by_category` holds (successes, episodes), `score_mean` is how
    well goals held, 0..1."""

    step: int
    episodes: int
    success_rate: float
    reward_mean: float
    turns_mean: float
    by_category: Mapping[str, tuple[int, int]]
    infra_errors: int = 0
    score_mean: float = float("nan")

    @property
    def by_world(self) -> dict[str, tuple[int, int]]:
        """As `by_category`, where there are several worlds."""
        totals: dict[str, tuple[int, int]] = {}
        for category, (successes, episodes) in self.by_category.items():
            if world := world_of(category):
                before = totals.get(world, (0, 0))
                totals[world] = (before[0] + successes, before[1] + episodes)
        return totals


@dataclass(frozen=True)
class TrainResult:
    """How a run ended; the content of `summary.json`. `truncated` is the share of all turns that the token limit cut
    off (None: none was played)."""

    steps: int
    stop_reason: str
    eval_success_start: float | None
    eval_success_end: float | None
    eval_success_best: float | None
    wall_s: float
    rollout_s: float
    train_s: float
    env_utilisation: float
    box_minutes: float
    staleness_max: int
    truncated: float | None = None


@dataclass(frozen=True)
class TrainerState:
    """Progress of a run: everything a trainer needs to go on, besides weights, optimiser and generators.

    `data_position` counts the training groups drawn so far; `evaluated_step` is that of the newest evaluation on
    held-out seeds; `staleness_*` are over trained episodes, `turns*` over all played ones; the `_s` fields are seconds
    already spent; `task_success` has, by task, its successes and episodes as sampling by difficulty counts them.
    """

    step: int = 0
    policy_version: int = 0
    data_position: int = 0
    eval_success_start: float | None = None
    best_success: float | None = None
    best_step: int | None = None
    evaluations_without_best: int = 0
    evaluated_step: int = 0
    staleness_sum: int = 0
    staleness_count: int = 0
    staleness_max: int = 0
    turns: int = 0
    turns_truncated: int = 0
    wall_s: float = 0.0
    rollout_s: float = 0.0
    train_s: float = 0.0
    task_success: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Trainer(Protocol):
    """A backend: owns the policy, its optimiser and its rollouts."""

    def train(self) -> TrainResult:
        """Run until `max_steps`, the target accuracy, or lost patience."""
        ...

    def update(self, batch: Batch) -> StepRecord:
        """One optimiser step on a given batch; no rollouts. What is not finite in the batch, its loss or its gradient
        makes it a skipped one. Raises `ValueError` on an empty batch or one that no episodes leave behind."""
        ...

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        """Loss and gradients on a given batch; weights and optimiser stay as they are. Raises `ValueError` as `update`,
        and on what is not finite in the batch."""
        ...

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        """Sampled episodes on held-out seeds."""
        ...

    def save(self, path: Path) -> None:
        """Write a checkpoint directory, atomically."""
        ...

    def load(self, path: Path) -> None:
        """Restore everything that `save` wrote."""
        ...

    def close(self) -> None:
        """Release environments, engine and writers; safe to call twice."""
        ...


Files = Mapping[str, Callable[[], bytes]]
"""Further files of a checkpoint by name, and what makes their content."""


@dataclass(frozen=True)
class Snapshot:
    """Everything that a checkpoint holds, as it was at one moment: what `save` writes atomically, `files` among it. A
    `detached` one shares nothing that training changes: it may be written at any time, by any thread; another has to be
    written at once. `size` in bytes, as far as it is known."""

    save: Callable[[Path, Files], None]
    detached: bool
    size: int = 0
    files: Files = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Make the checkpoint directory `path`."""
        self.save(path, self.files)


class Learner(Protocol):
    """Turns batches into weight updates: owns the trained weights, their optimiser and its schedule."""

    def update(self, batch: Batch) -> StepRecord:
        """One optimiser step on a given batch; see `Trainer.update`."""
        ...

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        """Loss and gradients on a given batch; see `Trainer.loss_and_gradients`."""
        ...

    def snapshot(self, state: TrainerState) -> Snapshot:
        """What a checkpoint of the present moment holds."""
        ...

    def load(self, path: Path) -> TrainerState:
        """Restore everything that `save` wrote. Raises `CheckpointError`."""
        ...

    def close(self) -> None:
        """Release what the learner holds; safe to call twice."""
        ...


Episode = list[Trajectory]
"""The token rows of one episode (one with context=full)."""


@dataclass(frozen=True)
class GroupSpec:
    """What the episodes of one group share: the same task in the same start state."""

    task: CUATask
    seed: int
    group_id: str


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode to play, from its start or where another was (`begin`); `episode_id` is unique in a run, a
    replacement's included. One that `leaves_trail` is branched off from later."""

    task: CUATask
    seed: int
    group_id: str
    episode_id: str
    begin: BranchPoint | None = None
    leaves_trail: bool = False


class EpisodeRunner(Protocol):
    """Plays one episode to a scored end, or raises `EnvironmentFailure` or `InferenceFailure`: it is lost."""

    async def __call__(self, environment: Environment, spec: EpisodeSpec) -> Episode: ...


@dataclass(frozen=True)
class Group:
    """The scored episodes of one group, others that branched off one of them, and past ones that are trained on in
    place of as many of its last."""

    spec: GroupSpec
    episodes: list[Episode]
    branches: list[Episode] = field(default_factory=list)
    replayed: list[Episode] = field(default_factory=list)

    @property
    def rows(self) -> list[Trajectory]:
        """The rows to train on."""
        played = self.episodes[: len(self.episodes) - len(self.replayed)]
        return [row for episode in (*played, *self.branches, *self.replayed) for row in episode]


@dataclass(frozen=True)
class Played:
    """What became of one episode: its rows (None when its replacements were lost too), and why each lost one was."""

    rows: Episode | None
    lost: tuple[str, ...] = ()


@dataclass
class Collected:
    """All that the rounds of one step brought: groups with signal, groups without, why each lost episode was, and the
    names of groups that came too late to be trained."""

    kept: list[Group] = field(default_factory=list)
    filtered: list[Group] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def groups(self) -> list[Group]:
        """Those with signal, then those without."""
        return [*self.kept, *self.filtered]

    @property
    def episodes(self) -> list[Episode]:
        """All scored episodes that were played from their start, those of filtered groups included."""
        return [episode for group in self.groups for episode in group.episodes]

    @property
    def group_ids(self) -> list[str]:
        """The names of all groups that no later step can train on."""
        return [*(group.spec.group_id for group in self.groups), *self.dropped]


OnDone = Callable[[int, int], None]
"""Called with (episodes done, episodes of the round) whenever one ends."""

OnCollecting = Callable[[int, int, Collected], None]
"""Called about once a second while a step's groups are collected, with (done, wanted, what has come so far). What it
raises ends the collecting."""


@dataclass(frozen=True)
class Usage:
    """What rollouts cost: wall seconds that training waited for them, and environment-seconds lent to episodes, of the
    `capacity_s` (pool size x wall seconds) that there were to lend. Since the step before: seconds that episodes waited
    for an environment (`env_wait_s`, summed) and that environments existed (`alive_s`), evaluations included."""

    wall_s: float = 0.0
    busy_s: float = 0.0
    capacity_s: float = 0.0
    env_wait_s: float = 0.0
    alive_s: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def utilisation(self) -> float:
        """Share of the time that environments were lent to an episode, 0..1."""
        return self.busy_s / self.capacity_s if self.capacity_s else 0.0

    @property
    def box_minutes(self) -> float:
        """What a provider that bills environments by the minute counts."""
        return self.alive_s / 60


class EpisodePlayer(Protocol):
    """Plays the episodes of an evaluation."""

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        """Play single episodes with the newest weights, for an evaluation; results in the order of `specs`."""
        ...


class Rollouts(EpisodePlayer, Protocol):
    """Where a trainer's experience comes from."""

    @property
    def position(self) -> int:
        """Groups drawn for training that a resumed run must not play again."""
        ...

    def collect(self, on_collecting: OnCollecting) -> tuple[Collected, Usage]:
        """The groups that the next training step learns from, and those without signal beside them; there may be none
        to learn from."""
        ...

    def publish(self, version: int) -> None:
        """The policy's weights changed and are now `version`: sample with them from here on."""
        ...

    def restore(self, version: int, position: int) -> None:
        """A checkpoint was loaded: go on from there."""
        ...

    def close(self) -> None:
        """Close environments and engine; safe to call twice."""
        ...
