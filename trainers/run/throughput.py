"""How fast a step trained, for each process that did."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import torch

from trainers.run.operations import peak_flops


@dataclass(frozen=True)
class Throughput:
    """For each process: tokens and operations (10^12) a second of training, and the share of what its card does at
    most. NaN where it is not known."""

    tokens_per_s: float = nan
    tflops: float = nan
    mfu: float = nan


def throughput(tokens: int, operations: float, seconds: float, processes: int) -> Throughput:
    """Of a step whose updates saw `tokens` and ask for `operations`."""
    if not tokens or seconds <= 0:
        return Throughput()
    flops = operations / seconds / processes
    has_card = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    peak = peak_flops(torch.cuda.get_device_name()) if has_card else None
    return Throughput(tokens / seconds / processes, flops / 1e12, flops / peak if peak else nan)
