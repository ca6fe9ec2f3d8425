"""Success of a policy on the simulated phone, by category."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping

from cua_agent.agent import AgentConfig, StandaloneGBoxCUAAgent
from cua_agent.cloning.demonstrations import balanced_task
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.inference.local import LocalEngine
from cua_agent.models.policy import PolicyModel
from cua_agent.tasks import EvalSplit, SeedUse, get_eval_tasks, get_training_tasks, seed_for

Tally = Mapping[str, tuple[int, int]]
"""(successes, episodes) by category."""


async def measure_success(
    policy: PolicyModel, episodes: int, *, use: SeedUse = "clone", split: EvalSplit = "seeds", greedy: bool = False
) -> Tally:
    """Play episodes on seeds of one use, far from those that cloning draws; sampled at temperature 1 or greedy."""
    rng = random.Random(0)
    tasks = get_training_tasks() if split == "seeds" else get_eval_tasks(split=split)
    engine = LocalEngine(policy, max_batch=128)
    config = AgentConfig(greedy=greedy)

    async def play(index: int) -> tuple[str, bool]:
        task = balanced_task(tasks, rng)
        agent = StandaloneGBoxCUAAgent(policy, engine, PocketEnvironment(), config)
        seed = seed_for(use, 999_999_999 - index)
        (row,) = await agent.run_episode(task, seed, group_id="measure", episode_id=str(index))
        return task.category, row.success

    tally: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for category, success in await asyncio.gather(*(play(i) for i in range(episodes))):
        successes, total = tally[category]
        tally[category] = (successes + success, total + 1)
    await engine.close()
    return dict(sorted(tally.items()))


def describe_tally(tally: Tally) -> str:
    """One line: the overall rate, then every category's."""
    successes, episodes = (sum(pair[i] for pair in tally.values()) for i in (0, 1))
    parts = ", ".join(f"{category} {s / n:.2f}" for category, (s, n) in tally.items())
    return f"{successes / max(1, episodes):.3f} of {episodes} ({parts})"
