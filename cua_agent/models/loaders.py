"""Loading a policy: with transformers and peft, or through Unsloth."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from cua_agent.actions import Coordinates
from cua_agent.calls.notation import CALL_START
from cua_agent.error_text import first_line
from cua_agent.models.architecture import empty_model, placeholder, replace_parameters
from cua_agent.models.compiled_layers import allow_compiling, compile_layers
from cua_agent.models.errors import DeviceMissing, UnsupportedModel
from cua_agent.models.families import reply_prefix
from cua_agent.models.fast_norms import use_fast_norms
from cua_agent.models.fast_vision import bring_grids, use_fast_vision
from cua_agent.models.fingerprint import fingerprint
from cua_agent.models.lora import LoraSpec, attach_lora, load_adapter, load_adapter_weights, saved_spec
from cua_agent.models.offloading import offload_inputs
from cua_agent.models.packed_attention import use_packed_attention
from cua_agent.models.pixels import image_processor
from cua_agent.models.policy import NO_TOKEN, PolicyModel, SpecialTokens, Unread
from cua_agent.models.sources import ModelSource, find_model
from cua_agent.models.unsloth import load_model_with_unsloth
from cua_agent.models.weight_files import WeightFiles

Loader = Literal["peft", "unsloth"]
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
"""Ends a document in pre-training; a chat model may end its turn with it."""
NEVER_SAMPLED = (
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass(frozen=True)
class _Manner:
    """How weights get into memory; see `load_policy`."""

    dtype: str
    device: str
    device_map: str | None
    attn_implementation: str
    load_in_4bit: bool
    gradient_checkpointing: bool
    offload_activations: bool
    compiled: bool
    max_length: int
    unread: bool


def load_policy(
    path: str,
    *,
    loader: Loader = "peft",
    dtype: str = "float32",
    device: str = "cpu",
    device_map: str | None = None,
    attn_implementation: str = "sdpa",
    load_in_4bit: bool = False,
    gradient_checkpointing: bool = False,
    offload_activations: bool = False,
    compiled: bool = False,
    max_length: int = 2048,
    lora: LoraSpec | None = None,
    freeze_vision: bool = False,
    keep_reference: bool = False,
    unread: bool = False,
    coordinates: Coordinates | None = None,
    thinking: bool | None = None,
) -> PolicyModel:
    """Load a Qwen-VL checkpoint, a language model without eyes, or an adapter directory with the base model it names.

    With `lora` a fresh adapter is trained and the rest is frozen; without it all weights are trained, and
    `keep_reference` keeps a frozen copy of them for `PolicyModel.reference`; `freeze_vision` leaves the vision tower as
    it is. A saved adapter is itself what is trained further: its own rank and targets hold, not those of `lora`.
    `device_map` (accelerate) replaces `device`. `gradient_checkpointing` recomputes activations in training mode; with
    `offload_activations` the layers' inputs, which it keeps, lie in main memory (`cua_agent.models.offloading`).
    `compiled` puts torch.compile to the language model's layers (Unsloth: lets it compile what it does).
    `loader="unsloth"` trains adapters only; it alone loads 4-bit weights and reads `max_length`, the most tokens of a
    forward pass. `unread` leaves the model's weights on disk, for who shards it to read (`PolicyModel.unread`);
    `loader="peft"` alone does. `coordinates` and `thinking` overrule what the model's family and its chat template say
    (`cua_agent.models.families`). Raises `ModelError` when model, package or device is missing or does not fit;
    `ValueError` for values that do not exist.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"model.dtype={dtype!r}; allowed: float32, bfloat16")
    if unread and (loader != "peft" or device_map is not None):
        raise ValueError("weights stay unread with loader=peft and without a device_map only")
    if load_in_4bit and loader != "unsloth":
        raise ValueError("loader.load_in_4bit=true needs loader=unsloth")
    if offload_activations and (loader != "peft" or not gradient_checkpointing):
        raise ValueError("loader.offload_activations=true needs loader=peft and loader.gradient_checkpointing=true")
    check_device(device)
    if device.startswith("cuda"):
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans 0.1 s for every new length, and lengths rarely repeat
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # for kernels and libraries that take the present one
    source = find_model(path)
    reader = _reader(path, source, thinking)
    if device == "cuda":
        device = f"cuda:{torch.cuda.current_device()}"  # threads that load weights have another present one
    manner = _Manner(
        dtype,
        device,
        device_map,
        attn_implementation,
        load_in_4bit,
        gradient_checkpointing,
        offload_activations,
        compiled,
        max_length,
        unread,
    )
    model, files = (
        (_load_with_unsloth(source, manner, lora), None)
        if loader == "unsloth"
        else _load_with_peft(source, manner, lora, freeze_vision)
    )
    bring_grids(model)
    special = special_tokens(reader.tokenizer, model.config, getattr(model, "generation_config", None))
    _check_patches(path, reader.image_processor, model.config)
    policy = PolicyModel(
        model,
        reader.tokenizer,
        reader.image_processor,
        special,
        base_name=source.name,
        base_fingerprint=fingerprint(source.location),
        coordinates=coordinates or source.family.coordinates,
        reply_prefix=reader.reply_prefix,
        unread=None if files is None else Unread(files, torch.device(device), keep_reference),
        frozen_vision=_has_frozen_vision(model),
    )
    if keep_reference and not policy.has_adapter and files is None:
        policy.reference_weights = {name: p.detach().clone() for name, p in policy.trainable_parameters()}
    return policy


def _has_frozen_vision(model: Any) -> bool:
    return not any(p.requires_grad for name, p in model.named_parameters() if ".visual." in name)


def check_device(device: str) -> None:
    """Raises `DeviceMissing` unless this machine has the `device` (cpu, mps, cuda or cuda:N)."""
    kind, _, index = device.partition(":")
    count = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}.get(kind, 0)
    if int(index or 0) >= count:
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())] + ["mps"] * torch.backends.mps.is_available()
        raise DeviceMissing(f"loader.device={device}: not on this machine; allowed: {', '.join(['cpu', *there])}")


def special_tokens(tokenizer: Any, config: Any, generation_config: Any = None) -> SpecialTokens:
    """The ids that the agent and the sampler need; a turn stops with the end of turn, with `<|endoftext|>` and with
    what `generation_config` names. Raises `UnsupportedModel` when the tokenizer has no end of turn."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if END_OF_TURN not in vocabulary:
        raise UnsupportedModel(f"the tokenizer has no {END_OF_TURN} token: not a chat model of the Qwen family")
    unused = set(range(config.get_text_config().vocab_size)) - set(vocabulary.values())
    image = getattr(config, "image_token_id", NO_TOKEN)
    placeholders = {image, getattr(config, "video_token_id", NO_TOKEN)} - {NO_TOKEN}
    never = {vocabulary[token] for token in NEVER_SAMPLED if token in vocabulary}
    end_of_turn = vocabulary[END_OF_TURN]
    banned = unused | placeholders | never
    eos = getattr(generation_config, "eos_token_id", None)
    named = {vocabulary.get(END_OF_TEXT), *(eos if isinstance(eos, list) else [eos])}
    stops = (named & set(vocabulary.values())) - banned - {end_of_turn}
    return SpecialTokens(
        image_token_id=image,
        end_of_turn_id=end_of_turn,
        stop_ids=(end_of_turn, *sorted(stops)),
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_of_turn,
        banned=tuple(sorted(banned)),
        call_id=vocabulary.get(CALL_START),
    )


def _load_with_peft(
    source: ModelSource, manner: _Manner, lora: LoraSpec | None, freeze_vision: bool
) -> tuple[nn.Module, WeightFiles | None]:
    """The model, and where its weights are if they are to stay unread."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = _empty(source, manner) if manner.unread else _whole(source, manner)
    except (OSError, ValueError, ImportError, SafetensorError) as error:  # no weights, a package that they need
        raise UnsupportedModel(f"model.path={source.name!r} cannot be loaded: {first_line(error)}") from error
    files = WeightFiles(source.location, model) if manner.unread else None
    use_fast_norms(model)
    if manner.attn_implementation == "sdpa":
        use_packed_attention(model)
    if model.config.model_type == "qwen3_vl" and manner.attn_implementation == "sdpa":
        use_fast_vision(model)
    if manner.compiled:
        compile_layers(model)
    if freeze_vision and source.reads_images:
        model.model.visual.requires_grad_(False)
    if manner.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if manner.offload_activations:
        offload_inputs(model)
    model.name_or_path = source.name  # what an adapter names as its base: "tiny" rather than where it lies here
    if files is None:
        return _with_adapter(model, source, lora), None
    replace_parameters(model, placeholder)  # on the CPU, where adapters are to be made
    own = set(model.parameters())
    adapted = _with_adapter(model, source, lora)
    replace_parameters(adapted, lambda weight: weight.to("meta") if weight in own else weight)
    return adapted, files


def _whole(source: ModelSource, manner: _Manner) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForImageTextToText if source.reads_images else AutoModelForCausalLM
    on_card = {"": manner.device} if manner.device.startswith("cuda") else None  # not by way of the main memory
    model = kind.from_pretrained(
        source.location,
        dtype=getattr(torch, manner.dtype),
        attn_implementation=manner.attn_implementation,
        device_map=manner.device_map or on_card,
    )
    return model if manner.device_map or on_card else model.to(manner.device)


def _empty(source: ModelSource, manner: _Manner) -> Any:
    from transformers import AutoConfig, GenerationConfig

    config, dtype = AutoConfig.from_pretrained(source.location), getattr(torch, manner.dtype)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype  # a part's own goes before that of the whole
    model = empty_model(config, dtype=dtype, attn_implementation=manner.attn_implementation)
    with suppress(OSError):  # not every checkpoint has one
        model.generation_config = GenerationConfig.from_pretrained(source.location)
    return model


def _with_adapter(model: nn.Module, source: ModelSource, lora: LoraSpec | None) -> nn.Module:
    if source.adapter:
        return load_adapter(model, source.adapter, source.name)
    return attach_lora(model, lora) if lora else model


def _load_with_unsloth(source: ModelSource, manner: _Manner, lora: LoraSpec | None) -> nn.Module:
    spec = saved_spec(source.adapter) if source.adapter else lora
    if spec is None:
        raise ValueError("loader=unsloth trains adapters only; allowed: lora.enabled=true, or loader=peft")
    if manner.compiled:
        allow_compiling()
    model, _ = load_model_with_unsloth(
        source.location,
        manner.max_length,
        manner.load_in_4bit,
        lora=spec,
        reads_images=source.reads_images,
        dtype=manner.dtype,
        device=manner.device,
        device_map=manner.device_map,
        attn_implementation=manner.attn_implementation,
        gradient_checkpointing=manner.gradient_checkpointing,
        base_name=source.name,
    )
    if source.adapter:
        load_adapter_weights(model, source.adapter)
    adapted: nn.Module = model
    return adapted


@dataclass(frozen=True)
class _Reader:
    """What turns text and screenshots into the model's inputs; does not depend on who loads the weights."""

    tokenizer: Any
    image_processor: Any
    reply_prefix: str


def _reader(path: str, source: ModelSource, thinking: bool | None) -> _Reader:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.location)
    prefix = reply_prefix(path, tokenizer, thinking)
    if source.family.image is None:
        return _Reader(tokenizer, None, prefix)
    try:
        return _Reader(tokenizer, image_processor(source.location, source.family.image), prefix)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"model.path={path!r}: preprocessor_config.json: {first_line(error)}") from None


def _check_patches(path: str, processor: Any, config: Any) -> None:
    """Raises `UnsupportedModel` when screenshots would be cut otherwise than the vision tower takes them."""
    if processor is None:
        return
    vision = config.vision_config
    cut = (processor.patch_size, processor.merge_size)
    taken = (vision.patch_size, vision.spatial_merge_size)
    if cut != taken:
        raise UnsupportedModel(
            f"model.path={path!r}: preprocessor_config.json says patch_size={cut[0]} and merge_size={cut[1]}, "
            f"config.json {taken[0]} and {taken[1]}"
        )
