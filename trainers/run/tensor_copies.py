"""Copies of tensors in memory, where there is room for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

_SHARE = 0.5
"""Of the memory that is free, what a copy may take."""


def copied(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` (mappings and lists) with copies of its tensors on the CPU; tensors that stand in it twice still do."""
    done: dict[int, Tensor] = {}
    return {key: _copied(value, done) for key, value in tree.items()}


def size_of(tree: object) -> int:
    """Bytes of the tensors in `tree` (mappings and lists)."""
    return sum(each.numel() * each.element_size() for each in {id(each): each for each in _tensors(tree)}.values())


def fits_in_memory(size: int) -> bool:
    """Whether a copy of so many bytes leaves memory for everything else."""
    return size <= _SHARE * float(psutil.virtual_memory().available)


def _copied(tree: Any, done: dict[int, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        if id(tree) not in done:
            done[id(tree)] = torch.empty_like(tree, device="cpu").copy_(tree.detach())
        return done[id(tree)]
    if isinstance(tree, Mapping):
        return {key: _copied(value, done) for key, value in tree.items()}
    return [_copied(value, done) for value in tree] if isinstance(tree, list) else tree


def _tensors(tree: object) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _tensors(value)
