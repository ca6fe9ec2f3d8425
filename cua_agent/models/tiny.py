"""The built-in tiny policy: a Qwen3-VL of a few million parameters and a tokenizer made for tool calls.

Architecture and chat format are those of the large models (transformers' own classes, unchanged); only the sizes
differ. The tokenizer reads the fixed parts of a tool call as single tokens, so that a call costs about eight.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cua_agent.prompts import preamble

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from cua_agent.models.policy import PolicyModel

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAG_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# The fixed parts of chats and tool calls: one token each. Longer ones first, for the pattern below.
PHRASES = (
    preamble("brief"),
    '\n{"name": "perform_action", "arguments": {"action": "',
    '\n{"name": "report_task_complete", "arguments": {}}\n',
    '\n{"name": "sleep", "arguments": {"seconds": ',
    '", "enter": true}}\n',
    '", "target": "',
    '", "target2": "',
    '", "text": "',
    '", "direction": "',
    '", "button": "',
    '", "key": "',
    '", "coordinate": [',
    '], "coordinate2": [',
    '"}}\n',
    "]}}\n",
    "}}\n",
    "system\n",
    "user\n",
    "assistant\n",
    "\nok\n",
)
_VOCABULARY = 1000  # byte-pair tokens, before numbers, phrases and specials
_LARGEST_NUMBER = 1000
PATCH, MERGE = 16, 2


def build_tokenizer(texts: Iterable[str], words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`; `words` (with and without a space before them), numbers up to 1000 and the
    phrases are single tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    escaped = [_escape(phrase) for phrase in sorted(PHRASES, key=len, reverse=True)]
    pattern = "|".join([*escaped, r"\d{1,4}", r" ?[A-Za-z]+", r"\s", r" ?[^\sA-Za-z\d]"])
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    draft = Tokenizer(models.BPE(ignore_merges=True))
    draft.pre_tokenizer = split
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    draft.train_from_iterator([text for text in texts if text], trainer)

    learned = json.loads(draft.to_str())["model"]
    vocabulary: dict[str, int] = learned["vocab"]
    spaced = [text for word in words for text in (word, f" {word}")]
    for text in (*PHRASES, *spaced, *map(str, range(_LARGEST_NUMBER + 1))):
        vocabulary.setdefault(_byte_level(text), len(vocabulary))
    merges = [tuple(merge) for merge in learned["merges"]]
    final = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    final.pre_tokenizer = split
    final.decoder = decoders.ByteLevel()
    final.add_special_tokens(list(SPECIAL_TOKENS))
    final.add_tokens([AddedToken(tag, normalized=False) for tag in TAG_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=final, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **sizes: Any) -> Any:
    """A randomly initialised `Qwen3VLForConditionalGeneration`, float32. `sizes` override those of `tiny_config`."""
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    return _spread_positions(Qwen3VLForConditionalGeneration(tiny_config(tokenizer, **sizes)))


def start_afresh(policy: PolicyModel, seed: int) -> None:
    """Give all parameters of `policy` random values, those that a new model of its configuration has."""
    model = policy.base_model
    config = type(model.config).from_dict(model.config.to_dict())  # without the attention that this one was given
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = _spread_positions(type(model)(config))
    policy.load_trained(dict(fresh.named_parameters()))


def _spread_positions(model: Any) -> Any:
    """The default initialisation is far too small for the learned position embedding of so narrow a tower."""
    tower: Any = getattr(model.model, "visual", None)
    if hasattr(tower, "pos_embed"):
        torch.nn.init.normal_(tower.pos_embed.weight, std=0.5)
    return model


def tiny_config(
    tokenizer: PreTrainedTokenizerFast,
    hidden: int = 192,
    layers: int = 4,
    heads: int = 3,
    head_dim: int = 64,
    ffn: int = 512,
    vision_hidden: int = 128,
    vision_depth: int = 4,
    vision_heads: int = 4,
    text_init: float = 0.08,
    vision_init: float = 0.05,
) -> Any:
    """A `Qwen3VLConfig`. Its initialisation ranges are larger than those of wide models (0.02), which learn slowly
    here."""
    from transformers import Qwen3VLConfig

    token = tokenizer.convert_tokens_to_ids
    sections = [head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6]
    return Qwen3VLConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "initializer_range": text_init,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "pad_token_id": token("<|endoftext|>"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": sections,
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "initializer_range": vision_init,
            "depth": vision_depth,
            "hidden_size": vision_hidden,
            "intermediate_size": 2 * vision_hidden,
            "num_heads": vision_heads,
            "out_hidden_size": hidden,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def save_tiny(directory: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a checkpoint that `load_policy` reads: bfloat16 weights, tokenizer, chat template, image processor."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    directory.mkdir(parents=True, exist_ok=True)
    template = Path(__file__).with_name("chat_template.jinja")
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    shutil.copyfile(template, directory / template.name)
    side = PATCH * MERGE
    processor = Qwen2VLImageProcessor(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        min_pixels=side * side,
        max_pixels=256 * side * side,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor.save_pretrained(directory)


def _escape(text: str) -> str:
    """`text` as a pattern of the tokenizer's regular expressions."""
    return "".join(f"\\{c}" if c in r"\.+*?()|[]{}^$" else c for c in text)


def _byte_level(text: str) -> str:
    """`text` in the alphabet of byte-level BPE."""
    from tokenizers import pre_tokenizers

    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)
