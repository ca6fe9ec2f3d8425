"""What the agent and the trainer cost besides the model: processor milliseconds a turn, and a step.

    python benchmarks/bench_overhead.py turns
    python benchmarks/bench_overhead.py steps backend=legacy
    python benchmarks/bench_overhead.py steps phase=3

    python -m cua_agent.inference.vllm serve model=tiny
    python benchmarks/bench_overhead.py turns --server http://127.0.0.1:8000

`turns` plays rounds of episodes of the built-in phone, on the engine `local` or on a vLLM server, without training;
`steps` trains, and evaluates and saves at the end. Parts are functions, timed where they run, each without what it
calls of another part; the rest is what none accounts for. A first round, or step, warms up. JSON: --out FILE.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table
from server_processes import children_of, listening_at, processor_seconds
from timed_parts import Parts, Spent, timed

from cua_agent import acting, agent
from cua_agent.conversation import Conversation
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.inference.local import LocalEngine
from cua_agent.inference.vllm import client, images, wire
from cua_agent.models import vision_features
from cua_agent.models.policy import PolicyModel
from trainers import loop
from trainers.api import build_trainer
from trainers.components import build_components, build_engine
from trainers.config import TrainConfig
from trainers.config.compose import load_config
from trainers.episodes.log import EpisodeLog
from trainers.grpo import batching, learner
from trainers.grpo.learner import PolicyLearner
from trainers.parity.replay import Silent
from trainers.protocol import EpisodeSpec
from trainers.rollouts import evaluation
from trainers.rollouts.collection import play_all
from trainers.rollouts.group_spool import GroupSpool
from trainers.rollouts.task_sampler import TaskSampler
from trainers.rollouts.trajectory_store import TrajectoryStore
from trainers.run import checkpoint
from trainers.run.recorder import RunRecorder

IMAGES = [(vision_features, "image_hash"), (PolicyModel, "pixels")]
TURN: Parts = {
    "world: draw the screen": [(PocketEnvironment, "_observe")],
    "screenshot to an array": [(agent, "screen_of")],
    "prompt and tokens": [(Conversation, name) for name in ("start", "observe", "prompt", "add_response")],
    "parse the call": [(acting, "parse_tool_call"), (PolicyModel, "decode")],
}
LOCAL: Parts = {
    "request: checks, positions": [(LocalEngine, "_turn")],
    "images: hash, patches": IMAGES,
    "model: sampling": [(LocalEngine, "_step")],
}
SERVER: Parts = {
    "encode images": [(images, "sent_image")],
    "collapse and check ids": [(wire, "collapse"), (wire, "check_prompt")],
    "write the request": [(client, "encode_body")],
    "read the answer": [(client, "read_answer"), (wire, "read_generation")],
}
STEP: Parts = {
    "model: sampling": [(LocalEngine, "_step")],
    "model: update": [(PolicyLearner, "update")],
    "turns": [(LocalEngine, "_turn"), *IMAGES, *(function for part in TURN.values() for function in part)],
    "episodes to rows": [(Conversation, "to_trajectories")],
    "rows to tensors": [(batching, "collate")],
    "advantages and checks": [(loop, "batch_of"), (learner, "check_batch")],
    "weights to the engine": [(LocalEngine, "update_weights")],
    "episodes recorded": [(EpisodeLog, name) for name in ("ended", "_write", "_tell", "_keep")],
    "groups spooled": [(GroupSpool, "put"), (GroupSpool, "trained")],
    "batch recorded": [(TrajectoryStore, "record")],
    "metrics and progress": [(RunRecorder, "step")],
    "evaluation, besides its turns": [(evaluation, "evaluation_episodes"), (evaluation, "score")],
    "checkpoint": [(PolicyLearner, "snapshot"), (checkpoint, "write_checkpoint")],
}


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["turns", "steps"])
    parser.add_argument("--server", metavar="URL", help="turns: of vLLM")
    parser.add_argument("--episodes", type=int, default=64, help="turns: of a round, all at the same time")
    parser.add_argument("--rounds", type=int, default=3, help="turns: rounds, steps: steps that are measured")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    args = parser.parse_intermixed_args()
    figures = turns(args) if args.what == "turns" else steps(args)
    table = Table("milliseconds of the processor", f"a {args.what[:-1]}")
    table.columns[1].justify = "right"
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3f}")
    Console(width=100).print(table)
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1))


def turns(args: argparse.Namespace) -> dict[str, float]:
    """Rounds of episodes, without training."""
    server = ["inference=vllm", f"inference.servers=[{args.server}]", "lora.enabled=true"] if args.server else []
    return asyncio.run(_turns(load_config(["threads=1", *server, *args.overrides]), args))


async def _turns(config: TrainConfig, args: argparse.Namespace) -> dict[str, float]:
    components = build_components(config)
    engine = await asyncio.to_thread(build_engine, config, components.policy)
    sampler = TaskSampler(components.train_tasks, config.seed)
    front = listening_at(args.server) if args.server else []
    behind = children_of(front)
    try:
        async with components.environments() as factory, EnvironmentPool(factory, args.episodes) as pool:
            run = components.runner_for(engine)
            await _round(pool, run, sampler, args.episodes)
            with timed({**TURN, **(SERVER if args.server else LOCAL)}) as spent, bytes_sent() as sent:
                before = (time.perf_counter(), time.process_time(), processor_seconds(front), processor_seconds(behind))
                count = sum([await _round(pool, run, sampler, args.episodes) for _ in range(args.rounds)])
                after = (time.perf_counter(), time.process_time(), processor_seconds(front), processor_seconds(behind))
    finally:
        await engine.close()
    wall_s, own_s, front_s, behind_s = (now - then for now, then in zip(after, before, strict=True))
    of_server = {
        "server's front end": 1000 * front_s / count,
        "server's engine": 1000 * behind_s / count,
        "request, KiB": sum(sent) / count / 1024,
    }
    return {
        "turns": count,
        "by the clock": 1000 * wall_s / count,
        "this process": 1000 * own_s / count,
        **shares(spent, own_s, count),
        **(of_server if args.server else {}),
    }


def shares(spent: Spent, all_s: float, count: int) -> dict[str, float]:
    """Milliseconds of each of `count` units by part, and the rest of `all_s`."""
    parts = {f"  {name}": 1000 * seconds / count for name, seconds in spent.seconds.items()}
    return {**parts, "  the rest": 1000 * (all_s - sum(spent.seconds.values())) / count}


async def _round(pool: EnvironmentPool, run: Any, sampler: TaskSampler, episodes: int) -> int:
    """Play `episodes` episodes together; how many turns they had."""
    specs = [EpisodeSpec(spec.task, spec.seed, spec.group_id, f"{spec.group_id}-0") for spec in sampler.next(episodes)]
    played = await play_all(pool, run, specs, retries=0)
    assert all(each.rows for each in played), "an episode was lost"
    return sum(len(row.turns) for each in played for row in each.rows or ())


@contextmanager
def bytes_sent() -> Iterator[list[int]]:
    """The sizes of the bodies of all sampling requests made inside."""
    sizes: list[int] = []
    ask = client.SamplingClient.call

    async def asking(self: client.SamplingClient, url: str, call: wire.Call) -> Any:
        sizes.append(len(json.dumps(call.body)))
        return await ask(self, url, call)

    with mock.patch.object(client.SamplingClient, "call", asking):
        yield sizes


class FromSecondStep(Silent):
    """Lets what is measured begin when the first step is over."""

    def __init__(self, spent: Spent) -> None:
        self._spent = spent
        self.began = 0.0

    def step(self, *_: Any) -> None:
        if not self.began:
            self._spent.forget()
            self.began = time.process_time()


def steps(args: argparse.Namespace) -> dict[str, float]:
    """Steps of training, with an evaluation and a checkpoint at the end."""
    count = args.rounds
    config = load_config(
        [
            "threads=1",
            f"max_steps={count + 1}",
            "eval.baseline=false",
            f"eval.every_steps={count + 1}",
            "eval.episodes=64",
            "checkpoint.every_minutes=0",
            "logging.tensorboard=false",
            *args.overrides,
        ]
    )
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        with timed(of_areal(directory) if config.backend == "areal" else STEP) as spent:
            progress = FromSecondStep(spent)
            with closing(build_trainer(config, directory, progress)) as trainer:
                trainer.train()
                all_s = time.process_time() - progress.began
    return {
        "steps": count,
        "turns, evaluation included": spent.calls["add_response"],
        "all": 1000 * all_s / count,
        **shares(spent, all_s, count),
    }


def of_areal(directory: Path) -> Parts:
    """The parts of a step where AReaL trains."""
    from trainers.areal.process import prepare_process

    prepare_process(directory)
    from trainers.areal.rollout import group_stream, group_workflow
    from trainers.areal.train import phase3_trainer
    from trainers.areal.train.ppo_actor import PPOPolicyActor

    return {
        **STEP,
        "model: update": [(PPOPolicyActor, "ppo_update")],
        "rows to tensors": [(module, "rows_to_tensors") for module in (group_stream, group_workflow, phase3_trainer)],
        "advantages and checks": [
            (PPOPolicyActor, "compute_advantages"),
            (phase3_trainer, "batch_of"),
            (phase3_trainer, "check_row"),
        ],
        "weights to the engine": [
            (LocalEngine, "update_weights"),
            (PolicyModel, "load_trained"),
            (PPOPolicyActor, "trained_weights"),
        ],
        "checkpoint": [(phase3_trainer.Phase3Trainer, "_snapshot"), (checkpoint, "write_checkpoint")],
    }


if __name__ == "__main__":
    main()
