"""How much memory training and serving a model take, from its shape alone; docs/gpu.md has the measurements beside it.

A training card holds the weights, or, where several share them, its shard and what is gathered for the block at work;
of what is trained, float32 weights, gradients and AdamW's two moments (16 bytes a parameter); and the activations of
one forward pass of T tokens. A layer keeps `_KEPT` bytes a token for its backward pass: with checkpointing, of one
layer at a time, beside the inputs of all, or of two where they are offloaded to main memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from cua_agent.models.architecture import blocks_of, empty_model, ends_of
from cua_agent.models.lora import LANGUAGE_MODEL_LINEARS

Dtype = Literal["float32", "bfloat16"]

GIB = 2**30
HEAD_ROWS = 512
"""Positions whose logits exist at a time in training."""
_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
_TRAINED_BYTES = 4 + 4 + 8
"""A trained parameter in float32, its gradient, and AdamW's two moments."""
_KEPT: dict[tuple[Dtype, bool], tuple[int, int, int, int]] = {
    ("bfloat16", True): (12, 10, 8, 8),
    ("bfloat16", False): (16, 12, 10, 8),
    ("float32", True): (16, 16, 12, 16),
    ("float32", False): (24, 20, 16, 16),
}
"""Bytes that a layer keeps of a token, by dtype and whether an adapter is trained: for a channel of the hidden state,
the queries, the keys, the MLP. Counted with `torch.autograd.graph.saved_tensors_hooks` (tests/test_memory.py)."""
_BACKWARD = 0.4
"""Gradients in flight while a layer goes backward, as a part of what it keeps; measured on two sizes."""
_LOGIT_BYTES = 20
"""Of one logit: itself in the model's dtype and float32, its log-softmax, the entropy's terms, and their gradients."""
_PROCESS = 0.6 * GIB
"""CUDA's context and the libraries' workspaces."""
_COMMUNICATION = 0.6 * GIB
"""NCCL's buffers, where several cards share a model."""
_SPARE = 0.05
"""Memory that PyTorch's allocator holds and cannot hand out."""
_HOST = 4 * GIB
"""A process with torch, transformers and AReaL, CUDA's host memory and a batch of screenshots: 2.3 GiB of its own were
measured, without the libraries' files."""
_SERVER = 4 * GIB
"""vLLM's activations, CUDA graphs and multimodal cache on a card."""


@dataclass(frozen=True)
class ModelShape:
    """Numbers of parameters, and the language model's sizes. `head` is 0 where the head's weights are the embedding's;
    `rest` is what belongs to no block and is not used on its own either; `adapter_per_rank` those of a LoRA adapter of
    rank 1."""

    parameters: int
    vision: int
    largest_tensor: int
    largest_block: int
    head: int
    rest: int
    adapter_per_rank: int
    layers: int
    width: int
    query_width: int
    key_width: int
    inner_width: int
    vocabulary: int


@dataclass(frozen=True)
class TrainingSettings:
    """What is trained and how; `tokens` are those of the longest forward pass. With `sharded`, FSDP over `cards` where
    there are several (phases 2 and 3), else one card. `reference`: full weights with a KL term keep their first values.
    `sampling_copy`: phases 2 and 3 that sample in their own process keep whole weights for it."""

    tokens: int = 16384
    cards: int = 1
    sharded: bool = False
    dtype: Dtype = "bfloat16"
    lora_rank: int | None = 16
    checkpointing: bool = True
    offloading: bool = False
    freeze_vision: bool = True
    reference: bool = False
    sampling_copy: bool = False


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on each card, and `host`: of each process in main memory, at its peak."""

    weights: int
    gathered: int
    trained: int
    reference: int
    activations: int
    logits: int
    sampling_copy: int
    process: int
    host: int

    @property
    def allocated(self) -> int:
        """What `torch.cuda.max_memory_allocated` would say: logits and a layer's backward pass come one after the
        other."""
        return (
            self.weights
            + self.gathered
            + self.trained
            + self.reference
            + self.sampling_copy
            + max(self.activations, self.logits)
        )

    @property
    def total(self) -> int:
        """What has to be free on a card."""
        return round(self.allocated * (1 + _SPARE)) + self.process


@dataclass(frozen=True)
class ServingMemory:
    """Bytes of a vLLM server on each of its cards; `kv_token` of one token in its cache."""

    weights: int
    overhead: int
    kv_token: int

    def kv_tokens(self, available: float) -> int:
        """Tokens whose keys and values fit into `available` bytes of a card beside the rest; 0 when none do."""
        return max(0, int((available - self.weights - self.overhead) / self.kv_token))


def shape_of(config: Mapping[str, Any], target_modules: str = LANGUAGE_MODEL_LINEARS) -> ModelShape:
    """The shape of the model that a config.json describes, counted on a model without weights; adapters go onto the
    linear layers that match `target_modules`."""
    from transformers import AutoConfig

    rest = {key: value for key, value in config.items() if key != "model_type"}
    about = AutoConfig.for_model(config["model_type"], **rest)
    model, text = empty_model(about), about.get_text_config()
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    blocks, ends = blocks_of(model), ends_of(model)
    tower = getattr(model.model, "visual", None)
    experts = getattr(text, "num_experts_per_tok", 0)
    return ModelShape(
        parameters=_count([model]),
        vision=_count([tower] if tower is not None else []),
        largest_tensor=max(parameter.numel() for parameter in model.parameters()),
        largest_block=max(_count([block]) for block in blocks),
        head=0 if model.config.tie_word_embeddings else _count([model.get_output_embeddings()]),
        rest=_count([model]) - _count([*blocks, *ends]),
        adapter_per_rank=sum(
            module.in_features + module.out_features
            for name, module in model.named_modules()
            if re.fullmatch(target_modules, name)
        ),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        query_width=text.num_attention_heads * head_width,
        key_width=text.num_key_value_heads * head_width,
        inner_width=experts * text.moe_intermediate_size if experts else text.intermediate_size,
        vocabulary=text.vocab_size,
    )


def _count(modules: Sequence[nn.Module]) -> int:
    """Parameters of `modules`, each once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def training_memory(shape: ModelShape, settings: TrainingSettings) -> TrainingMemory:
    """The memory of one update on each of `settings.cards` cards."""
    cards = settings.cards if settings.sharded else 1
    sharing = cards > 1
    bytes_each, rank = _BYTES[settings.dtype], settings.lora_rank
    if rank is not None:
        trained, frozen = rank * shape.adapter_per_rank, shape.parameters
    else:
        frozen = shape.vision if settings.freeze_vision else 0
        trained = shape.parameters - frozen
    # A model of one process that computes in bfloat16 holds its trained weights once more in it, beside the masters.
    beside = 0 if sharing or settings.dtype == "float32" else trained
    gathered = shape.rest + 2 * shape.largest_block if sharing else 0
    head = shape.head * bytes_each if sharing else 0
    whole = shape.parameters * bytes_each
    kept = layer_bytes(shape, settings.dtype, adapter=rank is not None) * settings.tokens
    layer_input = shape.width * bytes_each * settings.tokens
    inputs = layer_input * (min(2, shape.layers) if settings.offloading else shape.layers)
    offloaded = shape.layers * _pinned(layer_input) if settings.offloading else 0
    held = inputs if settings.checkpointing else shape.layers * kept
    at_work = round((1 + _BACKWARD) * kept) if settings.checkpointing else round(_BACKWARD * kept)
    return TrainingMemory(
        weights=(frozen + beside) * bytes_each // cards,
        gathered=gathered * bytes_each,
        trained=trained * _TRAINED_BYTES // cards,
        reference=trained * bytes_each // cards if settings.reference and rank is None else 0,
        activations=held + at_work,
        logits=held + head + HEAD_ROWS * shape.vocabulary * _LOGIT_BYTES,
        sampling_copy=whole if settings.sampling_copy else 0,
        process=round(_PROCESS + (_COMMUNICATION if sharing else 0)),
        host=round(_HOST) + shape.largest_tensor * bytes_each + offloaded,
    )


def _pinned(size: int) -> int:
    """What PyTorch takes for `size` bytes of pinned memory: a power of two."""
    return 1 << (size - 1).bit_length()


def layer_bytes(shape: ModelShape, dtype: Dtype, *, adapter: bool) -> int:
    """Bytes that one layer of the language model keeps of one token for its backward pass."""
    hidden, query, key, inner = _KEPT[dtype, adapter]
    return hidden * shape.width + query * shape.query_width + key * shape.key_width + inner * shape.inner_width


def serving_memory(
    shape: ModelShape,
    *,
    cards: int = 1,
    dtype: Dtype = "bfloat16",
    lora_rank: int | None = 16,
    adapters: int = 4,
) -> ServingMemory:
    """The memory of a vLLM server on each of `cards` (tensor parallel), with room for `adapters` of `lora_rank`."""
    slots = adapters * lora_rank * shape.adapter_per_rank if lora_rank is not None else 0
    bytes_each = _BYTES[dtype]
    return ServingMemory(
        weights=shape.parameters * bytes_each // cards,
        overhead=round(_SERVER) + slots * bytes_each // cards,
        kv_token=2 * shape.layers * shape.key_width * bytes_each // cards,
    )
