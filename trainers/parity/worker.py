"""The process of one side: `python -m trainers.parity.worker SIDE DIRECTORY` replays the plan in DIRECTORY.

AReaL owns the state of its process (process groups, environment variables, event loops), so no two sides share one.
Prints a line for each piece of work that is done.
"""

from __future__ import annotations

import faulthandler
import gc
import sys
import traceback
from pathlib import Path

from cua_agent.error_text import type_and_line
from cua_agent.secrets import masked_output
from trainers.components import build_components
from trainers.parity.evidence import Episodes, Evidence, Figures
from trainers.parity.greedy import LiveCase, play
from trainers.parity.plan import Plan, load_plan
from trainers.parity.replay import PartsFor, Side, on_side, replay
from trainers.parity.rounding import as_twin

STUCK_S = 1200.0
"""A piece of work that takes longer than this ends the process, with a traceback of every thread."""


@masked_output()
def main(side: Side, directory: Path, parts_for: PartsFor = build_components) -> None:
    """Do all work of a side, and say what is done."""
    plan = load_plan(directory)
    for name in plan.pieces:
        work(side, plan, name, parts_for)
        print(name, flush=True)
        gc.freeze()  # AReaL's engines collect all garbage twice when they end: not among what was imported


def work(side: Side, plan: Plan, name: str, parts_for: PartsFor = build_components) -> None:
    """One piece of the plan on one side; what breaks it off becomes its result."""
    faulthandler.dump_traceback_later(STUCK_S, exit=True)
    out, case = plan.evidence(side, name), plan.case(name)
    broken_after = case.broken_after if side.startswith("phase") else 0
    try:
        config, start = on_side(plan.config(name), side), plan.start(name)
        if isinstance(case, LiveCase):
            play(config, start, parts_for, broken_after=broken_after).save(out)
        else:
            config, batches = as_twin(side, config, plan.batches(name))
            replay(config, start, batches, parts_for, broken_after=broken_after).save(out)
    except Exception as error:
        traceback.print_exc()
        why = type_and_line(error)
        broken = Episodes(error=why) if isinstance(case, LiveCase) else Evidence(Figures(error=why))
        broken.save(out)
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))  # type: ignore[arg-type]
