"""Models of real shapes with random weights, and batches that look like those of a run, for measuring on a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cua_agent.models.policy import PolicyModel
    from trainers.protocol import Batch

TINY = Path(__file__).resolve().parents[1] / "cua_agent" / "models" / "tiny_weights"
HEAD_WIDTH = 128
PATCH = 16


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


def random_model(size: str, directory: Path, device: str) -> Path:
    """A directory with random weights of the size, made once."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    out = directory / size
    if (out / "config.json").is_file():
        return out
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**shape_config(size)))
    torch.set_default_dtype(torch.float32)
    partial = out.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, partial / name)
    pixels = {"max_pixels": 1003520, "min_pixels": 65536}
    edges = {"longest_edge": pixels["max_pixels"], "shortest_edge": pixels["min_pixels"]}
    processor = json.loads((TINY / "preprocessor_config.json").read_text()) | pixels | {"size": edges}
    (partial / "preprocessor_config.json").write_text(json.dumps(processor))
    partial.rename(out)
    del model
    if device != "cpu":
        torch.cuda.empty_cache()
    return out


def synthetic_batch(policy: PolicyModel, count: int, most_turns: int, sampled: int, screen: tuple[int, int]) -> Batch:
    """Rows of half to all of `most_turns` turns, each with a [height, width] `screen` and `sampled` tokens, in groups
    of four; half of each group succeeds."""
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
        mask = np.tile(np.repeat([0, 1], [len(prompt), sampled]), turns).astype(np.int32)
        ids = np.tile(np.array([*prompt, *[0] * sampled]), turns)
        ids[mask == 1] = rng.choice(allowed, turns * sampled)
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

    print(random_model(sys.argv[1], Path(sys.argv[2]), "cpu" if len(sys.argv) < 4 else sys.argv[3]))
