"""A learning run on a GPU: phase 3 with LoRA through vLLM, its curve, and its memory after every step.

    python -m cua_agent.inference.vllm serve model=tiny gpu_memory=0.2 max_staleness=2
    python benchmarks/gpu_learning.py --server http://127.0.0.1:8000 --out outputs/gpu_learning
    python -m trainers.curves outputs/gpu_learning/run --output docs/images/gpu_learning.png

Server and trainer may share a card, with other programs, too. `--out`/figures.json holds the success on unseen seeds by
step, what every step tells of how learning goes, the memory of the trainer's processes on host and card after each step
(GiB), and how much both grew from the second quarter of the run to the last. On a CPU: --device cpu --dtype float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
POLL_S = 0.2
CURVE = (
    *("step", "success_rate", "groups_kept", "staleness_mean", "logprob_gap", "ratio_max", "clip_fraction"),
    *("entropy", "grad_norm"),
)
"""What tells why a run learns or does not."""


def main() -> int:
    """The exit status of the run."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    status, memory = trained(args)
    figures = {"status": status, "seconds": round(time.perf_counter() - started, 1), **report(args.out / "run", memory)}
    text = json.dumps(figures, indent=1)
    (args.out / "figures.json").write_text(text)
    print(text)
    return status


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="URL")
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--device", default="cuda", help="of the trainer (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of trainer and server (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    return parser.parse_args()


def trained(args: argparse.Namespace) -> tuple[int, list[dict[str, float]]]:
    """Run train.py; its exit status, and the memory in use when each step's metrics were written."""
    command = [
        *(sys.executable, "train.py", "experiment=pocket_lora", f"output_dir={args.out}", "run_name=run"),
        *("backend=areal", "phase=3", "rollout.max_staleness=2", "optim.learning_rate=1e-3"),
        *("inference=vllm", f"inference.servers=[{args.server}]"),
        *(f"model.dtype={args.dtype}", f"loader.device={args.device}", f"max_steps={args.steps}", *args.overrides),
    ]
    metrics = args.out / "run" / "metrics.jsonl"
    memory: list[dict[str, float]] = []
    with (args.out / "log").open("w") as log:
        process = psutil.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if len(_rows(metrics)) > len(memory):
                memory.append(in_use(process))
            time.sleep(POLL_S)
    return process.returncode, memory


def in_use(process: psutil.Process) -> dict[str, float]:
    """GiB of host and of GPU memory of a process and its children."""
    family = [process, *process.children(recursive=True)]
    host = sum(each.memory_info().rss for each in family) / GIB
    return {"host": round(host, 3), "gpu": round(_gpu_memory({each.pid for each in family}), 3)}


def _gpu_memory(pids: set[int]) -> float:
    """GiB that these processes use on all cards, as the driver tells; 0 where there is none."""
    try:
        query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0.0
    used = (line.split(",") for line in answer.splitlines())
    return sum(float(mib) for pid, mib in used if int(pid) in pids) / 1024


def report(run: Path, memory: list[dict[str, float]]) -> dict[str, Any]:
    """The figures of a run."""
    rows, evaluations = _rows(run / "metrics.jsonl"), _rows(run / "eval.jsonl")
    figures: dict[str, Any] = {
        "steps": len(rows),
        "step_s, median": _median(rows, "step_s"),
        "train_s, median": _median(rows, "train_s"),
        "sync_s, median": _median(rows, "sync_s"),
        "logprob_gap, largest": max(
            (row["logprob_gap"] for row in rows if row["logprob_gap"] is not None), default=None
        ),
        "staleness_max": max((row["staleness_max"] for row in rows), default=None),
        "success": [[each["step"], each["split"], each["success_rate"]] for each in evaluations],
        "curve": [{key: row.get(key) for key in CURVE} for row in rows],
        "memory": memory,
    }
    quarter = max(1, len(memory) // 4)
    for kind in ("host", "gpu") if memory else ():
        first, last = ([each[kind] for each in part] for part in (memory[quarter : 2 * quarter], memory[-quarter:]))
        figures[f"{kind} memory grew by, GiB"] = round(statistics.fmean(last) - statistics.fmean(first or last), 3)
    return figures


def _median(rows: list[dict[str, Any]], key: str) -> float | None:
    return statistics.median(row[key] for row in rows) if rows else None


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
