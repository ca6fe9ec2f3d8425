"""The weights of a checkpoint, read from safetensors one tensor, or some rows of one, at a time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from cua_agent.error_text import first_line
from cua_agent.models.errors import UnsupportedModel

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class WeightFiles:
    """The tensors at `location` (a directory or hub id) by the names that `model` gives its parameters, in the dtypes
    that it gives them; `model` may be empty. Files may name, cut and stack them otherwise: transformers knows how.

    Raises `UnsupportedModel` when they are not there as safetensors, or lack a parameter of the model.
    """

    def __init__(self, location: str, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        self._model = model
        self._files = _files_by_key(location)
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        mapping = get_model_conversion_mapping(model)
        self._converters = {
            pattern: converter
            for converter in mapping
            if isinstance(converter, WeightConverter)
            for pattern in converter.source_patterns
        }
        self._sources = _sources_by_name(self._files, model, mapping)
        self._check_complete(location)

    def read(self, rows: Mapping[str, slice]) -> Iterator[tuple[str, Tensor]]:
        """The tensors that `rows` names, and of each those rows; on the CPU, one in memory at a time, unless the files
        keep several of them together. A name that the files do not have is left out."""
        with ExitStack() as opened:
            handles: dict[str, Any] = {}

            def part(key: str, which: slice) -> Tensor:
                file = self._files[key]
                if file not in handles:
                    handles[file] = opened.enter_context(safe_open(file, framework="pt"))
                tensor: Tensor = handles[file].get_slice(key)[which]
                return tensor

            for name, sources in self._sources.items():
                if all(pattern is None for _, pattern in sources):
                    if name in rows:
                        yield name, part(sources[0][0], rows[name]).to(self._dtypes[name])
                    continue
                for target, tensor in self._converted(name, sources, part):
                    if target in rows:
                        yield target, tensor[rows[target]].to(self._dtypes[target])

    def _converted(self, name: str, sources: list[tuple[str, str | None]], part: Any) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors that transformers makes of those that the files have for `name`."""
        converter = deepcopy(self._converters[sources[0][1]])
        for key, pattern in sources:
            converter.add_tensor(name, key, pattern, part(key, slice(None)))
        for target, made in converter.convert(name, model=self._model, config=self._model.config).items():
            yield target, made[0] if isinstance(made, list) else made

    def _check_complete(self, location: str) -> None:
        tensors: dict[int, list[str]] = defaultdict(list)
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            tensors[id(parameter)].append(name)  # tied weights have several names
        there = {target for name in self._sources for target in self._targets(name)}
        missing = [names[0] for names in tensors.values() if not there.intersection(names)]
        if missing:
            raise UnsupportedModel(
                f"model.path={location!r} cannot be loaded: {len(missing)} weights are missing, {missing[0]} first"
            )

    def _targets(self, name: str) -> list[str]:
        pattern = self._sources[name][0][1]
        targets: list[str] = [] if pattern is None else self._converters[pattern].target_patterns
        return [name, *(name.replace(targets[0], target) for target in targets[1:])]


def _files_by_key(location: str) -> dict[str, str]:
    """The file of every tensor, by its name there."""
    directory = Path(location)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        directory = Path(snapshot_download(location, allow_patterns=["*.safetensors", _INDEX]))
    try:
        if (directory / _INDEX).is_file():
            names = json.loads((directory / _INDEX).read_text(encoding="utf-8"))["weight_map"]
            return {key: str(directory / file) for key, file in names.items()}
        with safe_open(directory / _SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), str(directory / _SINGLE))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UnsupportedModel(f"model.path={location!r} cannot be loaded: {first_line(error)}") from error


def _sources_by_name(files: Mapping[str, str], model: Any, mapping: list[Any]) -> dict[str, list[tuple[str, Any]]]:
    """For every parameter, the tensors that it is made of, each with the conversion's pattern (None: as it is). As
    transformers' `convert_and_load_state_dict_in_model` finds them."""
    from transformers.core_model_loading import WeightRenaming, dot_natural_key, rename_source_key

    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if not isinstance(entry, WeightRenaming)]
    own, prefix = model.state_dict(), model.base_model_prefix
    sources: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for key in sorted(files, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, own)
        if name not in own and key in own:
            name, pattern = rename_source_key(key, [], [], prefix, own)
        if name in own:
            sources[name].append((key, pattern))
    return dict(sources)
