"""Three steps of the recipes (conf/experiment/qwen3_vl_*): random weights of their shapes, a local GBox, a vLLM server.

    python benchmarks/gpu_recipes.py --only 4b_1gpu --out outputs/gpu_recipes

Nothing of a recipe is changed but where model and boxes are, and how long a step is (`SHORT`). A model of random
weights never earns a reward, so each episode is given one by lot; all else is `train.py`. `--cards` are the cards to
use, in the order of the recipe: those that train, then those that serve. Every recipe writes `--out`/<name>.json and
its programs' output beside it. `--size nano --device cpu` tries the script anywhere that has vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3
SHORT = [
    f"max_steps={STEPS}",
    "rollout.group_size=4",
    "rollout.groups_per_step=2",
    "rollout.max_turns=3",
    "rollout.max_new_tokens=48",
    "rollout.concurrency=8",
    "rollout.max_refills=0",
    "eval.every_steps=0",
    "eval.baseline=false",
    "eval.episodes=2",
    "checkpoint.every_steps=2",
    "logging.tensorboard=false",
]
FIGURES = ("step_s", "rollout_s", "train_s", "sync_s", "logprob_gap", "staleness_max", "grad_norm", "loss", "tokens")
TAIL = 25


@dataclass(frozen=True)
class Recipe:
    """`training` and `serving` are numbers among the recipe's cards; `serve` the options of its server."""

    size: str
    training: tuple[int, ...]
    serving: tuple[int, ...]
    serve: list[str] = field(default_factory=list)


RECIPES = {
    "4b_1gpu": Recipe("4b", (0,), (0,), ["gpu_memory=0.45"]),
    "8b_2gpu": Recipe("8b", (0,), (1,)),
    "32b_4gpu": Recipe("32b", (0, 1), (2, 3), ["gpus=2", "max_staleness=6"]),
}


def main() -> int:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in args.only:
        result = run(name, args)
        (args.out / f"{name}.json").write_text(json.dumps(result, indent=1))
        print(json.dumps(result), flush=True)
        failed |= "error" in result
    return int(failed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="default: all")
    parser.add_argument("--models", type=Path, default=Path("/tmp/shapes"), help="where random weights are kept")
    parser.add_argument("--size", help="another shape than the recipe's")
    parser.add_argument("--cards", type=int, nargs="+", default=[0, 1, 2, 3], help="default: %(default)s")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--serve", nargs="*", default=[], metavar="KEY=VALUE", help="more options of the server")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="more keys of the run")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs: the server starts sooner")
    parser.add_argument("--vllm-path", default=os.environ.get("PYTHONPATH", ""), help="PYTHONPATH of the server")
    parser.add_argument("--limit", type=float, default=600, help="seconds of a recipe (default: %(default)s)")
    return parser.parse_args()


def by_lot(*_: object) -> float:
    """A `reward.function` for models that never earn one: 0 or 1."""
    return float(random.random() < 0.5)


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Start what the recipe needs, train, end it all; what it came to."""
    from gpu_shapes import random_model

    recipe, started = RECIPES[name], time.perf_counter()
    model = random_model(args.size or recipe.size, args.models)
    result: dict[str, Any] = {"recipe": name, "size": args.size or recipe.size}
    with ExitStack() as running:
        port, gbox = free_port(), free_port()
        options = [f"model={model}", f"port={port}", *recipe.serve, *args.serve]
        options += ["--", "--enforce-eager"] if args.eager else []
        serve = [sys.executable, "-m", "cua_agent.inference.vllm", "serve", *options]
        environment = cards(recipe.serving, args) | {"PYTHONPATH": args.vllm_path}
        server = running.enter_context(program(serve, args.out / f"{name}.serve.log", environment))
        box = [sys.executable, "-m", "cua_agent.envs.local_gbox", "--port", str(gbox), "--scale", "4"]
        running.enter_context(program(box, args.out / f"{name}.gbox.log", {}))
        used = running.enter_context(card_peaks(args))
        until = started + args.limit
        result["serve_s"] = round(wait_for(f"http://127.0.0.1:{port}/health", server, until), 1)
        launch = [sys.executable]
        if len(recipe.training) > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={len(recipe.training)}"]
        keys = [
            f"experiment=qwen3_vl_{name}",
            f"model.path={model}",
            f"loader.device={args.device}",
            f"inference.servers=[http://127.0.0.1:{port}]",
            f"env.args.base_url=http://127.0.0.1:{gbox}/api/v1",
            f"output_dir={args.out}",
            f"run_name={name}",
            "reward.function=benchmarks.gpu_recipes:by_lot",
            *SHORT,
            *args.train,
        ]
        environment = cards(recipe.training, args) | {"GBOX_API_KEY": "local"}
        log = args.out / f"{name}.train.log"
        with program([*launch, str(ROOT / "train.py"), *keys], log, environment) as trainer:
            try:
                status: int | None = trainer.wait(max(1.0, until - time.perf_counter()))
            except subprocess.TimeoutExpired:
                status = None
        result |= {"seconds": round(time.perf_counter() - started, 1), "card_peak_gib": used}
    rows = metrics(args.out / name / "metrics.jsonl")
    result["steps"] = len(rows)
    for figure in FIGURES:
        if values := [row[figure] for row in rows if row.get(figure) is not None]:
            result[figure] = round(median(values), 4)
    if status != 0 or len(rows) != STEPS:
        result["error"] = f"exit status {status}, {len(rows)} steps"
        for part in ("train", "serve"):
            lines = (args.out / f"{name}.{part}.log").read_text(errors="replace").splitlines()
            result[f"{part}_tail"] = lines[-TAIL:]
    return result


def cards(numbers: tuple[int, ...], args: argparse.Namespace) -> dict[str, str]:
    """The environment of a program that is to see these cards only."""
    if args.device == "cpu":
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(str(args.cards[number]) for number in numbers)}


@contextmanager
def program(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run it, with its output in `log`, until the end of the block at the latest."""
    paths = [str(ROOT), environment.pop("PYTHONPATH", os.environ.get("PYTHONPATH", ""))]
    settings = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=settings, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], until: float) -> float:
    """Seconds until the server answers, or is no more: a server measures its card's memory before anything else is on
    it."""
    import httpx

    started = time.perf_counter()
    while server.poll() is None and time.perf_counter() < until:
        try:
            if httpx.get(url, timeout=2.0, trust_env=False).is_success:
                break
        except httpx.TransportError:
            time.sleep(0.5)
    return time.perf_counter() - started


@contextmanager
def card_peaks(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """The most GiB in use on every card inside, by all programs together, as the driver tells."""
    peaks: dict[str, float] = {}
    over = threading.Event()

    def watch() -> None:
        while args.device != "cpu" and not over.wait(1.0):
            query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
            said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
            for line in said.splitlines():
                index, mib = line.split(",")
                peaks[index] = max(peaks.get(index, 0.0), round(float(mib) / 1024, 1))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        over.set()
        watcher.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def metrics(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
