"""How arms look: colours that colour-blind people tell apart (Okabe and Ito), a marker each, names beside the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.compare.arms import Arm

RC: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "svg.fonttype": "path",
    "svg.hashsalt": "compare",
    "text.parse_math": False,  # a name with two dollar signs is no formula
}
SOFT = "#666666"

_LOOKS = (
    ("legacy", "#D55E00", "o"),
    ("areal phase 3", "#0072B2", "s"),
    ("areal phase 2", "#009E73", "D"),
    ("areal phase 1", "#CC79A7", "^"),
    ("", "#E69F00", "v"),
    ("", "#56B4E9", "P"),
    ("", "#000000", "X"),
)
"""Each backend and phase keeps its look from report to report."""


@dataclass(frozen=True)
class Look:
    """Colour and marker of an arm in every picture."""

    colour: str
    marker: str


def looks(arms: Sequence[Arm]) -> list[Look]:
    """A look for each arm; from the eighth arm on they repeat."""
    free = list(_LOOKS)
    chosen = []
    for arm in arms:
        free = free or list(_LOOKS)
        own = next((look for look in free if look[0] == arm.label), None)
        look = own or next((look for look in reversed(free) if not look[0]), free[0])
        free.remove(look)
        chosen.append(Look(look[1], look[2]))
    return chosen


def lighter(colour: str, share: float) -> tuple[float, float, float]:
    """`colour` mixed with white: 0 is the colour, 1 is white."""
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return (red + (1 - red) * share, green + (1 - green) * share, blue + (1 - blue) * share)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved apart to at least `gap`, in the same order, each cluster about its own middle."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    clusters: list[list[int]] = []
    places: list[float] = []  # of the first member of each cluster
    for index in order:
        clusters.append([index])
        places.append(positions[index])
        while len(clusters) > 1 and places[-1] < places[-2] + gap * len(clusters[-2]):
            merged = clusters[-2] + clusters[-1]
            clusters[-2:], places[-2:] = [merged], [0.0]
            middle = sum(positions[member] for member in merged) / len(merged)
            places[-1] = middle - gap * (len(merged) - 1) / 2
    moved = [0.0] * len(positions)
    for cluster, place in zip(clusters, places, strict=True):
        for number, index in enumerate(cluster):
            moved[index] = place + gap * number
    return moved
