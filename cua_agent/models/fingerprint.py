"""A short name for the weights of a model, the same wherever they lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_BLOCK = 1 << 16
_BLOCKS = 64
"""Blocks of a weights file that are looked at, spread evenly: 4 MiB however large it is, a small one as a whole."""
_ABOUT_THE_FILE = ("_name_or_path", "transformers_version")
"""Keys of `config.json` that say nothing about the model."""


def fingerprint(location: str) -> str | None:
    """16 hexadecimal digits from configuration and weights of the model at `location` (a directory or a hub id); None
    when they are not on this machine.

    Weights are sampled, not read: enough to tell models apart, no checksum.
    """
    directory = _directory(location)
    if directory is None:
        return None
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    digest = hashlib.sha256()
    telling = {key: value for key, value in config.items() if key not in _ABOUT_THE_FILE}
    digest.update(json.dumps(telling, sort_keys=True).encode())
    for file in sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin")):
        _sample(file, digest)
    return digest.hexdigest()[:16]


def _directory(location: str) -> Path | None:
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(location, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _sample(file: Path, digest: hashlib._Hash) -> None:
    size = file.stat().st_size
    digest.update(f"{file.name} {size}".encode())
    step = max(_BLOCK, size // _BLOCKS)
    with file.open("rb") as content:
        for start in range(0, size, step):
            content.seek(start)
            digest.update(content.read(_BLOCK))
