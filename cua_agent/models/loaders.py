"""Loading a policy from the built-in tiny model, a local directory or the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cua_agent.models.fast_vision import use_fast_vision
from cua_agent.models.lora import LoraSpec, adapter_base, attach_lora, load_adapter
from cua_agent.models.policy import PolicyModel, SpecialTokens

TINY = "tiny"
TINY_WEIGHTS = Path(__file__).parent / "tiny_weights"
SUPPORTED_MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
END_OF_TURN = "<|im_end|>"
NEVER_SAMPLED = (
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_TIMEOUT_S = 10.0


class ModelNotFound(ValueError):  # noqa: N818 (a state of the world, not a fault of the program)
    """`model.path` leads to no model; the message is one line naming key, value and what is allowed."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"model.path={path!r}: {why}; allowed: '{TINY}', a local directory with config.json, or a hub id such as "
            "'Qwen/Qwen3-VL-2B-Instruct'"
        )


class UnsupportedModel(ValueError):  # noqa: N818 (a state of the world, not a fault of the program)
    """`model.path` leads to a model that no policy can be made of; the message is one line."""


def load_policy(
    path: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: str | None = None,
    attn_implementation: str = "sdpa",
    lora: LoraSpec | None = None,
    freeze_vision: bool = False,
    keep_reference: bool = False,
) -> PolicyModel:
    """Load a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint, or an adapter directory with the base model it names.

    With `lora` a fresh adapter is trained and the rest is frozen; without it all weights are trained, and
    `keep_reference` keeps a frozen copy of them for `PolicyModel.reference`; `freeze_vision` leaves the vision tower as
    it is. A saved adapter is itself what is trained
    further: its own rank and targets hold, not those of `lora`. `device_map` (accelerate) replaces `device`.
    Raises `ModelNotFound`, `UnsupportedModel` for one of another architecture, `ValueError` for an unknown dtype.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.utils import logging as transformers_logging

    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"model.dtype={dtype!r}; allowed: float32, bfloat16")
    if base := adapter_base(Path(path).expanduser()):
        policy = load_policy(
            base, dtype=dtype, device=device, device_map=device_map, attn_implementation=attn_implementation
        )
        return replace(policy, model=load_adapter(policy.model, Path(path).expanduser()))
    source = _resolve(path)
    _check_architecture(path, source)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForImageTextToText.from_pretrained(
        source, dtype=getattr(torch, dtype), attn_implementation=attn_implementation, device_map=device_map
    )
    if device_map is None:
        model = model.to(device)
    if model.config.model_type == "qwen3_vl" and attn_implementation == "sdpa":
        use_fast_vision(model)
    if freeze_vision:
        model.model.visual.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    special = special_tokens(tokenizer, model.config)
    image_processor = Qwen2VLImageProcessor.from_pretrained(source)

    model.name_or_path = path  # what an adapter names as its base: "tiny" rather than where it lies on this machine
    adapted = attach_lora(model, lora) if lora else model
    policy = PolicyModel(adapted, tokenizer, image_processor, special)
    if keep_reference and lora is None:
        policy.reference_weights = {name: p.detach().clone() for name, p in policy.trainable_parameters()}
    return policy


def special_tokens(tokenizer: Any, config: Any) -> SpecialTokens:
    """The ids that the agent and the sampler need; raises `UnsupportedModel` when the tokenizer has no end of turn."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if END_OF_TURN not in vocabulary:
        raise UnsupportedModel(f"the tokenizer has no {END_OF_TURN} token: not a chat model of the Qwen family")
    unused = set(range(config.text_config.vocab_size)) - set(vocabulary.values())
    placeholders = {config.image_token_id, config.video_token_id}
    never = {vocabulary[token] for token in NEVER_SAMPLED if token in vocabulary}
    end_of_turn = vocabulary[END_OF_TURN]
    return SpecialTokens(
        image_token_id=config.image_token_id,
        end_of_turn_id=end_of_turn,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_of_turn,
        banned=tuple(sorted(unused | placeholders | never)),
    )


def model_source(path: str) -> str:
    """Where configuration and tokenizer of `model.path` are, for an adapter those of its base: a directory or hub id.

    Raises `ModelNotFound`.
    """
    return _resolve(adapter_base(Path(path).expanduser()) or path)


def _resolve(path: str) -> str:
    """The directory or hub id to load from, checked before anything heavy happens."""
    if path == TINY:
        if not (TINY_WEIGHTS / "config.json").is_file():
            raise ModelNotFound(path, f"the built-in weights are missing from {TINY_WEIGHTS}")
        return str(TINY_WEIGHTS)
    directory = Path(path).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ModelNotFound(path, "the directory has no config.json")
        return str(directory)
    if not _HUB_ID.fullmatch(path) or path.startswith("."):
        raise ModelNotFound(path, "no such directory")
    _check_hub(path)
    return path


def _check_hub(repository: str) -> None:
    """One quick question to the hub, because loading a missing model retries for half a minute before it fails."""
    import httpx
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, "config.json"), str):
        return
    try:
        HfApi().model_info(repository, timeout=_HUB_TIMEOUT_S)
    except (httpx.HTTPError, OSError, ValueError) as error:
        why = f"no such directory, and the hub answered: {_first_line(error)}"
        raise ModelNotFound(repository, why) from None


def _check_architecture(path: str, source: str) -> None:
    from transformers import AutoConfig

    try:
        model_type = AutoConfig.from_pretrained(source).model_type
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"model.path={path!r}: config.json: {_first_line(error)}") from None
    if model_type not in SUPPORTED_MODEL_TYPES:
        allowed = ", ".join(SUPPORTED_MODEL_TYPES)
        raise UnsupportedModel(f"model.path={path!r} is a {model_type!r} model; allowed: {allowed}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
