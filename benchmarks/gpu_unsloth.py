"""Unsloth on a GPU against plain transformers and peft: log-probs, adapter gradients, and GRPO steps of both backends.

    python benchmarks/gpu_unsloth.py --out outputs/gpu_unsloth

Every model is loaded in a process of its own, because Unsloth rewrites transformers in the process that imports it.
The vision-language model is the built-in one, the language model its text half. All get the same adapter, far from
zero, and the same batch. The yardstick is what bfloat16 itself costs: plain peft in bfloat16 against plain peft in
float32. The table is printed and `--out` holds the figures as JSON, rewritten after every part; a part that fails
leaves the end of its output there and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from cua_agent.models.policy import PolicyModel
    from cua_agent.trajectory import Trajectory
    from trainers.protocol import Batch

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "cua_agent" / "models" / "tiny_weights"
KINDS = ("vision", "text")
DTYPES = ("bfloat16", "float32")
LOGPROBS = "logprobs"
TAIL = 40  # lines of a failed part's output
METRICS = ("loss", "grad_norm", "entropy", "logprob_gap", "reward_mean", "groups_kept", "staleness_max", "train_s")
PACKAGES = ("torch", "triton", "transformers", "peft", "unsloth", "unsloth_zoo", "trl", "bitsandbytes", "areal")
RUNS = {
    "legacy": ["backend=legacy"],
    "legacy, 4 bits": ["backend=legacy", "loader.load_in_4bit=true"],
    "areal phase 2": ["backend=areal", "phase=2"],
    "areal phase 3": ["backend=areal", "phase=3"],
}


@dataclass(frozen=True)
class Outcome:
    """How the process of a part ended: exit status (None: stopped at the time limit), and the end of what it said."""

    status: int | None
    seconds: float
    tail: str

    def failure(self) -> dict[str, Any]:
        what = f"exit status {self.status}" if self.status is not None else "stopped at the time limit"
        return {"error": what, "seconds": round(self.seconds, 1), "tail": self.tail.splitlines()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/gpu_unsloth"), help="directory (default: %(default)s)"
    )
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--loader", choices=["unsloth", "peft"], default="unsloth", help="what is held against peft")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS, help="models compared (default: both)")
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=list(RUNS), help="GRPO runs (default: all)")
    parser.add_argument("--steps", type=int, default=3, help="GRPO steps of a run (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows of the compared batch (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=600, help="seconds for everything (default: %(default)s)")
    parser.add_argument("--probe", nargs=3, metavar=("KIND", "LOADER", "DIRECTORY"), help=argparse.SUPPRESS)
    return parser.parse_args()


# One model in one process


def probe(kind: str, loader: str, directory: Path, args: argparse.Namespace) -> int:
    """Write log-probs and gradients of one model to `directory`, a file for each data type; returns the exit status."""
    if loader == "unsloth":
        from cua_agent.models.unsloth import import_unsloth

        import_unsloth(args.device)
    path = "tiny" if kind == "vision" else str(write_text_model(directory / "text"))
    failed = False
    for dtype in DTYPES:
        try:
            measure(path, loader, dtype, directory / f"{dtype}.safetensors", args)
        except Exception:
            failed = True
            print(f"--- {dtype}\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    return int(failed)


def write_text_model(directory: Path) -> Path:
    """The language half of the built-in model as a Qwen3 checkpoint."""
    from safetensors.torch import load_file, save_file

    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / name, directory / name)
    half = "model.language_model."
    weights = load_file(TINY / "model.safetensors")
    text = {f"model.{name.removeprefix(half)}": w for name, w in weights.items() if name.startswith(half)}
    save_file(text, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((TINY / "config.json").read_text())["text_config"]
    rope = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}
    kind = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps({**config, **kind, "rope_parameters": rope}))
    return directory


def measure(path: str, loader: str, dtype: str, file: Path, args: argparse.Namespace) -> None:
    """Score a batch and take its gradient, the way the trainers do, and write both as float32."""
    import torch
    from safetensors.torch import save_file

    from cua_agent.models.loaders import load_policy
    from cua_agent.models.lora import LoraSpec
    from trainers.config import LossConfig
    from trainers.grpo.batching import micro_batches
    from trainers.grpo.forward import score_tokens
    from trainers.grpo.gradients import accumulate_gradients

    policy = load_policy(path, loader=loader, dtype=dtype, device=args.device, lora=LoraSpec())
    torch.set_float32_matmul_precision("highest")
    set_adapter(policy)
    batch, loss = synthetic_batch(policy, args.rows), LossConfig(kind="policy_gradient")
    with torch.no_grad():
        micros = [micro.to(policy.device) for micro in micro_batches(policy, batch, loss, 2048)]
        scores = torch.cat([score_tokens(policy, micro, 1.0).logprobs for micro in micros])
    policy.model.train()
    accumulate_gradients(policy, batch, loss, temperature=1.0, micro_batch_tokens=2048)
    found = {name: p.grad for name, p in policy.trainable_parameters() if p.grad is not None}
    base, adapter = (next(p.dtype for p in policy.model.parameters() if p.requires_grad is t) for t in (False, True))
    kinds = {"base": str(base), "adapter": str(adapter), "parameters": str(len(policy.trainable_parameters()))}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in {LOGPROBS: scores, **found}.items()}
    save_file(tensors, file)
    file.with_suffix(".json").write_text(json.dumps(kinds))


def set_adapter(policy: PolicyModel) -> None:
    """Adapter weights that depend on nothing but their names."""
    import torch

    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def synthetic_batch(policy: PolicyModel, rows: int) -> Batch:
    """Conversations of 1 to 4 turns with random sampled tokens, and screenshots for a model that reads them."""
    from trainers.protocol import Batch

    rng = np.random.default_rng(0)
    trajectories = [conversation(policy, rng, turns=1 + row % 4) for row in range(rows)]
    return Batch(trajectories, rng.normal(size=rows).tolist())


def conversation(policy: PolicyModel, rng: np.random.Generator, turns: int) -> Trajectory:
    from cua_agent import trajectory

    allowed = np.setdiff1d(np.arange(len(policy.tokenizer)), policy.special.banned)
    images = [rng.integers(0, 256, (224, 128, 3), dtype=np.uint8) for _ in range(turns)] if policy.reads_images else []
    ids: list[int] = []
    mask: list[int] = []
    for turn in range(turns):
        seen = "Settings: Wi-Fi on, Bluetooth off"
        if images:
            placeholders = "<|image_pad|>" * policy.image_tokens(*images[turn].shape[:2])
            seen = f"<|vision_start|>{placeholders}<|vision_end|>"
        prompt = policy.encode(f"<|im_start|>user\n{seen}<|im_end|>\n<|im_start|>assistant\n")
        sampled = rng.choice(allowed, int(rng.integers(4, 20))).tolist()
        ids += prompt + sampled
        mask += [0] * len(prompt) + [1] * len(sampled)
    loss_mask = np.array(mask, np.int32)
    return trajectory.Trajectory(
        input_ids=np.array(ids, np.int64),
        loss_mask=loss_mask,
        logprobs=np.zeros(len(ids), np.float32),
        versions=loss_mask - 1,
        images=images,
        reward=0.0,
        outcome=trajectory.Outcome.FAILURE,
        task_id="bench",
        group_id="bench",
        episode_id="bench",
        seed=0,
    )


# What the processes found


def difference(found: Path, expected: Path) -> dict[str, Any]:
    """Of two files of `measure`: log-probs in nats, gradients as one long vector and the worst single tensor."""
    ours, plain = load_file(found), load_file(expected)
    gap = np.abs(ours.pop(LOGPROBS) - plain.pop(LOGPROBS))
    missing = sorted(set(plain) ^ set(ours))
    names = sorted(set(plain) & set(ours))
    a, b = (np.concatenate([side[name].ravel() for name in names]).astype(np.float64) for side in (ours, plain))
    return {
        "logprob_max_abs": float(gap.max()),
        "logprob_mean_abs": float(gap.mean()),
        "tokens": int(gap.size),
        "gradient_relative": relative(a, b),
        "gradient_cosine": float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
        "gradient_max_abs": float(np.abs(a - b).max()),
        "gradient_largest": float(np.abs(b).max()),
        "gradient_relative_worst_tensor": max(relative(ours[name], plain[name]) for name in names),
        "gradients": len(names),
        "gradients_of_one_side_only": missing,
        "found": json.loads(found.with_suffix(".json").read_text()),
    }


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def comparisons(work: Path, kind: str, loader: str) -> dict[str, dict[str, Any]]:
    """Every comparison whose two files are there; the first is the yardstick."""
    pairs = {"plain bfloat16 / plain float32": (("peft", "bfloat16"), ("peft", "float32"))}
    for dtype, reference in (("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32")):
        pairs[f"{loader} {dtype} / plain {reference}"] = ((f"{loader}-probed", dtype), ("peft", reference))
    files = {
        name: [work / f"{kind}-{side}" / f"{dtype}.safetensors" for side, dtype in pair] for name, pair in pairs.items()
    }
    return {name: difference(*pair) for name, pair in files.items() if all(file.is_file() for file in pair)}


def training_figures(directory: Path) -> dict[str, Any]:
    """Of a run directory: the figures of the steps that were made, and the summary of a run that ended."""
    metrics, summary = directory / "metrics.jsonl", directory / "summary.json"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    steps = [{key: row.get(key) for key in METRICS} for row in rows]
    return {"steps": steps, "summary": json.loads(summary.read_text()) if summary.is_file() else None}


# The processes


def run_process(command: list[str], log: Path, deadline: float) -> Outcome:
    """Run a command of this repository until the deadline; then it is asked where it is (faulthandler) and ended."""
    threads = {"OMP_NUM_THREADS": "2", "TORCHDYNAMO_DISABLE": "1"}  # as train.py sets it: nothing is compiled
    caches = {"UNSLOTH_COMPILE_LOCATION": str(log.with_suffix(".unsloth"))}  # it cannot be shared while it is written
    always = {"PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**threads, **os.environ, **caches, **always},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            status: int | None = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
            process.send_signal(signal.SIGABRT)
            time.sleep(1)
            process.kill()
            process.wait()
    lines = log.read_text(errors="replace").splitlines()
    return Outcome(status, time.monotonic() - started, "\n".join(lines[-TAIL:]))


def probe_part(kind: str, loader: str, directory: Path, args: argparse.Namespace, deadline: float) -> Outcome:
    directory.mkdir()
    command = [__file__, "--device", args.device, "--rows", str(args.rows), "--probe", kind, loader, str(directory)]
    return run_process(command, directory.with_suffix(".log"), deadline)


def train_part(name: str, work: Path, args: argparse.Namespace, deadline: float) -> Outcome:
    command = [
        "train.py",
        *RUNS[name],
        "experiment=pocket_lora",
        f"loader={args.loader}",
        f"loader.device={args.device}",
        "model.dtype=bfloat16",
        f"max_steps={args.steps}",
        "rollout.groups_per_step=4",
        "rollout.max_refills=0",
        "eval.baseline=false",
        "eval.every_steps=0",
        "eval.episodes=8",
        "logging.tensorboard=false",
        f"output_dir={work}",
        f"run_name={run_name(name)}",
    ]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # tracebacks on the terminal
    return run_process(command, work / f"{run_name(name)}.log", deadline)


def run_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def results(args: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """The report so far, each time a process ends."""
    deadline = time.monotonic() + args.limit
    report: dict[str, Any] = {"comparisons": {}, "runs": {}, "failures": {}}
    with ThreadPoolExecutor(max_workers=16) as pool:
        parts = {}
        for name in args.runs:
            parts[pool.submit(train_part, name, work, args, deadline)] = name
        for kind in args.kinds:
            for loader, folder in ((args.loader, f"{args.loader}-probed"), ("peft", "peft")):
                job = pool.submit(probe_part, kind, loader, work / f"{kind}-{folder}", args, deadline)
                parts[job] = f"{kind}, {folder}"
        report["environment"] = environment(args)
        for job in as_completed(parts):
            name, outcome = parts[job], job.result()
            if outcome.status != 0:
                report["failures"][name] = outcome.failure()
            if name in RUNS:
                figures = training_figures(work / run_name(name))
                report["runs"][name] = {**figures, "seconds": round(outcome.seconds, 1)}
            report["comparisons"] = {kind: comparisons(work, kind, args.loader) for kind in args.kinds}
            yield report


def environment(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name() if args.device.startswith("cuda") and torch.cuda.is_available() else "CPU"
    return {"device": device, "python": platform.python_version(), "packages": dict(installed()), "loader": args.loader}


def installed() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


# The report


def tables(report: dict[str, Any]) -> Iterator[Table]:
    compared = Table(title="log-probs (nats) and adapter gradients")
    for column in ("model", "compared", "max", "mean", "gradient, relative", "worst tensor", "1 - cosine", "tensors"):
        compared.add_column(column, justify="left" if column in ("model", "compared") else "right")
    for kind, found in report["comparisons"].items():
        for name, row in found.items():
            keys = ("logprob_max_abs", "logprob_mean_abs", "gradient_relative", "gradient_relative_worst_tensor")
            cells = [*(f"{row[key]:.1e}" for key in keys), f"{1 - row['gradient_cosine']:.1e}", str(row["gradients"])]
            compared.add_row(kind, name, *cells)
    yield compared
    trained = Table(title="GRPO steps")
    for column in ("run", "step", *METRICS):
        trained.add_column(column, justify="right")
    for name, run in report["runs"].items():
        for number, step in enumerate(run["steps"], 1):
            trained.add_row(name, str(number), *("-" if step[key] is None else f"{step[key]:.3g}" for key in METRICS))
    yield trained


def main() -> int:
    args = arguments()
    if args.probe:
        kind, loader, directory = args.probe
        return probe(kind, loader, Path(directory), args)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "figures.json"
    with tempfile.TemporaryDirectory() as work:
        for report in results(args, Path(work)):
            file.write_text(json.dumps(report, indent=1))
    console = Console(width=150)
    for table in tables(report):
        console.print(table)
    for name, failure in report["failures"].items():
        console.print(f"failed: {name}: {failure['error']} after {failure['seconds']} s", markup=False)
    print(f"figures: {file}")
    return int(bool(report["failures"]))


if __name__ == "__main__":
    sys.exit(main())
