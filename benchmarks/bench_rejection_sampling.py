"""Rejection sampling: play, keep the successes, clone them, and again. What a policy gradient has to beat.

    python benchmarks/bench_rejection_sampling.py --rounds 5 --steps 8 --seeds 0 -- experiment=pocket_long

A round plays `--steps` steps of episodes without learning, and clones the model on the successes of all rounds so far
in `--updates` updates, as `python -m trainers.clone source=<runs>` does. Success of each clone on held-out starts, by
seed; JSON: --out FOLDER/figures.json.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from own_commands import run_python

BACKEND = "backend=legacy"
PLAYED = (
    *("optim.learning_rate=1e-30", "rollout.max_refills=0", "eval.baseline=false", "eval.every_steps=0"),
    "eval.episodes=1",
    *("threads=1", "logging.tensorboard=false", "logging.record_evaluations=false", "checkpoint.every_minutes=0"),
)
"""A run that plays and stays what it is."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of playing, a round (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=100, help="of cloning, a round (default: %(default)s)")
    parser.add_argument("--rate", default="2e-4", help="learning rate of cloning (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=150, help="of the evaluations (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--out", type=Path, default=Path("outputs/rejection_sampling"), help="a new folder")
    parser.add_argument("further", nargs="*", help="keys for every run")
    args = parser.parse_args()
    args.out = args.out.absolute()
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(args.seeds, pool.map(lambda seed: rounds(args, seed), args.seeds), strict=True))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "figures.json").write_text(json.dumps(found, indent=1))
    for seed, successes in found.items():
        print(f"seed {seed}: " + " ".join(f"{success:.3f}" for success in successes))


def rounds(args: argparse.Namespace, seed: int) -> list[float]:
    """Success after each round. Raises `RuntimeError` when there is nothing to clone."""
    folder, model, runs, successes = args.out / str(seed), "tiny", list[str](), list[float]()
    for number in range(args.rounds):
        keys = [f"seed={1000 * number + seed}", f"model.path={model}", *args.further]
        name = f"played-{number}"
        run_python(
            "train.py", BACKEND, *PLAYED, f"max_steps={args.steps}", f"output_dir={folder}", f"run_name={name}", *keys
        )
        runs.append(str(folder / name))
        out = folder / f"clone-{number}"
        run_python(
            *("-m", "trainers.clone", f"source=[{','.join(runs)}]", f"out={out}", f"steps={args.updates}"),
            *(f"learning_rate={args.rate}", "warmup=10", "workers=0"),
            *(f"eval.episodes={args.episodes}", *keys),
        )
        model = str(out)
        successes.append(json.loads((out / "clone.json").read_text())["success"]["all"]["success"]["mean"])
    return successes


if __name__ == "__main__":
    main()
