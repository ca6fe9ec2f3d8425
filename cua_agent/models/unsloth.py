"""Loading through Unsloth (https://github.com/unslothai/unsloth); the only module that imports it.

Unsloth loads a transformers model, in 4 bits if asked, attaches a LoRA adapter through peft and rewrites what both
compute. Its `FastModel` classes keep transformers' interface, which everything here speaks: 4-d masks, a cache whose
rows have different lengths, hidden states without the head. (`FastLanguageModel`'s own forward on a GPU takes neither.)
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cua_agent.installation import hint
from cua_agent.models.errors import PackageMissing, UnsupportedModel
from cua_agent.models.lora import LoraSpec

logger = logging.getLogger(__name__)


def import_unsloth(device: str) -> Any:
    """The package. It rewrites transformers when it is imported, so the earlier the better.

    `device` decides between its CPU path and its GPU path, once per process. Raises `PackageMissing`.
    """
    if importlib.util.find_spec("unsloth") is None:
        command = hint(checkout="make unsloth", installed="pip install 'cua-grpo[unsloth]'")
        raise PackageMissing(f"loader.name=unsloth: the package unsloth is not installed; run: {command}")
    settings = {
        "UNSLOTH_DISABLE_STATISTICS": "1",  # no calls home
        "UNSLOTH_AUTO_DEVICE_MAP": "0",
        "UNSLOTH_COMPILE_LOCATION": str(_cache() / "unsloth_compiled"),  # by default in the working directory
    }
    if device == "cpu":
        settings["UNSLOTH_FORCE_CPU"] = "1"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    with _quiet():
        import unsloth
    mend_image_processor()
    return unsloth


def load_model_with_unsloth(
    model_name: str,
    max_seq_length: int,
    load_in_4bit: bool,
    *,
    lora: LoraSpec,
    reads_images: bool,
    dtype: str = "bfloat16",
    device: str = "cuda",
    device_map: str | None = None,
    attn_implementation: str = "sdpa",
    gradient_checkpointing: bool = False,
    base_name: str | None = None,
) -> tuple[Any, Any]:
    """A `PeftModel` with a fresh adapter, and Unsloth's tokenizer (or processor) for it.

    `max_seq_length` must cover the longest row or packed micro-batch: some of Unsloth's models cut longer input off.
    `device_map` is passed on only when given; without it the whole model is on `device`, as FSDP needs it.
    With `gradient_checkpointing` Unsloth recomputes activations; another trainer that does so itself leaves it off.
    `base_name` is what the adapter names as its base. The model is ready to train, in evaluation mode, and returns
    real logits as long as no `labels` are passed. Raises `PackageMissing`, or `UnsupportedModel` for a model with eyes
    on the CPU.
    """
    import torch

    if reads_images and device == "cpu":
        raise UnsupportedModel(
            f"model.path={base_name or model_name!r} reads images, which Unsloth does not do on a CPU; "
            "allowed: loader=peft, or a GPU"
        )
    unsloth = import_unsloth(device)
    loader = unsloth.FastVisionModel if reads_images else unsloth.FastModel
    checkpointing = "unsloth" if gradient_checkpointing else False
    with _quiet(), _random_state_kept():
        model, tokenizer = loader.from_pretrained(
            model_name=model_name,
            max_seq_length=max_seq_length,
            dtype=getattr(torch, dtype),
            load_in_4bit=load_in_4bit,
            device_map=device_map or {"": device},
            attn_implementation=attn_implementation,
            use_gradient_checkpointing=checkpointing,
            offload_embedding=False,
        )
        model.name_or_path = base_name or model_name
        model = loader.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            bias="none",
            random_state=lora.seed,
            use_gradient_checkpointing=checkpointing,
        )
        loader.for_training(model)
    if reads_images:
        mend_image_processor()
    os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"  # "1" would put hidden states where logits are expected
    return model.eval(), tokenizer


def mend_image_processor() -> None:
    """Unsloth adds `min_pixels` and `max_pixels` to the class, read-only; transformers' own processor sets them."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    for name in ("min_pixels", "max_pixels"):
        if isinstance(vars(Qwen2VLImageProcessor).get(name), property):
            delattr(Qwen2VLImageProcessor, name)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cua-grpo"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is printed goes to the log: a progress display may own the terminal."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in filter(None, map(str.strip, printed.getvalue().splitlines())):
            logger.info("%s", line)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Unsloth seeds every generator of the process; sampling and dropout must not notice."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
