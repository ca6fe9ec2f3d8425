"""Three steps of every way to train on GPUs: backends and phases, weights, precisions, engines, processes.

    python benchmarks/gpu_runs.py --out outputs/gpu_runs --group single
    python benchmarks/gpu_runs.py --out outputs/gpu_runs --group servers --lora URL --full URL --full32 URL
    python benchmarks/gpu_runs.py --out outputs/gpu_runs --group pairs      # two GPUs
    python benchmarks/gpu_runs.py --out outputs/gpu_runs --group cluster    # two GPUs

Each run is a `train.py` of its own on the built-in model and phone, several at a time (`--slots`), so times tell that
it ran rather than how fast it can. `--out`/<name>.json holds what it came to, `--out`/<name>.log what it said.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3
LEARNERS = {
    "legacy": ["backend=legacy"],
    "phase 1": ["backend=areal", "phase=1"],
    "phase 2": ["backend=areal", "phase=2"],
    "phase 3": ["backend=areal", "phase=3"],
}
WEIGHTS = {"lora": ["lora.enabled=true", "optim.learning_rate=2e-3"], "full": ["lora.enabled=false"]}
DTYPES = ("float32", "bfloat16")
SHORT = [
    f"max_steps={STEPS}",
    "rollout.groups_per_step=4",
    "rollout.group_size=4",
    "rollout.concurrency=16",
    "rollout.max_refills=0",
    "eval.every_steps=0",
    "eval.baseline=false",
    "eval.episodes=8",
    "checkpoint.every_steps=2",
    "logging.tensorboard=false",
]
FIGURES = ("step_s", "rollout_s", "train_s", "sync_s", "logprob_gap", "staleness_max", "grad_norm", "loss")
TAIL = 25


@dataclass(frozen=True)
class Run:
    """A way to train; `launch` is what starts the program."""

    name: str
    overrides: list[str]
    launch: list[str] = field(default_factory=lambda: [sys.executable])

    @property
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)

    def command(self, out: Path) -> list[str]:
        own = [f"output_dir={out / 'runs'}", f"run_name={self.slug}", *SHORT]
        return [*self.launch, str(ROOT / "train.py"), *own, *self.overrides]


def main() -> int:
    """Exit status 1 when a run failed."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [run for run in GROUPS[args.group](args) if all(word in run.name for word in args.only)]
    with ThreadPoolExecutor(args.slots) as pool:
        results = list(pool.map(lambda run: trained(run, args), runs))
    for result in results:
        print(line(result), flush=True)
    return int(any("error" in result for result in results))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--group", choices=list(GROUPS), required=True)
    parser.add_argument("--only", nargs="*", default=[], help="words that the name of a run must hold")
    parser.add_argument("--slots", type=int, default=4, help="runs at a time (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=300, help="seconds of a run (default: %(default)s)")
    for name in ("lora", "full", "full32"):
        parser.add_argument(f"--{name}", nargs="*", default=[], metavar="URL", help="servers of these weights")
    return parser.parse_args()


def single(args: argparse.Namespace) -> Iterator[Run]:
    """One process, sampling in it; then the second card by its number, and the CPU of a machine with GPUs."""
    for learner, own in LEARNERS.items():
        for weights, trained_ones in WEIGHTS.items():
            for dtype in DTYPES:
                keys = [*own, *trained_ones, f"model.dtype={dtype}", f"loader.device={args.device}"]
                yield Run(f"{learner}, {weights}, {dtype}", keys)
    if args.device == "cuda":
        for learner, own in LEARNERS.items():
            keys = [*own, *WEIGHTS["lora"], "model.dtype=bfloat16", "loader.device=cuda:1"]
            yield Run(f"{learner}, lora, bfloat16, cuda:1", keys)
        yield Run("phase 3, lora, float32, cpu", [*LEARNERS["phase 3"], *WEIGHTS["lora"], "loader.device=cpu"])


def servers(args: argparse.Namespace) -> Iterator[Run]:
    """One process, sampling on a vLLM server."""
    for weights, dtype, urls in (
        ("lora", "bfloat16", args.lora),
        ("full", "bfloat16", args.full),
        ("full", "float32", args.full32),
    ):
        for learner, own in LEARNERS.items() if urls else ():
            keys = [*own, *WEIGHTS[weights], *_on_servers(dtype, urls[:1]), f"loader.device={args.device}"]
            yield Run(f"{learner}, {weights}, {dtype}, vllm", keys)


def pairs(args: argparse.Namespace) -> Iterator[Run]:
    """Two processes, a GPU each."""
    for learner in ("phase 2", "phase 3"):
        for weights, trained_ones in WEIGHTS.items():
            for dtype in DTYPES:
                keys = [*LEARNERS[learner], *trained_ones, f"model.dtype={dtype}", f"loader.device={args.device}"]
                name = f"two processes, {learner}, {weights}, {dtype}"
                yield Run(name, keys, _torchrun())
        if len(args.lora) > 1:
            keys = [*LEARNERS[learner], *WEIGHTS["lora"], *_on_servers("bfloat16", args.lora)]
            name = f"two processes, {learner}, lora, bfloat16, vllm"
            yield Run(name, [*keys, f"loader.device={args.device}"], _torchrun())


def cluster(args: argparse.Namespace) -> Iterator[Run]:
    """A controller and workers, a GPU each."""
    gpus = ["n_gpus=2"] if args.device == "cuda" else []
    for scheduler in ("local", "ray"):
        shared = [*LEARNERS["phase 3"], f"scheduler={scheduler}", *gpus, f"loader.device={args.device}"]
        for weights, trained_ones in WEIGHTS.items():
            for dtype in DTYPES:
                keys = [*shared, *trained_ones, f"model.dtype={dtype}"]
                yield Run(f"scheduler {scheduler}, phase 3, {weights}, {dtype}", keys)
        if args.lora:
            keys = [*shared, *WEIGHTS["lora"], *_on_servers("bfloat16", args.lora[:1])]
            yield Run(f"scheduler {scheduler}, phase 3, lora, bfloat16, vllm", keys)


GROUPS = {"single": single, "servers": servers, "pairs": pairs, "cluster": cluster}


def _on_servers(dtype: str, urls: list[str]) -> list[str]:
    return [f"model.dtype={dtype}", "inference=vllm", f"inference.servers=[{','.join(urls)}]"]


def _torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def trained(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Run it, and write what it came to."""
    command, started = run.command(args.out), time.perf_counter()
    log = args.out / f"{run.slug}.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: int | None = process.wait(args.limit)
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(process.pid, 9)
            process.wait()
    result: dict[str, Any] = {
        "name": run.name,
        "command": " ".join(["train.py", *run.overrides]),
        "seconds": round(time.perf_counter() - started, 1),
    }
    rows = _rows(args.out / "runs" / run.slug / "metrics.jsonl")
    result["steps"] = len(rows)
    for name in FIGURES:
        if values := [row[name] for row in rows if row.get(name) is not None]:  # a step without signal has no loss
            result[name] = round(median(values), 4)
    if status != 0 or len(rows) != STEPS:
        result["error"] = f"exit status {status}, {len(rows)} steps"
        result["tail"] = log.read_text(errors="replace").splitlines()[-TAIL:]
    (args.out / f"{run.slug}.json").write_text(json.dumps(result, indent=1))
    return result


def _rows(file: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in file.read_text().splitlines()] if file.is_file() else []


def line(result: dict[str, Any]) -> str:
    """A row of the table: name, steps, seconds, and the medians of its steps."""
    figures = " | ".join(f"{result[name]:.4g}" if name in result else "-" for name in FIGURES[:5])
    end = f" | {result['error']}: {result['tail'][-1:] if result.get('tail') else ''}" if "error" in result else ""
    return f"{result['name']} | {result['steps']} | {result['seconds']} | {figures}{end}"


if __name__ == "__main__":
    sys.exit(main())
