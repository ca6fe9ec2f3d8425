"""Screenshots on disk, within a budget: the oldest go first, those of the best evaluation never."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from PIL import Image

from trainers.episodes.files import BEST, SCREENS, read_json

LONGEST = 1024
"""Larger screens are kept smaller, and lossily: longest side in pixels."""
_PARTS = 20  # of the budget: what is deleted at a time
_ROOM = 0.9  # of the budget: where deleting begins, because several processes write
_LOOK = 0.01  # of the budget: what is written between two looks at what there is
_BLOCK = 4096  # what a file takes at least


@dataclass
class _Part:
    """A directory of screens: training ones, or those of one evaluation. `names` by digest of the pixels."""

    name: str
    size: int = 0
    names: dict[str, str] = field(default_factory=dict)


@dataclass
class ScreenStore:
    """The screens that `process` keeps in the recordings' `directory`, where others may keep theirs; all of them
    together take at most `budget` bytes. For one thread."""

    directory: Path
    process: str
    budget: float
    _parts: dict[str, _Part] = field(default_factory=dict)
    _count: int = 0
    _unseen: float = 0.0
    _sizes: dict[str, tuple[float, int]] = field(default_factory=dict)
    _full: bool = False

    def put(self, image: Image.Image, version: int, *, evaluation: bool) -> str | None:
        """Keep a screen that was seen under policy `version`; returns its path below the screens' directory. None when
        there is no room. Raises `OSError`."""
        if self.budget <= 0:
            return None
        part = self._part(version, evaluation)
        digest = _digest(image)
        if digest in part.names:
            return part.names[digest]
        if self._full or self._unseen >= _LOOK * self.budget:
            self._full, self._unseen = not self._thin(), 0.0
        if self._full:
            return None
        path = self._root / part.name / f"{digest}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = encoded(image)
        path.write_bytes(content)
        part.size += _on_disk(len(content))
        self._unseen += _on_disk(len(content))
        part.names[digest] = f"{part.name}/{path.name}"
        return part.names[digest]

    @property
    def _root(self) -> Path:
        return self.directory / SCREENS

    def _part(self, version: int, evaluation: bool) -> _Part:
        """The part that a screen belongs to; a new one when that is full, or the evaluation another one."""
        kind = _prefix(version) if evaluation else "training"
        part = self._parts.get(kind)
        if part is None or part.size > self.budget / _PARTS:
            if part is None and evaluation:  # the former evaluation is over
                self._parts = {key: value for key, value in self._parts.items() if key == "training"}
            self._count += 1
            part = self._parts[kind] = _Part(f"{kind}-{self.process}-{self._count:04d}")
        return part

    def _thin(self) -> bool:
        """Delete old parts until there is room for more; whether there is."""
        found = {path.name: self._measured(path) for path in self._root.glob("*") if path.is_dir()}
        total = sum(size for _, size in found.values())
        limit = self.budget * _ROOM
        used = {part.name for part in self._parts.values()}
        best = read_json(self.directory / BEST).get("version")
        kept = _prefix(best) if isinstance(best, int) else None
        for name in sorted(found, key=lambda name: found[name][0]):
            if total <= limit:
                break
            if name not in used and not (kept and name.startswith(f"{kept}-")):
                shutil.rmtree(self._root / name, ignore_errors=True)
                total -= found[name][1]
        return total <= limit

    def _measured(self, part: Path) -> tuple[float, int]:
        """When a part was last written to, and what it takes."""
        changed = part.stat().st_mtime
        if self._sizes.get(part.name, (0.0, 0))[0] != changed:
            self._sizes[part.name] = changed, sum(_on_disk(file.stat().st_size) for file in part.glob("*"))
        return self._sizes[part.name]


def _digest(image: Image.Image) -> str:
    pixels = xxhash.xxh3_128(image.tobytes())  # a fiftieth of the time of hashlib's
    pixels.update(repr((image.size, image.mode)).encode())
    return pixels.hexdigest()


def _prefix(version: int) -> str:
    return f"evaluation{version:06d}"


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def encoded(image: Image.Image) -> bytes:
    """The screen as WebP: as it is, or made smaller where it is larger than `LONGEST`."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    buffer = io.BytesIO()
    if max(image.size) <= LONGEST:
        image.save(buffer, "WEBP", lossless=True, method=0)
    else:
        share = LONGEST / max(image.size)
        size = max(1, round(share * image.width)), max(1, round(share * image.height))
        small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        small.save(buffer, "WEBP", quality=75, method=0)
    return buffer.getvalue()
