"""Run directories made up to the contract, for tests of comparisons."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trainers.config import EvalConfig, TrainConfig
from trainers.run.directory import to_yaml

EPISODES = 200


def settings(backend: str = "legacy", seed: int = 0, **keys: Any) -> dict[str, Any]:
    """The tree of a `config.yaml`; dotted `keys` (with __ for the dot) are set in it."""
    tree = json.loads(json.dumps(asdict(TrainConfig(seed=seed, eval=EvalConfig(episodes=EPISODES)))))
    tree |= {"backend": backend} | ({"phase": 3} if backend == "areal" else {})
    for key, value in keys.items():
        *sections, leaf = key.split("__")
        section = tree
        for name in sections:
            section = section[name]
        section[leaf] = value
    return tree


def row(step: int, **values: Any) -> dict[str, Any]:
    """A row of `metrics.jsonl`: a synchronous step of 10 s with 64 episodes."""
    return {
        "step": step, "policy_version": step, "loss": 0.1, "policy_loss": 0.1, "kl": None, "entropy": 0.2,
        "grad_norm": 0.1, "clip_fraction": 0.0, "lr": 2e-4, "reward_mean": 0.5, "reward_std": 0.5, "score_mean": 0.5,
        "success_rate": 0.5,
        "truncated": 0.0, "turns_mean": 4.0, "groups_kept": 6, "groups_filtered": 2, "groups_dropped": 0,
        "episodes": 64, "episodes_infra_error": 0, "episodes_replayed": 0, "episodes_branched": 0,
        "updates_skipped": 0, "staleness_mean": 0.0, "staleness_max": 0, "logprob_gap": 1.0001, "rollout_s": 6.0,
        "train_s": 3.0, "sync_s": 0.5, "step_s": 10.0, "env_utilisation": 0.5, "env_wait_s": 1.0, "box_minutes": 2.0,
        "tokens": 1000, "tokens_per_s": 100.0, "train_tokens_per_s": 300.0, "train_tflops": 0.1, "mfu": None,
        "gpu_wait_s": None, "gpu_peak_gib": None, "clip_fraction_high": 0.0, "correction_fraction": None,
        "effective_sample_size": None, "entropy_action": None, "entropy_thought": None, "repeated_actions": 0.0,
        "blind_gap": None, "engine_tokens_per_s": None, "engine_queue_s": None,
    } | values  # fmt: skip


def evaluation(step: int, success: float, split: str = "seeds", **values: Any) -> dict[str, Any]:
    return {
        "split": split, "step": step, "episodes": EPISODES, "success_rate": success, "reward_mean": success,
        "turns_mean": 4.0, "by_category": {}, "infra_errors": 0,
    } | values  # fmt: skip


def write_run(
    directory: Path,
    tree: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any] | None = None,
    **about: Any,
) -> Path:
    """A run directory; with a `summary` it is a finished one."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(tree))
    for name, content in (("metrics.jsonl", rows), ("eval.jsonl", evaluations)):
        (directory / name).write_text("".join(json.dumps(line) + "\n" for line in content))
    if summary is not None:
        (directory / "summary.json").write_text(json.dumps(summary))
    about = {"started": "2026-01-01T00:00:00", "resumed_from": None, "git_commit": "abc", **about}
    (directory / "run.json").write_text(json.dumps(about))
    return directory


def learning_run(
    directory: Path, backend: str = "legacy", seed: int = 0, steps: int = 20, every: int = 5, **keys: Any
) -> Path:
    """A finished run that looks like a real one: learns from 46 % to about 97 %. On areal rollouts go on during
    training (so that it waits less), tokens are up to two versions behind, and steps are shorter."""
    random = np.random.default_rng([seed, backend == "areal"])
    areal = backend == "areal"
    rows = [_learning_row(step, areal, random) for step in range(1, steps + 1)]
    evaluations = [evaluation(0, 0.465), evaluation(0, 0.355, "templates")]
    for step in range(every, steps + 1, every):
        evaluations.append(evaluation(step, random.binomial(EPISODES, _success(step)) / EPISODES))
    evaluations.append(evaluation(steps, random.binomial(EPISODES, 0.88) / EPISODES, "templates"))
    tree = settings(backend, seed, **({"rollout__max_staleness": 2} | keys if areal else keys))
    return write_run(directory, tree, rows, evaluations, summary_of(tree, rows, evaluations))


def summary_of(tree: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]):
    seen = [e["success_rate"] for e in evaluations if e["split"] == "seeds"]
    return {
        "backend": tree["backend"], "phase": tree["phase"] if tree["backend"] == "areal" else None,
        "seed": tree["seed"], "steps": len(rows), "stop_reason": "max_steps", "eval_success_start": seen[0],
        "eval_success_end": seen[-1], "eval_success_best": max(seen), "wall_s": 2.0 * sum(r["step_s"] for r in rows),
        "rollout_s": sum(r["rollout_s"] for r in rows), "train_s": sum(r["train_s"] for r in rows),
        "env_utilisation": 0.6, "box_minutes": 2.0 * len(rows),
        "staleness_max": max(r["staleness_max"] or 0 for r in rows),
    }  # fmt: skip


def _success(step: float) -> float:
    return 0.975 - 0.51 * float(np.exp(-step / 4.5))


def _learning_row(step: int, areal: bool, random: np.random.Generator) -> dict[str, Any]:
    rollout, train = random.lognormal(np.log(7.2), 0.15), random.lognormal(np.log(3.6), 0.2)
    wall = 1.04 * max(rollout, train) if areal else rollout + train + 0.1
    episodes = int(8 * random.integers(8, 15))
    success = float(random.binomial(episodes, _success(step - 0.5)) / episodes)
    stale = float(random.uniform(0.6, 1.3)) if areal and step > 2 else 0.0
    return row(
        step,
        loss=float(random.normal(0.03, 0.06)),
        entropy=0.18 * float(np.exp(-step / 7)) + 0.02 + float(random.normal(0, 0.004)),
        kl=0.004 * step + float(random.normal(0, 0.002)),
        reward_mean=success,
        success_rate=success,
        groups_kept=int(random.integers(4, 9)),
        groups_filtered=int(random.integers(0, 6)),
        episodes=episodes,
        staleness_mean=stale,
        staleness_max=2 if stale else 0,
        logprob_gap=1.0 + float(random.uniform(0.002, 0.02) if areal else 1e-7),
        rollout_s=float(wall - train if areal else rollout),
        train_s=float(train),
        sync_s=float(random.uniform(0.02, 0.1)),
        step_s=float(wall),
        env_utilisation=float(random.uniform(0.8, 0.92) if areal else random.uniform(0.6, 0.72)),
        tokens=int(150 * episodes),
    )
