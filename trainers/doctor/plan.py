"""Whether the numbers of a step make sense together: groups, episodes, environments, staleness, tasks."""

from __future__ import annotations

from collections.abc import Iterator

from trainers.config import TrainConfig
from trainers.doctor.context import Context
from trainers.doctor.finding import Finding, error, ok, warning, worst
from trainers.rollouts.task_sampler import training_tasks

_MANY_LAPS = 16
_COLD = 0.1


def rollout_plan(context: Context) -> Finding:
    """What a step plays, and how much of it at a time."""
    config = context.config
    tasks = len(training_tasks(config.env))
    return worst([*problems(config, tasks), ok(summary(config, tasks))])


def groups_in_flight(config: TrainConfig) -> int:
    """Groups that may be under way at one time: those of one step, and of every version of staleness."""
    stale = config.rollout.max_staleness if config.backend == "areal" else 0
    return (stale + 1) * config.rollout.groups_per_step


def summary(config: TrainConfig, tasks: int) -> str:
    """One line about a step."""
    rollout = config.rollout
    return (
        f"a step trains {rollout.groups_per_step} groups of {rollout.group_size} episodes, of {tasks} tasks; up to "
        f"{groups_in_flight(config)} groups in flight on {rollout.concurrency} environments, staleness "
        f"{rollout.max_staleness}"
    )


def problems(config: TrainConfig, tasks: int) -> Iterator[Finding]:
    """What does not go together."""
    rollout = config.rollout
    most = groups_in_flight(config) * rollout.group_size
    step = rollout.groups_per_step * rollout.group_size
    if tasks == 0:
        yield error(f"env.name={config.env.name} has no tasks to train on", "set env.tasks=[]")
    if config.backend == "legacy" and rollout.max_staleness:
        yield warning(
            f"rollout.max_staleness={rollout.max_staleness} with backend=legacy, which stays at 0",
            "set backend=areal, or rollout.max_staleness=0",
        )
    if config.backend == "areal" and config.loss.decoupled is False and rollout.max_staleness > 0:
        yield warning(
            f"rollout.max_staleness={rollout.max_staleness} with loss.decoupled=false: stale tokens count as fresh",
            "set loss.decoupled=true",
        )
    if rollout.concurrency > most:
        yield warning(
            f"rollout.concurrency={rollout.concurrency}: at most {most} episodes are ever under way "
            f"({groups_in_flight(config)} groups of {rollout.group_size})",
            f"set rollout.concurrency={most}, or more rollout.groups_per_step or rollout.max_staleness",
        )
    laps = -(-step // rollout.concurrency)
    if laps > _MANY_LAPS:
        yield warning(
            f"rollout.concurrency={rollout.concurrency}: the {step} episodes of a step are played in {laps} laps",
            f"set rollout.concurrency={-(-step // _MANY_LAPS)} or more, or fewer episodes a step",
        )
    if rollout.greedy or rollout.temperature < _COLD:
        how = "rollout.greedy=true" if rollout.greedy else f"rollout.temperature={rollout.temperature:g}"
        yield error(f"{how}: the episodes of a group are all alike, and no group has a signal", "sample: temperature 1")
    yield from _inference_problems(config)


def _inference_problems(config: TrainConfig) -> Iterator[Finding]:
    inference, rollout = config.inference, config.rollout
    if inference.name == "vllm":
        places, key = inference.max_in_flight * len(inference.servers), "inference.max_in_flight"
    else:
        places, key = inference.max_batch, "inference.max_batch"
    if places < rollout.concurrency:
        yield warning(
            f"{key} leaves room for {places} of the {rollout.concurrency} episodes that rollout.concurrency plays",
            f"raise {key}, or set rollout.concurrency={places}",
        )
