"""The files of a model's directory, looked at before a library reads them: each is whole, and says what it should."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from cua_agent.error_text import first_line
from cua_agent.models.errors import UnsupportedModel

_JSON = (
    *("config", "generation_config", "adapter_config", "tokenizer", "tokenizer_config", "special_tokens_map"),
    *("preprocessor_config", "processor_config", "video_preprocessor_config", "chat_template"),
)


def check_files(directory: Path) -> None:
    """Raise `UnsupportedModel`, one line, for the first file of a model or adapter that is damaged: JSON that holds no
    keys, or tensors that end too early."""
    names = [directory / f"{name}.json" for name in _JSON]
    for file in (*names, *sorted(directory.glob("*.index.json")), *sorted(directory.glob("*.safetensors"))):
        if file.is_file():
            about = file.stat()
            _check(file, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=1024)
def _check(file: Path, size: int, changed: int) -> None:
    del size, changed  # a file that is as it was is not read again
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy"):
                return
        if not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
            raise ValueError("it holds no keys")
    except (OSError, ValueError, SafetensorError) as error:
        raise UnsupportedModel(f"{file} cannot be read: {type(error).__name__}: {first_line(error)}") from None
