"""Which conversations are prefilled together: a pass pads its rows to the longest, and has a price of its own."""

from __future__ import annotations

from collections.abc import Sequence

PASS_TOKENS = 96
"""What a forward pass costs whatever is in it, in tokens: measured on the built-in model on a CPU."""


def prefill_batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices of rows of these `lengths` in the batches that cost least in all: of each its rows times the longest, and
    `PASS_TOKENS`. A batch has at most `most` padded tokens; a longer row goes alone. Shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, starts = [0], [0]  # of the first n rows: the least cost, and where its last batch begins
    for end, last in enumerate(order, start=1):
        longest = lengths[last]
        widest = max(1, most // max(longest, 1))
        cost, start = min(
            (costs[start] + PASS_TOKENS + (end - start) * longest, start) for start in range(max(0, end - widest), end)
        )
        costs.append(cost)
        starts.append(start)
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[starts[end] : end])
        end = starts[end]
    return batches[::-1]
