"""Models of real shapes with random weights, and batches that look like those of a run, for measuring on a GPU."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cua_agent.models.policy import PolicyModel
    from trainers.protocol import Batch

TINY = Path(__file__).resolve().parents[1] / "cua_agent" / "models" / "tiny_weights"
HEAD_WIDTH = 128
PATCH = 16
SPARE_ROWS = 267
"""Rows of the embedding without a token in Qwen3-VL: of all rows, vLLM bans 1,024 at most."""
BLOCK = 2**22
"""Random numbers that a file's weights are made of."""


def _text(layers: int, heads: int, key_heads: int, width: int, inner: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": inner,
    }


def _vision(depth: int, heads: int, width: int, inner: int, deepstack: list[int]) -> dict[str, Any]:
    return {
        "depth": depth,
        "num_heads": heads,
        "hidden_size": width,
        "intermediate_size": inner,
        "deepstack_visual_indexes": deepstack,
    }


TEXT = {
    "nano": _text(2, 2, 1, 256, 512),
    "2b": _text(28, 16, 8, 2048, 6144),
    "4b": _text(36, 32, 8, 2560, 9728),
    "8b": _text(36, 32, 8, 4096, 12288),
    "32b": _text(64, 64, 8, 5120, 25600),
}
VISION = {
    "nano": _vision(2, 2, 128, 256, [0]),
    "2b": _vision(24, 16, 1024, 4096, [5, 11, 17]),
    "4b": _vision(24, 16, 1024, 4096, [5, 11, 17]),
    "8b": _vision(27, 16, 1152, 4304, [8, 16, 24]),
    "32b": _vision(27, 16, 1152, 4304, [8, 16, 24]),
}
"""Of Qwen3-VL-2B, -4B, -8B and -32B, from their config.json on the hub."""
TIED = ("nano", "2b", "4b")
"""Sizes whose head has the weights of the embedding."""


def shape_config(size: str) -> dict[str, Any]:
    """What the config.json of the size says, with the tokens of the built-in model."""
    config: dict[str, Any] = json.loads((TINY / "config.json").read_text())
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_theta": 5e6, "rope_type": "default"}
    common = {"initializer_range": 0.02, "dtype": "bfloat16"}
    config["text_config"] |= TEXT[size] | common
    config["text_config"] |= {"head_dim": HEAD_WIDTH, "vocab_size": 151936, "max_position_embeddings": 262144}
    config["text_config"]["rope_parameters"] = rope
    config["vision_config"] |= VISION[size] | common
    config["vision_config"] |= {"num_position_embeddings": 2304, "out_hidden_size": TEXT[size]["hidden_size"]}
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = size in TIED
    return {key: value for key, value in config.items() if key not in ("architectures", "transformers_version")}


def random_model(size: str, directory: Path, workers: int = 4) -> Path:
    """A checkpoint of random weights of the size, made once: a file a layer, so that no process holds more. Weights are
    drawn from N(0, 0.02^2), from a block of numbers that every tensor begins at another place of; scales are 1."""
    out = directory / size
    if (out / "config.json").is_file():
        return out
    partial = out.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = shape_config(size)
    files = _files(config)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
        sizes = list(pool.map(_write_weights, [partial / name for name in names], files, range(len(files))))
    weight_map = {key: name for name, shapes in zip(names, files, strict=True) for key in shapes}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index))
    config["architectures"] = ["Qwen3VLForConditionalGeneration"]
    (partial / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, partial / name)
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    known = len(words)
    words |= {f"word{number}": number for number in range(known, config["text_config"]["vocab_size"] - SPARE_ROWS)}
    (partial / "tokenizer.json").write_text(json.dumps(tokenizer))
    pixels = {"max_pixels": 1003520, "min_pixels": 65536}
    edges = {"longest_edge": pixels["max_pixels"], "shortest_edge": pixels["min_pixels"]}
    processor = json.loads((TINY / "preprocessor_config.json").read_text()) | pixels | {"size": edges}
    (partial / "preprocessor_config.json").write_text(json.dumps(processor))
    partial.rename(out)
    return out


def _files(config: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of the model's tensors by name, a dictionary a file: a layer each, and what belongs to none."""
    from transformers import AutoConfig

    from cua_agent.models.architecture import empty_model

    rest = {key: value for key, value in config.items() if key != "model_type"}
    model = empty_model(AutoConfig.for_model(config["model_type"], **rest))
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in model.named_parameters():
        layer = re.match(r".*\.layers\.\d+\.", name)
        files.setdefault(layer[0] if layer else name.split(".")[1], {})[name] = tuple(parameter.shape)
    return list(files.values())


def _write_weights(file: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> int:
    """Write bfloat16 tensors of these shapes; returns their bytes."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    block = torch.empty(BLOCK, dtype=torch.bfloat16).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 1:
            tensors[name] = torch.full(shape, float(name.endswith("weight")), dtype=torch.bfloat16)
            continue
        count = int(np.prod(shape))
        start = 7919 * number % BLOCK
        tensors[name] = block.roll(-start).repeat(-(-count // BLOCK))[:count].reshape(shape).clone()
    save_file(tensors, file, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def synthetic_batch(
    policy: PolicyModel,
    count: int,
    most_turns: int,
    sampled: int,
    screen: tuple[int, int],
    exactly: int | None = None,
) -> Batch:
    """Rows of half to all of `most_turns` turns, each with a [height, width] `screen` and `sampled` tokens, in groups
    of four; half of each group succeeds. With `exactly`, rows of so many tokens: as many turns as fit, the last of them
    longer."""
    from cua_agent.trajectory import Outcome, Trajectory
    from trainers.config import AdvantageConfig
    from trainers.grpo.advantages import batch_of

    rng = np.random.default_rng(0)
    allowed = np.setdiff1d(np.arange(len(policy.tokenizer)), policy.special.banned)
    height, width = screen
    placeholders = "<|image_pad|>" * policy.image_tokens(height, width)
    asked = f"<|im_start|>user\n<|vision_start|>{placeholders}<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    prompt = policy.encode(asked)
    rows = []
    for number in range(count):
        turns = int(rng.integers(max(1, most_turns // 2), most_turns + 1))
        if exactly:
            turns = exactly // (len(prompt) + sampled)
        mask = np.tile(np.repeat([0, 1], [len(prompt), sampled]), turns).astype(np.int32)
        ids = np.tile(np.array([*prompt, *[0] * sampled]), turns)
        if exactly:
            more = exactly - len(ids)
            mask, ids = np.pad(mask, (0, more), constant_values=1), np.pad(ids, (0, more))
        ids[mask == 1] = rng.choice(allowed, int(mask.sum()))
        rows.append(
            Trajectory(
                input_ids=ids,
                loss_mask=mask,
                logprobs=(-7.0 * mask).astype(np.float32),
                versions=(mask - 1).astype(np.int32),
                images=[rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(turns)],
                reward=float(number % 2),
                outcome=Outcome.SUCCESS if number % 2 else Outcome.FAILURE,
                task_id="task",
                group_id=f"group{number // 4}",
                episode_id=f"episode{number}",
                seed=0,
            )
        )
    return batch_of(rows, AdvantageConfig())


if __name__ == "__main__":
    import sys

    print(random_model(sys.argv[1], Path(sys.argv[2]), workers=int(sys.argv[3]) if len(sys.argv) > 3 else 4))
