"""What a sharded model of a real shape takes: seconds to load, memory of every process and card, tokens/s of an update.

    python benchmarks/gpu_shapes.py 32b /tmp/shapes 32
    python -m torch.distributed.run --standalone --nproc_per_node=4 benchmarks/gpu_shards.py --size 32b

The first command makes a checkpoint of random weights, in 32 processes. A LoRA adapter of rank 16 on the language model
is trained in bfloat16 in phase 2, as benchmarks/gpu_step.py does. Every process prints a line of JSON and adds it to
`--out`. Memory in GiB: `host` is the process's own (not the pages of files, which the system takes back when it likes),
`card` what PyTorch allocated at most. `--size nano --device cpu` tries the script anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gpu_shapes import TEXT, synthetic_batch

if TYPE_CHECKING:
    from trainers.config import TrainConfig

GIB = 2**30
WATCH_S = 0.05


def main() -> int:
    args = arguments()
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false"), ("TORCHDYNAMO_DISABLE", "1")):
        os.environ.setdefault(name, value)
    from trainers.distributed.torchrun import process_group_of_environment

    config = configuration(args)
    with process_group_of_environment(config) as process_group:
        lines = measure(config, args, process_group)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.write(text)
        print(text, end="", flush=True)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_shards.json"))
    parser.add_argument("--size", choices=list(TEXT), default="8b", help="default: %(default)s")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=10, help="most turns of a row (default: %(default)s)")
    parser.add_argument("--sampled", type=int, default=60, help="sampled tokens of a turn (default: %(default)s)")
    parser.add_argument("--screen", type=int, nargs=2, default=(1280, 576), help="default: %(default)s")
    parser.add_argument("--budgets", type=int, nargs="+", default=[16384], help="tokens of a forward pass, one by one")
    parser.add_argument("--updates", type=int, default=1, help="timed updates, after a first one")
    parser.add_argument("--offload", action="store_true", help="loader.offload_activations=true")
    parser.add_argument("--models", type=Path, default=Path("/tmp/shapes"), help="where random weights are")
    return parser.parse_args()


def configuration(args: argparse.Namespace) -> TrainConfig:
    from trainers.config.compose import load_config

    return load_config(
        [
            "backend=areal",
            "phase=2",
            f"model.path={args.models / args.size}",
            "model.dtype=bfloat16",
            "model.prompt=full",
            "model.grounding=coordinates",
            f"model.max_length={max(args.budgets)}",
            f"loader.device={args.device}",
            "loader.gradient_checkpointing=true",
            f"loader.offload_activations={str(args.offload).lower()}",
            "lora.enabled=true",
            f"areal.packed_tokens={max(args.budgets)}",
            "logging.tensorboard=false",
        ]
    )


def measure(config: TrainConfig, args: argparse.Namespace, process_group: Any) -> list[dict[str, Any]]:
    """Load and shard, then a first and some timed updates under each budget; a line for each budget."""
    import torch

    from trainers.areal.process import prepare_process
    from trainers.areal.train.phase2_learner import Phase2Learner
    from trainers.components import build_policy

    directory = Path(os.environ.get("TMPDIR", "/tmp")) / f"gpu_shards_{os.getpid()}"
    directory.mkdir(exist_ok=True)
    prepare_process(directory, config.loader.device)
    on_gpu = config.loader.device != "cpu"

    def card_peak() -> float:
        peak = torch.cuda.max_memory_allocated() / GIB if on_gpu else 0.0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        return round(peak, 2)

    before, started = host_memory(), time.perf_counter()
    with host_peak() as loading:
        policy = build_policy(config, sharded=True)
        learner = Phase2Learner(policy, config, process_group)
    loaded = {
        "load_s": round(time.perf_counter() - started, 1),
        "host_before": round(before, 2),
        "host_loading": round(loading.peak, 2),
        "card_loading": card_peak(),
    }
    batch = synthetic_batch(policy, args.rows, args.turns, args.sampled, tuple(args.screen))
    tokens = sum(len(row) for row in batch.trajectories)
    lines = []
    for budget in args.budgets:
        learner._actor.config.mb_spec.max_tokens_per_mb = budget
        seconds, metrics = [], {}
        with host_peak() as training:
            for _ in range(1 + args.updates):
                started = time.perf_counter()
                metrics = dict(learner.update(batch).metrics)
                seconds.append(time.perf_counter() - started)
        update_s = sorted(seconds[1:])[args.updates // 2]
        lines.append(
            {
                "size": args.size,
                "processes": process_group.size,
                "rank": process_group.rank,
                **loaded,
                "offloading": args.offload,
                "budget": budget,
                "tokens": tokens,
                "first_s": round(seconds[0], 2),
                "update_s": round(update_s, 2),
                "tokens_per_s": round(tokens / update_s),
                "host_training": round(training.peak, 2),
                "card_training": card_peak(),
                "loss": metrics["loss"],
                "grad_norm": metrics["grad_norm"],
                "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            }
        )
    learner.close()
    return lines


def host_memory() -> float:
    """GiB of this process's own."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / GIB
    return 0.0


@contextmanager
def host_peak() -> Iterator[SimpleNamespace]:
    """`peak`: the most of `host_memory` inside."""
    result, over = SimpleNamespace(peak=host_memory()), threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            result.peak = max(result.peak, host_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield result
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    sys.exit(main())
