"""How fast vLLM decodes with an adapter and without, and how long new weights take to reach it.

    python benchmarks/gpu_shapes.py 2b shapes
    python -m cua_agent.inference.vllm serve model=shapes/2b gpu_memory=0.2
    python -m cua_agent.inference.vllm serve model=shapes/2b gpu_memory=0.2 lora=false memory_transfer=true port=8001
    python benchmarks/gpu_weights.py --model shapes/2b --adapters http://127.0.0.1:8000 --full http://127.0.0.1:8001

The model is loaded on the card as a trainer would. Decoding: `--new` tokens for each of some requests at a time, after
prompts of `--prompt` random tokens, which are computed beforehand. Weights: an adapter as a file, all weights as files,
all weights out of the trainer's memory; after each the canary tells how far the server is from the trainer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.canary import Canary, make_canary, own_logprobs
from cua_agent.inference.vllm.client import ControlClient, SamplingClient
from cua_agent.inference.vllm.weight_transfer import transfer
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.merging import merged_weights
from cua_agent.models.policy import PolicyModel
from trainers.run.checkpoint import save_weights

BASE, ADAPTER = "policy", "gpu-weights-v1"


def main() -> None:
    """Measure, print, and write the figures."""
    args = arguments()
    figures: dict[str, Any] = {}
    for measure, url in ((adapters, args.adapters), (full_weights, args.full)):
        if url is not None:
            figures |= measure(url, args)
    text = json.dumps(figures, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="what both servers serve")
    parser.add_argument("--adapters", metavar="URL", help="a server of adapters")
    parser.add_argument("--full", metavar="URL", help="a server of full weights")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 16, 64], help="at a time")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--new", type=int, default=128, help="tokens")
    parser.add_argument("--out", type=Path, help="JSON")
    return parser.parse_args()


def adapters(url: str, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a server of adapters."""
    policy = load_policy(args.model, dtype=args.dtype, device=args.device, lora=LoraSpec(r=16))
    change(policy)
    client, canary = ControlClient(url), make_canary(policy)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        save_weights(Path(directory), policy)
        client.call(wire.load_adapter(ADAPTER, directory))
        figures["adapter as a file, s"] = time.perf_counter() - started
        figures["adapter, canary off by"] = canary_gap(client, policy, canary, ADAPTER)
        for name in (ADAPTER, BASE):
            label = "with an adapter" if name == ADAPTER else "a server of adapters, without one"
            figures |= decoding(url, name, policy, f"decoding {label}", args)
        client.call(wire.unload_adapter(ADAPTER))
    client.close()
    return figures


def full_weights(url: str, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a server of full weights."""
    policy = load_policy(args.model, dtype=args.dtype, device=args.device)
    client, canary = ControlClient(url), make_canary(policy)
    figures: dict[str, Any] = decoding(url, BASE, policy, "decoding without adapters", args)
    figures["first weights, canary off by"] = canary_gap(client, policy, canary, BASE)
    if policy.device.type == "cuda":
        for turn in ("first", "second"):
            change(policy)
            client.call(wire.pause())
            started = time.perf_counter()
            transfer(client, merged_weights(policy, {}))
            figures[f"all weights through memory, {turn}, s"] = time.perf_counter() - started
            settle(client)
            figures[f"all weights through memory, {turn}, canary off by"] = canary_gap(client, policy, canary, BASE)
    change(policy)
    client.call(wire.pause())
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        save_weights(Path(directory), policy)
        figures["all weights as files, written, s"] = time.perf_counter() - started
        client.call(wire.reload_weights("reload_weights", directory))
        figures["all weights as files, s"] = time.perf_counter() - started
    settle(client)
    figures["all weights as files, canary off by"] = canary_gap(client, policy, canary, BASE)
    client.close()
    return figures


def settle(client: ControlClient) -> None:
    """Drop what was computed with former weights and go on."""
    for call in wire.reset_caches():
        client.call(call)
    client.call(wire.resume())


@torch.no_grad()
def change(policy: PolicyModel) -> None:
    """Move what is trained so far that the canary sees it."""
    for _, parameter in policy.trainable_parameters():
        parameter.add_(torch.randn_like(parameter), alpha=2e-3)


def canary_gap(client: ControlClient, policy: PolicyModel, canary: Canary, model: str) -> float:
    """Mean difference of log-probabilities between server and trainer."""
    observed: list[float] = []
    for probe in canary.probes:
        observed += wire.read_probe(
            client.call(wire.probe(model, probe.wire, canary.choices)), probe.ids, canary.choices
        )
    return float(np.abs(np.array(observed) - np.array(own_logprobs(policy, canary))).mean())


def decoding(url: str, model: str, policy: PolicyModel, label: str, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second, for each number of requests at a time."""
    return {
        f"{label}, {count} at a time, tokens/s": asyncio.run(_decoding(url, model, policy, count, args))
        for count in args.requests
    }


async def _decoding(url: str, model: str, policy: PolicyModel, count: int, args: argparse.Namespace) -> float:
    rng = np.random.default_rng(0)
    words = np.setdiff1d(np.arange(len(policy.tokenizer)), policy.special.banned)
    client = SamplingClient([url], count, 600.0)
    prompts = [rng.choice(words, args.prompt).tolist() for _ in range(count)]

    async def sample(prompt: list[int], new: int) -> int:
        sampling = {"max_tokens": new, "ignore_eos": True, "seed": 1, "logprobs": 0, "detokenize": False}
        answer = await client.call(url, wire.generate(model, wire.Prompt(prompt), sampling))
        return len(wire.read_generation(answer).output_ids)

    await asyncio.gather(*(sample(prompt, 1) for prompt in prompts))
    started = time.perf_counter()
    sampled = await asyncio.gather(*(sample(prompt, args.new) for prompt in prompts))
    seconds = time.perf_counter() - started
    await client.close()
    return sum(sampled) / seconds


if __name__ == "__main__":
    main()
