"""Tiny checkpoints with random weights and a byte-level tokenizer, for tests: models with eyes and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

Family = Literal["qwen3_vl", "qwen2_5_vl"]
TextFamily = Literal["llama", "qwen3"]

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
UNUSED_ROWS = 9
"""Rows of the embedding that belong to no token, as real checkpoints have."""


def build(
    directory: Path,
    family: Family = "qwen3_vl",
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    *,
    tied: bool = True,
) -> Path:
    """Write a checkpoint (config, weights, tokenizer, image processor) to `directory` and return it.

    Weights are large enough (standard deviation 0.2) that tokens and images visibly change the next-token distribution.
    """
    tokenizer = _tokenizer()
    patch = 16 if family == "qwen3_vl" else 14
    processor = Qwen2VLImageProcessor(
        patch_size=patch,
        merge_size=2,
        min_pixels=(2 * patch) ** 2,
        max_pixels=(2 * patch) ** 2 * 64,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make = _qwen3 if family == "qwen3_vl" else _qwen2_5
        model = make(tokenizer, hidden, layers, tied)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    for part in (model, tokenizer, processor):
        part.save_pretrained(directory)
    return directory


def build_text(directory: Path, family: TextFamily = "llama", seed: int = 0, hidden: int = 32) -> Path:
    """The same for a model without eyes."""
    tokenizer = _tokenizer()
    config = {**_text_config(tokenizer, hidden, layers=2), "tie_word_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = (
            LlamaForCausalLM(LlamaConfig(**config))
            if family == "llama"
            else Qwen3ForCausalLM(Qwen3Config(**config, head_dim=16))
        )
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    for part in (model, tokenizer):
        part.save_pretrained(directory)
    return directory


def screenshot(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """Random pixels, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _text_config(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer) + UNUSED_ROWS,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _image_ids(tokenizer: PreTrainedTokenizerFast, tied: bool) -> dict[str, Any]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    ids: dict[str, Any] = {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    return {**ids, "tie_word_embeddings": tied}


def _qwen3(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, tied: bool) -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": hidden,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = {**_text_config(tokenizer, hidden, layers), "head_dim": 16, "rope_parameters": rope}
    text["tie_word_embeddings"] = tied
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_image_ids(tokenizer, tied))
    return Qwen3VLForConditionalGeneration(config)


def _qwen2_5(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, tied: bool) -> PreTrainedModel:
    quarter = hidden // 2 // 2 // 4
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2 * quarter, quarter, quarter]}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    text = {**_text_config(tokenizer, hidden, layers), "rope_parameters": rope}
    text["tie_word_embeddings"] = tied
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_image_ids(tokenizer, tied))
    return Qwen2_5_VLForConditionalGeneration(config)
