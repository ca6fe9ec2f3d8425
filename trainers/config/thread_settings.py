"""What OpenMP, with which torch computes on the CPU, reads from the environment when it is loaded."""

from __future__ import annotations

_SPINS = 10_000


def thread_settings(threads: int) -> dict[str, str]:
    """Environment of a process that computes with teams of `threads` threads.

    A thread of a team looks so many times whether the next operation has come before it sleeps. By default it looks
    300,000 times, milliseconds that a core spends on nothing whenever other processes keep another member of the team
    from running: on two busy cores, matrix products of two threads took more than 6 times as long.
    """
    return {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": str(_SPINS)}
