"""Coordinates from nothing: a Qwen3-VL shape of about 100 million parameters, cloned on the phone, then GRPO on it.

    python benchmarks/gpu_coordinates.py --out outputs/gpu_coordinates

The model begins with random weights and the built-in tokenizer. It is cloned from demonstrations that the oracle plays
with `model.grounding=coordinates`, in bfloat16, and trained from there in float32 by the synchronous backend.
`--out`/figures.json is written anew after every stage: parameters, success of the clone by family, the curve of GRPO
(training rollouts by step, unseen seeds by evaluation), and the minutes of each stage. A trial on a CPU, in minutes:

    python benchmarks/gpu_coordinates.py --out outputs/trial --device cpu --dtype float32 --sizes '{}' --minutes 0.2 \\
        --batch 8 --workers 1 --steps 1 eval.episodes=4 rollout.groups_per_step=2
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    **{"hidden": 768, "layers": 12, "heads": 12, "head_dim": 64, "ffn": 2048, "text_init": 0.02},
    **{"vision_hidden": 384, "vision_depth": 8, "vision_heads": 6, "vision_init": 0.02},
}
SPOKEN = ("model.grounding=coordinates", "env.tasks=[]")


def main() -> int:
    args = arguments()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"parameters": build(args), "sizes": args.sizes}
    write(args.out, figures)
    for name, stage in (("clone", cloned), ("grpo", trained)):
        started = time.perf_counter()
        status, found = stage(args)
        figures[name] = {"status": status, "minutes": round((time.perf_counter() - started) / 60, 2), **found}
        write(args.out, figures)
        if status:
            return status
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--dtype", default="bfloat16", help="of cloning (default: %(default)s)")
    parser.add_argument("--sizes", type=json.loads, default=SIZES, help="JSON, in place of those of 100 million")
    parser.add_argument("--minutes", type=float, default=7.0, help="of cloning (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="of cloning (default: %(default)s)")
    parser.add_argument("--clone-rate", default="5e-4", help="learning rate of cloning (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=14, help="processes that demonstrate (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="of GRPO (default: %(default)s)")
    parser.add_argument("--rate", default="2e-5", help="learning rate of GRPO (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", help="further keys of GRPO, key=value")
    return parser.parse_args()


def build(args: argparse.Namespace) -> int:
    """Write the model with random weights; its parameters."""
    from transformers import AutoTokenizer

    from cua_agent.models.sources import TINY_WEIGHTS
    from cua_agent.models.tiny import build_model, save_tiny

    tokenizer = AutoTokenizer.from_pretrained(TINY_WEIGHTS)
    model = build_model(tokenizer, 0, **args.sizes)
    save_tiny(args.out / "shape", model, tokenizer)
    return sum(parameter.numel() for parameter in model.parameters())


def cloned(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Clone; the figures of `clone.json`."""
    status = run(
        args.out / "clone.log",
        *("-m", "trainers.clone", f"model.path={args.out / 'shape'}", f"out={args.out / 'clone'}", *SPOKEN),
        *("model.freeze_vision=false", f"model.dtype={args.dtype}", f"loader.device={args.device}"),
        *(f"minutes={args.minutes}", "steps=100000", f"batch={args.batch}", f"learning_rate={args.clone_rate}"),
        *("warmup=300", f"workers={args.workers}", "descriptions=0.3", "explore=0.15"),
        *(each for each in args.overrides if each.startswith("eval.")),
    )
    about = args.out / "clone" / "clone.json"
    return status, json.loads(about.read_text()) if about.is_file() else {}


def trained(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """GRPO on the clone; its curve."""
    status = run(
        args.out / "grpo.log",
        *("train.py", "backend=legacy", f"model.path={args.out / 'clone'}", *SPOKEN),
        *(f"loader.device={args.device}", f"output_dir={args.out}", "run_name=grpo", f"max_steps={args.steps}"),
        *("rollout.groups_per_step=16", "rollout.group_size=8", "rollout.concurrency=256", "inference.max_batch=256"),
        *("optim.micro_batch_tokens=32768", f"optim.learning_rate={args.rate}", "eval.every_steps=10"),
        *("logging.screenshots_mb=0", *args.overrides),
    )
    directory = args.out / "grpo"
    evaluations = [row for row in rows(directory / "eval.jsonl") if row["split"] == "seeds"]
    keys = ("step", "success_rate", "groups_kept", "entropy", "grad_norm", "logprob_gap", "rollout_s", "train_s")
    return status, {
        "success": [[row["step"], row["success_rate"], row["by_category"]] for row in evaluations],
        "templates": [
            [row["step"], row["success_rate"]] for row in rows(directory / "eval.jsonl") if row["split"] != "seeds"
        ],
        "curve": [{key: row.get(key) for key in keys} for row in rows(directory / "metrics.jsonl")],
    }


def run(log: Path, *command: str) -> int:
    with log.open("w") as file:
        return subprocess.run(
            [sys.executable, "-u", *command], cwd=ROOT, stdout=file, stderr=file, check=False
        ).returncode


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def write(out: Path, figures: dict[str, Any]) -> None:
    (out / "figures.json").write_text(json.dumps(figures, indent=1))
    print(json.dumps({key: value for key, value in figures.items() if key != "grpo"})[:2000], flush=True)


if __name__ == "__main__":
    sys.exit(main())
