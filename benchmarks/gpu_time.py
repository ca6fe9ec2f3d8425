"""When a GPU worked and when it waited for the CPU, from the events that torch.profiler writes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
ASKED = ("cuda_runtime", "cuda_driver")
AT_WORK = ("user_annotation", "cpu_op", "cuda_runtime")

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Wait:
    """A pause of `micros` microseconds from `start` on between two kernels, the second of which had not been asked for
    when the first ended."""

    start: float
    micros: float
    before: str
    after: str


@dataclass(frozen=True)
class GpuTime:
    """Seconds from the first kernel to the last: while one ran (`running_s`), and between two, when the second had been
    asked for already (`queued_s`); the rest are `waits` for the CPU."""

    running_s: float
    queued_s: float
    waits: list[Wait]


def gpu_time(events: Iterable[Event]) -> GpuTime:
    """What the GPU did, by `events` with times in microseconds; a kernel and the call that asked for it have the same
    `correlation`. At least one kernel."""
    events = list(events)
    asked = {_correlation(e): e["ts"] + e["dur"] for e in events if e.get("cat") in ASKED}
    spans = sorted((e["ts"], e["ts"] + e["dur"], _correlation(e), e["name"]) for e in events if e.get("cat") in ON_GPU)
    running = queued = 0.0
    reached, last = spans[0][0], ""
    waits = []
    for start, end, correlation, name in spans:
        if start > reached:
            if asked.get(correlation, start) > reached:
                waits.append(Wait(reached, start - reached, last, name))
            else:
                queued += start - reached
        running += max(0.0, end - max(start, reached))
        if end > reached:
            reached, last = end, name
    return GpuTime(running / 1e6, queued / 1e6, waits)


def longest_waits(found: GpuTime, events: Iterable[Event], most: int) -> list[str]:
    """Lines that say when the GPU waited longest, and what the CPU was at then, as far as it was recorded."""
    ranges = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("cat") in AT_WORK)
    began = min((start for start, *_ in ranges), default=0.0)
    lines = [
        f"{len(found.waits)} waits, {sum(w.micros for w in found.waits) / 1e3:.1f} ms; "
        f"{found.queued_s * 1e3:.1f} ms between kernels in the queue; {found.running_s * 1e3:.1f} ms at work"
    ]
    for wait in sorted(found.waits, key=lambda w: -w.micros)[:most]:
        names = _longest_inside(ranges, wait.start, wait.start + wait.micros)
        lines.append(
            f"{wait.micros / 1e3:8.2f} ms at {(wait.start - began) / 1e3:8.1f} ms, after {wait.before[:50]}, "
            f"before {wait.after[:50]}: {', '.join(names)}"
        )
    return lines


def _longest_inside(ranges: Sequence[tuple[float, float, str]], start: float, end: float) -> list[str]:
    """What took most of the time from `start` to `end`."""
    taken: dict[str, float] = {}
    for began, ended, name in ranges:
        if began >= end:
            break
        if ended > start:
            taken[name] = taken.get(name, 0.0) + min(ended, end) - max(began, start)
    longest = sorted(taken.items(), key=lambda item: -item[1])[:6]
    return [f"{name[:60]} {micros / 1e3:.2f}" for name, micros in longest]


def _correlation(event: Event) -> Any:
    return event.get("args", {}).get("correlation")
