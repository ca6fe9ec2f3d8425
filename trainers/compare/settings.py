"""Which configuration keys make two runs different, and which only name them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.config.validation import shown

PRICE = "env.price_per_box_hour"
_NAMING = ("seed", "run_name", "output_dir", "resume", "experiment", PRICE)
_RECORDING = ("logging", "checkpoint")
_WITHOUT_EFFECT = {"legacy": ("phase", "rollout.max_staleness", "areal")}
"""By backend: keys and sections that it does not read."""

_ONE_BACKEND = ("areal",)  # sections

UNUSED = "–"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Equal for runs that repeat each other under another seed or name, or with other logs or checkpoints."""
    return json.dumps(_effective(settings), sort_keys=True, default=str)


def differences(of_each: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys whose values differ among several configurations, in the order of the files, with the value in each.

    A key that a configuration lacks, or that its backend does not read, shows as a dash; of a section that only some
    backends read, only keys in which these differ are listed.
    """
    effective = [_effective(settings) for settings in of_each]
    keys = dict.fromkeys(key for settings in effective for key in settings)
    found = []
    for key in keys:
        values = [shown(settings[key]) if key in settings else UNUSED for settings in effective]
        telling = set(values) - ({UNUSED} if key.partition(".")[0] in _ONE_BACKEND else set())
        if len(telling) > 1:
            found.append((key, values))
    return found


def labels(of_each: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for each of several different configurations: backend and phase where these differ, and where they
    are the same, the first two keys that differ."""
    plain = [_backend_name(settings) for settings in of_each]
    named = []
    for name, settings in zip(plain, of_each, strict=True):
        rivals = [other for other_name, other in zip(plain, of_each, strict=True) if other_name == name]
        keys = [key for key, _ in differences(rivals)][:2]
        told = [f"{key.rpartition('.')[2]}={_brief(_effective(settings).get(key))}" for key in keys]
        named.append(", ".join(told if told and len(set(plain)) == 1 else [name, *told]))
    return [
        f"{name} ({named[:index].count(name) + 1})" if name in named[:index] else name
        for index, name in enumerate(named)
    ]


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value, 20)


def _backend_name(settings: Mapping[str, Any]) -> str:
    backend, phase = settings["backend"], settings.get("phase")
    return f"{backend} phase {phase}" if backend == "areal" and phase is not None else str(backend)


def _effective(settings: Mapping[str, Any]) -> dict[str, Any]:
    idle = _WITHOUT_EFFECT.get(str(settings.get("backend")), ())
    return {
        key: value
        for key, value in settings.items()
        if key not in (*_NAMING, *idle) and key.partition(".")[0] not in (*_RECORDING, *idle)
    }
