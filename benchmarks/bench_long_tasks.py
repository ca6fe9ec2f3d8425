"""Ways to learn long tasks, each alone and all together, in the same number of episodes.

    python benchmarks/bench_long_tasks.py --seeds 0 1 2

Every run is `experiment=pocket_long` on one thread, without refills, so that each plays as many episodes: steps times
groups times their size. `demonstrations` begins with a clone of the expert, of 960 turns in about 108 episodes. A row
is a recipe: success on held-out seeds at the start and at the end of each, and means. A run takes about ten minutes on
a quiet core; `--jobs` of them go on at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import fmean

from own_commands import run_python
from rich.console import Console
from rich.table import Table

BACKEND = "backend=legacy"
DIFFICULTY, REPLAY, CREDIT = "sampling.strategy=difficulty", "replay.share=0.25", "advantage.credit=gigpo"
FORK, HALF_RATE = "advantage.credit=fork", "optim.learning_rate=1e-4"
DEMONSTRATIONS = "demonstrations"
RECIPES = {
    "plain": (),
    "plain-half-rate": (HALF_RATE,),
    "difficulty": (DIFFICULTY,),
    "replay": (REPLAY,),
    "credit": (CREDIT,),
    "fork": (FORK,),
    "difficulty+fork": (DIFFICULTY, FORK),
    "difficulty+replay": (DIFFICULTY, REPLAY),
    "all": (DIFFICULTY, REPLAY, CREDIT),
    "credit-half-rate": (CREDIT, HALF_RATE),
    "entropy-half-rate": ("loss.entropy_coefficient=0.03", HALF_RATE),
    DEMONSTRATIONS: (HALF_RATE,),
}
CLONED = (
    *("steps=30", "batch=32", "learning_rate=2e-4", "warmup=5", "descriptions=0", "workers=0"),
    *("threads=1", "eval.episodes=1"),
)


def train(directory: Path, recipe: str, seed: int, further: Sequence[str]) -> dict[str, float]:
    """One run, and what its summary says. Raises `RuntimeError` when it fails."""
    keys = [
        "experiment=pocket_long", BACKEND, "rollout.max_refills=0", "threads=1", "eval.every_steps=0",
        "logging.tensorboard=false", "checkpoint.every_minutes=0", "logging.save_trajectories=0",
        "logging.record_groups=0", "logging.record_evaluations=false",
        f"seed={seed}", f"output_dir={directory}", f"run_name={recipe}-{seed}",
    ]  # fmt: skip
    if recipe == DEMONSTRATIONS:
        start = directory / f"clone-{seed}"
        run_python("-m", "trainers.clone", "experiment=pocket_long", *CLONED, f"seed={seed}", f"out={start}")
        keys.append(f"model.path={start}")
    run_python("train.py", *keys, *RECIPES[recipe], *further)
    summary: dict[str, float] = json.loads((directory / f"{recipe}-{seed}" / "summary.json").read_text())
    return summary


def main() -> None:
    """Run every recipe with every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("outputs/long_tasks"), help="where the runs go")
    parser.add_argument("further", nargs="*", help="keys for every run, such as max_steps=20")
    options = parser.parse_args()
    wanted = list(product(options.recipes, options.seeds))
    with ThreadPoolExecutor(options.jobs) as pool:
        done = pool.map(lambda each: train(options.out.absolute(), *each, options.further), wanted)
        summaries = dict(zip(wanted, done, strict=True))
    table = Table("recipe", "start", "end, by seed", "end, mean", "minutes")
    for recipe in options.recipes:
        runs = [summaries[recipe, seed] for seed in options.seeds]
        ends = [run["eval_success_end"] for run in runs]
        start, minutes = fmean(run["eval_success_start"] for run in runs), fmean(run["wall_s"] for run in runs) / 60
        table.add_row(
            recipe, f"{start:.3f}", " ".join(f"{end:.3f}" for end in ends), f"{fmean(ends):.3f}", f"{minutes:.1f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
