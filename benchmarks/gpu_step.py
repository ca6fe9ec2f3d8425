"""One update of a learner on the shape of a real model, on a GPU: tokens/s, share of the matrix bound, memory, waiting.

    python benchmarks/gpu_step.py --out outputs/gpu_step.json --learners legacy phase2 phase3

Weights are random, the batch is synthetic: rows of several turns, each with a screenshot and some sampled tokens; a
LoRA adapter of rank 16 on the language model is trained in bfloat16. Every learner runs in a process of its own, and
its result is appended to `--out`. `--size nano --device cpu` tries the script anywhere.

The share of the matrix bound counts the operations of trainers/run/operations.py at `--peak` TFLOP/s. What gradient
checkpointing computes again is not among them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_shapes import TEXT, random_model, synthetic_batch
from gpu_time import GpuTime, gpu_time, longest_waits

if TYPE_CHECKING:
    from cua_agent.models.policy import PolicyModel
    from trainers.config import TrainConfig
    from trainers.protocol import Batch

ROOT = Path(__file__).resolve().parents[1]
LEARNERS = ("legacy", "phase2", "phase3")


@dataclass(frozen=True)
class Result:
    """What one learner came to. Seconds of an update: the median; `idle_s`: of that, without a kernel on the GPU;
    `waited_s`: of that, when no kernel had been asked for; `share`: of the matrix bound."""

    learner: str
    size: str
    loader: str
    checkpointing: bool
    offloading: bool
    budget: int
    tokens: int
    longest: int
    trained: int
    first_s: float
    update_s: float
    tokens_per_s: float
    share: float
    peak_gib: float
    idle_s: float
    waited_s: float
    loss: float
    grad_norm: float
    device: str


def main() -> int:
    """Run each learner in a process of its own; the exit status is 1 when one failed."""
    args = arguments()
    if args.one:
        return measure_one(args)
    failed = 0
    for learner in args.learners:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", learner]
        failed |= subprocess.run(command, check=False, cwd=ROOT, env=environment(args)).returncode
    return int(bool(failed))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_step.json"), help="a line of JSON a learner")
    parser.add_argument("--learners", nargs="*", choices=LEARNERS, default=LEARNERS, help="default: all")
    parser.add_argument("--size", choices=list(TEXT), default="2b", help="default: %(default)s")
    parser.add_argument("--loader", choices=["peft", "unsloth"], default="peft", help="default: %(default)s")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=8, help="default: %(default)s")
    parser.add_argument(
        "--row-tokens", type=int, help="make every row exactly so long (see --budget), of repeated turns"
    )
    parser.add_argument("--turns", type=int, default=10, help="most turns of a row (default: %(default)s)")
    parser.add_argument("--sampled", type=int, default=60, help="sampled tokens of a turn (default: %(default)s)")
    parser.add_argument("--screen", type=int, nargs=2, default=(1280, 576), help="default: %(default)s")
    parser.add_argument("--budget", type=int, default=16384, help="tokens of a forward pass (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=3, help="timed updates, after a first one")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep activations instead of recomputing them")
    parser.add_argument("--offload", action="store_true", help="loader.offload_activations=true")
    parser.add_argument("--compile", action="store_true", help="loader.compile=true")
    parser.add_argument("--load-in-4bit", action="store_true", help="frozen weights in 4 bits (--loader unsloth)")
    parser.add_argument("--peak", type=float, default=790, help="TFLOP/s of the card (default: %(default)s, an H100)")
    parser.add_argument("--profile", type=Path, help="write a table of the slowest functions of one update there")
    parser.add_argument("--models", type=Path, default=Path("/tmp/gpu_step"), help="where random weights are kept")
    parser.add_argument("--one", choices=LEARNERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def environment(args: argparse.Namespace) -> dict[str, str]:
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": _with_root()}
    return {**os.environ, **settings, "TORCHDYNAMO_DISABLE": str(int(not args.compile))}


def _with_root() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def measure_one(args: argparse.Namespace) -> int:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        line: dict[str, Any] = asdict(measure(args.one, args))
    except Exception as error:
        traceback.print_exc()
        line = {"learner": args.one, "size": args.size, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
    return int("error" in line)


def measure(learner: str, args: argparse.Namespace) -> Result:
    """Build the learner, take a first update, then the timed ones, then one that is watched kernel by kernel."""
    config = configuration(learner, args)
    if args.loader == "unsloth":
        from cua_agent.models.unsloth import import_unsloth

        import_unsloth(args.device)
    import torch

    from trainers.components import build_policy
    from trainers.run.operations import UpdateOperations

    policy = build_policy(config)
    batch = synthetic_batch(policy, args.rows, args.turns, args.sampled, tuple(args.screen), args.row_tokens)
    update = updates_of(learner, policy, config)
    on_gpu = args.device != "cpu"

    def timed() -> tuple[float, dict[str, float]]:
        started = time.perf_counter()
        metrics = update(batch)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started, metrics

    first_s, _ = timed()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    runs = [timed() for _ in range(args.updates)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    update_s = sorted(seconds for seconds, _ in runs)[len(runs) // 2]
    lengths = [len(row) for row in batch.trajectories]
    trained = sum(int(row.loss_mask.sum()) for row in batch.trajectories)
    seen = watched(timed, args) if on_gpu else GpuTime(update_s, 0.0, [])
    return Result(
        learner=learner,
        size=args.size,
        loader=args.loader + " 4-bit" * args.load_in_4bit + " compiled" * args.compile,
        checkpointing=not args.no_checkpointing,
        offloading=args.offload,
        budget=args.budget,
        tokens=sum(lengths),
        longest=max(lengths),
        trained=trained,
        first_s=round(first_s, 2),
        update_s=round(update_s, 3),
        tokens_per_s=round(sum(lengths) / update_s),
        share=round(UpdateOperations(policy)(batch) / update_s / (args.peak * 1e12), 4),
        peak_gib=round(peak, 2),
        idle_s=round(max(0.0, update_s - seen.running_s), 3),
        waited_s=round(max(0.0, update_s - seen.running_s - seen.queued_s), 3),
        loss=runs[-1][1]["loss"],
        grad_norm=runs[-1][1]["grad_norm"],
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
    )


def configuration(learner: str, args: argparse.Namespace) -> TrainConfig:
    from trainers.config.compose import load_config

    backend = ["backend=legacy"] if learner == "legacy" else ["backend=areal", f"phase={learner[-1]}"]
    return load_config(
        [
            *backend,
            f"model.path={random_model(args.size, args.models)}",
            "model.dtype=bfloat16",
            "model.prompt=full",
            "model.grounding=coordinates",
            f"model.max_length={args.budget}",
            f"loader={args.loader}",
            f"loader.device={args.device}",
            f"loader.gradient_checkpointing={str(not args.no_checkpointing).lower()}",
            f"loader.offload_activations={str(args.offload).lower()}",
            f"loader.compile={str(args.compile).lower()}",
            f"loader.load_in_4bit={str(args.load_in_4bit).lower()}",
            "lora.enabled=true",
            f"optim.micro_batch_tokens={args.budget}",
            f"areal.packed_tokens={args.budget}",
            "logging.tensorboard=false",
        ]
    )


def updates_of(learner: str, policy: PolicyModel, config: TrainConfig) -> Any:
    """A function from a batch to the metrics of an update."""
    if learner == "legacy":
        from trainers.grpo.learner import PolicyLearner

        ours = PolicyLearner(policy, config)
        return lambda batch: dict(ours.update(batch).metrics)
    from trainers.areal.process import prepare_process

    directory = Path(os.environ.get("TMPDIR", "/tmp")) / f"gpu_step_{os.getpid()}"
    directory.mkdir(exist_ok=True)
    prepare_process(directory, config.loader.device)
    if learner == "phase2":
        from trainers.areal.train.phase2_learner import Phase2Learner

        theirs = Phase2Learner(policy, config)
        return lambda batch: dict(theirs.update(batch).metrics)
    return ppo_updates(policy, config)


def ppo_updates(policy: PolicyModel, config: TrainConfig) -> Any:
    """Phase 3 without its rollouts: AReaL's advantages and update on its own engine. The rows' tensors are made once:
    in a run of one process they are there before the update begins."""
    from trainers.areal.tensors import rows_to_tensors
    from trainers.areal.train.phase2_learner import start_actor
    from trainers.areal.train.ppo_actor import PPOPolicyActor
    from trainers.distributed.process_group import SINGLE_PROCESS

    actor = PPOPolicyActor(policy, config)
    start_actor(actor, config)
    ready: list[dict[str, Any]] = []

    def update(batch: Batch) -> dict[str, float]:
        if not ready:
            groups: dict[str, list[Any]] = {}
            for row in batch.trajectories:
                groups.setdefault(row.group_id, []).append(row)
            ready.extend(rows_to_tensors(policy, rows) for rows in groups.values())
        actor.ppo_update(actor.compute_advantages([dict(group) for group in ready]))
        return {**actor.watch.metrics(SINGLE_PROCESS), "grad_norm": actor.stats["grad_norm"]}

    return update


def watched(timed: Any, args: argparse.Namespace) -> GpuTime:
    """What the GPU did in one update, from the profiler's record of every kernel; recording makes the update longer,
    but not the kernels."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CUDA, *([ProfilerActivity.CPU] if args.profile else [])]
    with profile(activities=kinds) as profiler:
        timed()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    found = gpu_time(events)
    if args.profile:
        args.profile.parent.mkdir(parents=True, exist_ok=True)
        table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=90)
        text = "\n".join([table, *longest_waits(found, events, 40)])
        args.profile.with_name(f"{args.profile.stem}-{args.one}.txt").write_text(text)
    return found


if __name__ == "__main__":
    sys.exit(main())
