"""Numbers and results as a person reads them."""

from __future__ import annotations

from collections.abc import Callable

from trainers.compare.bootstrap import Estimate
from trainers.compare.figures import Cell, Figure, Unit

_DIGITS: dict[Unit, int] = {"%": 1, "": 3, "min": 1, "s": 2, "per s": 0, "per hour": 0, "count": 1, "gap": 4}
_SUFFIX: dict[Unit, str] = {"%": " %", "min": " min", "s": " s"}


def value(number: float, unit: Unit) -> str:
    """With its unit, where that is not in the title anyhow."""
    return _plain(number, unit) + _SUFFIX.get(unit, "")


def cell(figure: Figure, content: Cell) -> str:
    """A mean with its interval, or in how many runs the figure is known."""
    estimate = content.estimate
    if estimate is None:
        return f"{content.known} of {content.total} runs" if content.known else "–"
    return with_interval(estimate, figure.unit)


def with_interval(estimate: Estimate, unit: Unit) -> str:
    """A mean with its unit and its interval."""
    return value(estimate.mean, unit) + _interval(estimate, lambda number: _plain(number, unit))


def contrast(figure: Figure, estimate: Estimate | None) -> str:
    """A difference with its sign, or a ratio with ×, and the interval."""
    if estimate is None:
        return "–"
    if figure.contrast == "ratio":
        return times(estimate.mean) + _interval(estimate, lambda ratio: f"{ratio:.2f}")
    return difference(estimate, figure.unit)


def difference(estimate: Estimate, unit: Unit) -> str:
    """A difference with its sign, its unit and its interval."""
    if unit == "%":
        return f"{points(estimate.mean)} points{_interval(estimate, points)}"
    digits = _DIGITS[unit]
    return f"{signed(estimate.mean, digits)}{_SUFFIX.get(unit, '')}" + _interval(
        estimate, lambda number: signed(number, digits)
    )


def _plain(number: float, unit: Unit) -> str:
    if unit == "%":
        number *= 100
    whole = unit == "count" and number == int(number)
    return f"{number:,.{0 if whole else _DIGITS[unit]}f}"


def _interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    """The bounds in brackets; nothing where there are none or where both read the same."""
    if estimate.low is None or estimate.high is None or show(estimate.low) == show(estimate.high):
        return ""
    return f" [{show(estimate.low)}, {show(estimate.high)}]"


def times(ratio: float) -> str:
    """A ratio, as in 1.25×."""
    return f"{ratio:.2f}×"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return signed(100 * share, 1)


def signed(number: float, digits: int) -> str:
    """With its sign; a true minus, and no sign for what rounds to nothing."""
    text = f"{number:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
