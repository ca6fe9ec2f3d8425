"""The optimiser of a side, as it stands in a checkpoint that the side wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.parity.evidence import Arrays
from trainers.run.checkpoint import read_tensors
from trainers.run.checkpoint_files import read_state

_LEFT_OUT = ("fused", "foreach", "capturable", "differentiable", "lr")
"""How an optimiser computes, not what, and the present learning rate, which every update reports."""


def settings(checkpoint: Path) -> dict[str, Any]:
    """`<group>/<setting>` of every group of parameters, their names among them."""
    groups = _saved(checkpoint)["optimizer"]["param_groups"]
    return {
        f"{number}/{name}": sorted(value) if name == "params" else value
        for number, group in enumerate(groups)
        for name, value in group.items()
        if name not in _LEFT_OUT
    }


def moments(checkpoint: Path) -> Arrays:
    """`<parameter>/<moment>`: the first moment, and the root of the second, so that both are linear in gradients."""
    out: Arrays = {}
    for parameter, state in _saved(checkpoint)["optimizer"]["state"].items():
        for name, value in state.items():
            if value.dim():
                out[f"{parameter}/{name}"] = (value.sqrt() if name == "exp_avg_sq" else value).float().numpy()
    return out


def counters(checkpoint: Path) -> dict[str, float]:
    """How far optimiser, schedule and policy are: updates, and the version that serves."""
    saved = _saved(checkpoint)
    steps = {float(state["step"]) for state in saved["optimizer"]["state"].values()}
    return {
        "updates of the optimiser": max(steps, default=0.0),
        "updates of the schedule": float(saved["scheduler"]["last_epoch"]),
        "policy version": float(read_state(checkpoint).policy_version),
    }


def _saved(checkpoint: Path) -> Mapping[str, Any]:
    return read_tensors(checkpoint / "optimizer.pt")
