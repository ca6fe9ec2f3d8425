"""The world: as many environments as the run wants, every family of tasks started and scored, one episode played."""

from __future__ import annotations

import asyncio
import math
import os
from typing import TYPE_CHECKING

from cua_agent.envs.gbox.settings import ADDRESS_VARIABLE
from cua_agent.error_text import type_and_line
from cua_agent.proxies import is_local
from cua_agent.tasks import CUATask, seed_for, world_of
from trainers.doctor.context import Context
from trainers.doctor.finding import Finding, Status, error, ok, warning, worst
from trainers.rollouts.task_sampler import training_tasks

if TYPE_CHECKING:
    from cua_agent.agent import Episode
    from cua_agent.envs.base import Environment

_SEED = seed_for("eval", 0)
_TASK_S = 120.0
_UNLIKELY_GAP = 1.05
"""Mean exp|difference of log-probabilities| of training and sampling above which the two are not the same policy."""
_READABLE = "a model that knows the tool format, model.prompt=full, or more rollout.max_new_tokens"
_FOR_TINY = "model=tiny reads the screens of env=pocket, env=miniwob and experiment=browsergym alone; take a larger one"


def environments(context: Context) -> Finding:
    """Whether the world opens and one environment starts, which the following checks share. Of boxes on this machine,
    which cost nothing, as many start and end again as the run will use; elsewhere a box is paid for by the minute."""
    return context.wait_for(_several(context) if _has_free_boxes(context) else _one(context))


def _has_free_boxes(context: Context) -> bool:
    env = context.config.env
    return env.name == "gbox" and is_local(env.args["base_url"] or os.environ.get(ADDRESS_VARIABLE, ""))


async def _one(context: Context) -> Finding:
    await context.environment()
    env = context.config.env
    if env.name != "gbox":
        return ok(f"env={env.name}: one started")
    wanted = f"rollout.concurrency={context.config.rollout.concurrency}"
    return ok(f"env=gbox: one started; whether the quota allows {wanted} is not asked, because boxes are paid for")


async def _several(context: Context) -> Finding:
    start, wanted = await context.factory(), context.config.rollout.concurrency
    tried = await asyncio.gather(*(start() for _ in range(wanted)), return_exceptions=True)
    opened = [each for each in tried if not isinstance(each, BaseException)]
    reasons = list(dict.fromkeys(str(each) for each in tried if isinstance(each, BaseException)))
    await asyncio.gather(*(each.close() for each in opened), return_exceptions=True)
    where = f"env={context.config.env.name}"
    if not reasons:
        return ok(f"{where}: {len(opened)} of {wanted} started and ended again")
    remedy = (
        f"set rollout.concurrency={len(opened)}, or raise the quota" if opened else "free boxes, or raise the quota"
    )
    return error(f"{where}: {len(opened)} of {wanted} could be started (rollout.concurrency): {reasons[0]}", remedy)


def tasks(context: Context) -> Finding:
    """One task of every family is started, and its validator asked: a score from 0 to 1."""
    families = {task.category: task for task in reversed(training_tasks(context.config.env))}
    problems = [problem for task in families.values() if (problem := context.wait_for(_score(context, task)))]
    return worst([*problems, ok(f"{len(families)} families start and are scored: {', '.join(sorted(families))}")])


async def _score(context: Context, task: CUATask) -> Finding | None:
    try:
        async with asyncio.timeout(_TASK_S):
            environment = await context.environment()
            await environment.reset(task, _SEED)
            score = await environment.compute_reward()
    except TimeoutError:
        return error(f"{task.id}: not started and scored within {_TASK_S:g} s", _leave_out(task))
    except Exception as problem:  # a world or a validator of somebody else may raise anything
        return error(f"{task.id}: {type_and_line(problem)}", _leave_out(task))
    if not isinstance(score, int | float) or not (math.isfinite(score) and 0 <= score <= 1):
        return error(f"{task.id}: its validator says {score!r}; allowed: 0 to 1", _leave_out(task))
    return None


def _leave_out(task: CUATask) -> str:
    return f"mend its validator or environment, or leave the family {task.category} out of env.tasks"


def episode(context: Context) -> Finding:
    """One episode of every world, played by the policy and scored; training must find its tokens as likely as sampling
    did."""
    first = {world_of(task.id): task for task in reversed(training_tasks(context.config.env))}
    return worst([_played(context, task) for task in reversed(first.values())])


def _played(context: Context, task: CUATask) -> Finding:
    from trainers.doctor.sampling import logprob_gap

    played = context.wait_for(_play(context, task))
    if played.failure is not None:
        line = next(iter(str(played.failure).splitlines()), type(played.failure).__name__)
        return error(f"{played.task.id} was lost: {line}", "see the checks of the environment and of the servers")
    gap = logprob_gap(context.policy, context.config, played.trajectories)
    malformed = sum(turn.action is None for turn in played.turns)
    said = (
        f"{played.task.id}: {played.outcome}, reward {played.reward:g}, {len(played.turns)} turns in "
        f"{sum(turn.generate_s + turn.env_s for turn in played.turns):.1f} s, logprob_gap {gap:.4f}"
    )
    findings = [ok(said)]
    if not gap <= _UNLIKELY_GAP:
        findings.append(
            warning(
                f"logprob_gap {gap:.3f}: sampling and training disagree on how likely the sampled tokens are",
                "compare model.dtype with the servers' dtype and their --logprobs-mode",
            )
        )
    if played.turns and malformed == len(played.turns):
        findings.append(
            warning(
                f"none of {malformed} turns was a call that can be read",
                _FOR_TINY if context.config.model.path == "tiny" else _READABLE,
            )
        )
    found = worst(findings)
    return found if found.status is Status.OK else Finding(found.status, f"{said}; {found.what}", found.remedy)


async def _play(context: Context, task: CUATask) -> Episode:
    from cua_agent.agent import StandaloneGBoxCUAAgent
    from trainers.components import agent_config

    config = context.config
    environment: Environment = await context.environment()
    agent = StandaloneGBoxCUAAgent(context.policy, context.engine, environment, agent_config(config), config.reward)
    return await agent.play(task, _SEED, group_id="doctor", episode_id="doctor")
