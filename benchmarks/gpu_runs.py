"""Three steps of every way to train on GPUs: backends and phases, weights, precisions, engines, processes, cards.

    python benchmarks/gpu_runs.py --out outputs/gpu_runs --only "one process" local
    python benchmarks/gpu_runs.py --out outputs/gpu_runs --lora URL URL --full URL URL --full32 URL URL
    python benchmarks/gpu_runs.py --list

Each run is a `train.py` of its own on the built-in model and phone, several at a time (`--slots`), so its seconds tell
that it ran rather than how fast it can. Runs with vLLM use the servers that are named, one run at a time on each; two
processes take two. What AReaL or vLLM do not have must be refused, with exit status 2 and one line.

`--out`/<name>.json holds what a run came to, `--out`/<name>.log what it said, `--out`/table.md and table.json all that
ran there so far. The exit status is 1 when a run failed, or was not refused though it should have been.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from threading import Lock, Semaphore
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3
LEARNERS = {
    "legacy": ["backend=legacy"],
    "phase 1": ["backend=areal", "phase=1"],
    "phase 2": ["backend=areal", "phase=2"],
    "phase 3": ["backend=areal", "phase=3"],
}
SHARDED = ("phase 2", "phase 3")
WEIGHTS = {"lora": ["lora.enabled=true", "optim.learning_rate=2e-3"], "full": ["lora.enabled=false"]}
DTYPES = ("float32", "bfloat16")
ENGINES = ("local", "vllm")
SHORT = [
    f"max_steps={STEPS}",
    "threads=1",
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
SHOWN = FIGURES[:5]
TAIL = 25

SERVERS = {("lora", "bfloat16"): "lora", ("full", "bfloat16"): "full", ("full", "float32"): "full32"}
"""Which servers a run samples on; vLLM serves no float32 adapters on a GPU: that run meets the ones in bfloat16."""


@dataclass(frozen=True)
class Run:
    """A way to train. `servers` names a kind of server and how many of it; `refused` is part of the line that the run
    has to be refused with; `processes` are started by a launcher; `cards` is what CUDA_VISIBLE_DEVICES says."""

    name: str
    keys: list[str]
    servers: str = ""
    processes: int = 1
    refused: str = ""
    cards: str | None = None

    @property
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)

    def overrides(self, urls: Sequence[str]) -> list[str]:
        """Its keys of `train.py`."""
        return [*self.keys, *([f"inference.servers=[{','.join(urls)}]"] if urls else [])]

    def command(self, out: Path, urls: Sequence[str]) -> list[str]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        launch = [sys.executable, *(torchrun if self.processes > 1 else [])]
        own = [f"output_dir={out / 'runs'}", f"run_name={self.slug}", *SHORT]
        return [*launch, str(ROOT / "train.py"), *own, *self.overrides(urls)]


def every_run(device: str = "cuda") -> Iterator[Run]:
    """All of them; on a device other than "cuda" those that need no GPU."""
    for learner, (engine, weights, dtype) in product(LEARNERS, _kinds()):
        yield _run("one process", learner, engine, weights, dtype, device)
    for learner, (engine, weights, dtype) in product(SHARDED, _kinds()):
        yield _run("two processes", learner, engine, weights, dtype, device, processes=2)
    gpus = ["n_gpus=2"] if device == "cuda" else []
    for scheduler, (engine, weights, dtype) in product(("local", "ray"), _kinds()):
        more = [f"scheduler={scheduler}", *gpus]
        yield _run(f"scheduler={scheduler}", "phase 3", engine, weights, dtype, device, more)
    yield from _refused(device)
    if device == "cuda":
        yield from _cards()


def _kinds() -> Iterable[tuple[str, str, str]]:
    return product(ENGINES, WEIGHTS, DTYPES)


def _run(
    way: str,
    learner: str,
    engine: str,
    weights: str,
    dtype: str,
    device: str,
    more: Sequence[str] = (),
    *,
    processes: int = 1,
    refused: str = "",
    cards: str | None = None,
) -> Run:
    keys = [*LEARNERS[learner], *WEIGHTS[weights], f"model.dtype={dtype}", f"loader.device={device}", *more]
    servers = ""
    if engine == "vllm":
        keys.append("inference=vllm")
        servers = SERVERS.get((weights, dtype), "lora")
        if (weights, dtype) not in SERVERS and device == "cuda":
            refused = "serves bfloat16, the trainer's model.dtype is float32"
    return Run(f"{way}, {learner}, {engine}, {weights}, {dtype}", keys, servers, processes, refused, cards)


def _refused(device: str) -> Iterator[Run]:
    """What several processes cannot train."""
    for learner in ("legacy", "phase 1"):
        words = "with 2 processes: allowed: backend=areal phase=2 or phase=3"
        yield _run("two processes", learner, "local", "lora", "bfloat16", device, processes=2, refused=words)
    for scheduler, learner in product(("local", "ray"), ("legacy", "phase 1", "phase 2")):
        gpus = ["n_gpus=2"] if device == "cuda" else []
        more, words = [f"scheduler={scheduler}", *gpus], "allowed: backend=areal phase=3"
        yield _run(f"scheduler={scheduler}", learner, "local", "lora", "bfloat16", device, more, refused=words)


def _cards() -> Iterator[Run]:
    """Which card: by its number, and by what the process may see."""
    kind = ("local", "lora", "bfloat16")
    for learner in LEARNERS:
        yield _run("one process on cuda:1", learner, *kind, "cuda:1")
    for learner in ("legacy", "phase 3"):
        yield _run("one process, CUDA_VISIBLE_DEVICES=1", learner, *kind, "cuda", cards="1")
    yield _run("two processes, CUDA_VISIBLE_DEVICES=1,0", "phase 2", *kind, "cuda", processes=2, cards="1,0")
    gpus = ["scheduler=local", "n_gpus=2"]
    yield _run("scheduler=local, CUDA_VISIBLE_DEVICES=1,0", "phase 3", *kind, "cuda", gpus, cards="1,0")
    words = "with 2 processes: allowed: cuda"
    yield _run("two processes on cuda:1", "phase 2", *kind, "cuda:1", processes=2, refused=words)
    yield _run("scheduler=local on cuda:1", "phase 3", *kind, "cuda:1", gpus, refused="set loader.device=cuda")
    words = "this machine has 1; allowed: 0..1"
    yield _run("scheduler=local, one card", "phase 3", *kind, "cuda", gpus, cards="0", refused=words)
    yield _run("one process on the CPU", "phase 3", "local", "lora", "float32", "cpu")


class Servers:
    """The servers of each kind; one run at a time has one."""

    def __init__(self, urls: Mapping[str, Sequence[str]]) -> None:
        self._count = {kind: len(each) for kind, each in urls.items()}
        self._turn = {kind: Lock() for kind in urls}  # a run that wants two takes them before another takes one
        self._free: dict[str, queue.Queue[str]] = {kind: queue.Queue() for kind in urls}
        for kind, each in urls.items():
            for url in each:
                self._free[kind].put(url)

    def enough_for(self, run: Run) -> bool:
        """Whether the run can be had at all."""
        return not run.servers or self._count[run.servers] >= run.processes

    @contextmanager
    def taken(self, run: Run) -> Iterator[list[str]]:
        """The servers of a run, as many as it has processes."""
        if not run.servers:
            yield []
            return
        with self._turn[run.servers]:
            urls = [self._free[run.servers].get() for _ in range(run.processes)]
        try:
            yield urls
        finally:
            for url in urls:
                self._free[run.servers].put(url)


def main() -> int:
    """Exit status 1 when a run did not come to what it should."""
    args = arguments()
    runs = [
        run for run in every_run(args.device) if all(any(w in run.name for w in word.split("|")) for word in args.only)
    ]
    if args.list:
        print("\n".join(run.name for run in runs))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    servers = Servers({kind: getattr(args, kind) for kind in ("lora", "full", "full32")})
    runs = [run for run in runs if servers.enough_for(run)]
    slots = Semaphore(args.slots)

    def one(run: Run) -> dict[str, Any]:
        with servers.taken(run) as urls, slots:
            result = trained(run, urls, args.out, args.limit)
        print(line(result), flush=True)
        return result

    with ThreadPoolExecutor(max(len(runs), 1)) as pool:
        results = list(pool.map(one, runs))
    write_table(args.out)
    return int(any(result["status"] == "failed" for result in results))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "gpu_runs", help="default: %(default)s")
    parser.add_argument("--only", nargs="*", default=[], help="words that the name of a run must hold; a|b: either")
    parser.add_argument("--list", action="store_true", help="print the names, and run nothing")
    parser.add_argument("--slots", type=int, default=4, help="runs at a time (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=300, help="seconds of a run (default: %(default)s)")
    for name in ("lora", "full", "full32"):
        parser.add_argument(f"--{name}", nargs="*", default=[], metavar="URL", help="servers of these weights")
    return parser.parse_args()


def trained(run: Run, urls: Sequence[str], out: Path, limit: float) -> dict[str, Any]:
    """Run it, and write what it came to."""
    started = time.perf_counter()
    log, directory = out / f"{run.slug}.log", out / "runs" / run.slug
    shutil.rmtree(directory, ignore_errors=True)  # of an earlier try: a run does not write into what is there
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": run.cards} if run.cards else {})}
    with log.open("w") as file:
        process = subprocess.Popen(
            run.command(out, urls), cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()  # a launcher's children are in sessions of their own
            process.wait()
    said, rows = log.read_text(errors="replace").splitlines(), _rows(directory / "metrics.jsonl")
    result = {
        "name": run.name,
        "command": " ".join(["train.py", *run.overrides(urls)]),
        "seconds": round(time.perf_counter() - started, 1),
        "steps": len(rows),
        **_medians(rows),
        **verdict(run, status, len(rows), said),
    }
    (out / f"{run.slug}.json").write_text(json.dumps(result, indent=1))
    return result


def verdict(run: Run, status: int | None, steps: int, said: Sequence[str]) -> dict[str, Any]:
    """Whether the run ran, was refused as it should be, or failed; and what it said at the end. `status` is the exit
    status, None when time was up."""
    errors = [text for text in said if text.startswith("error")] or [text for text in said if "Error" in text] or said
    words = errors[-1].strip() if errors else ""
    if run.refused and status and run.refused in words:
        return {"status": "refused", "why": words}
    if not run.refused and status == 0 and steps == STEPS:
        return {"status": "ran"}
    how = "time is up" if status is None else f"exit status {status}"
    return {"status": "failed", "why": f"{how}, {steps} steps: {words}", "tail": list(said[-TAIL:])}


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found = {name: [row[name] for row in rows if row.get(name) is not None] for name in FIGURES}
    return {name: round(median(values), 4) for name, values in found.items() if values}  # no signal, no loss


def _rows(file: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in file.read_text().splitlines()] if file.is_file() else []


def write_table(out: Path) -> None:
    """All results in `out`, in the order of `every_run`, as Markdown and JSON."""
    files = (out / f"{run.slug}.json" for run in every_run())
    results = [json.loads(file.read_text()) for file in files if file.is_file()]
    (out / "table.json").write_text(json.dumps(results, indent=1))
    head = ["run", "status", *(name.removesuffix("_s") for name in SHOWN)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {line(result)} |" for result in results)]
    (out / "table.md").write_text("\n".join(lines) + "\n")


def line(result: Mapping[str, Any]) -> str:
    """A row of the table: name, status, and the medians of its steps."""
    figures = " | ".join(f"{result[name]:.4g}" if name in result else "" for name in SHOWN)
    why = f": {result['why']}" if "why" in result else ""
    return f"{result['name']} | {result['status']}{why} | {figures}"


if __name__ == "__main__":
    sys.exit(main())
