"""The MiniWoB++ pages that can be solved with pixels and typed actions, as tasks.

A task's `category` is the page's name. The goal of an episode depends on its seed and is the text of the first
observation; `description` says what the page asks for in general.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cua_agent.tasks import CUATask, Difficulty, EvalSplit, Probe

RAW_REWARD = "WOB_DONE_GLOBAL ? WOB_RAW_REWARD_GLOBAL : 0"
"""JavaScript: the page's verdict without its decay over time; 0 while the episode runs."""


@dataclass(frozen=True)
class MiniWobValidator:
    """Reads the page's own verdict, -1..1 (1 is right, some pages give parts), and clips it to 0..1."""

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:  # noqa: ARG002 (the verdict is absolute)
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:  # noqa: ARG002
        reward = float(await probe(RAW_REWARD))
        return 0.0 if math.isnan(reward) else min(max(reward, 0.0), 1.0)


# page, difficulty, turns that suffice with some to spare, what it asks for
_Row = tuple[str, Difficulty, int, str]

_TRAINING: tuple[_Row, ...] = (
    ("click-test", "easy", 3, "Click the button."),
    ("click-test-2", "easy", 3, "Click button ONE."),
    ("click-button", "easy", 3, "Click on the named button."),
    ("click-dialog", "easy", 3, "Close the dialog box."),
    ("click-link", "easy", 3, "Click on the named link."),
    ("click-tab", "easy", 3, "Click on the numbered tab."),
    ("focus-text", "easy", 3, "Focus into the textbox."),
    ("click-widget", "easy", 3, "Click on a widget of the named kind."),
    ("click-option", "medium", 5, "Select the named option and submit."),
    ("click-checkboxes", "medium", 10, "Select the named checkboxes and submit."),
    ("enter-text", "medium", 5, "Enter the given text and submit."),
    ("enter-password", "medium", 6, "Enter the password into both fields and submit."),
    ("login-user", "medium", 6, "Enter user name and password and log in."),
    ("click-button-sequence", "easy", 5, "Click button ONE, then button TWO."),
    ("click-collapsible", "easy", 5, "Expand the section and submit."),
    ("click-color", "easy", 3, "Click on the box of the named colour."),
    ("click-shape", "medium", 3, "Click on the shape described."),
    ("identify-shape", "easy", 3, "Say what shape is shown."),
    ("grid-coordinate", "medium", 3, "Click on the given coordinate."),
    ("read-table", "medium", 5, "Enter the named value of the table and submit."),
    ("simple-arithmetic", "medium", 5, "Solve the problem and submit."),
    ("use-autocomplete-nodelay", "medium", 6, "Enter an item with the given start and end."),
    ("use-spinner", "hard", 16, "Select the number with the spinner and submit."),
    ("navigate-tree", "medium", 5, "Find the named file or folder and click on it."),
    ("search-engine", "hard", 8, "Search for a name and open the numbered result."),
    ("multi-layouts", "medium", 8, "Search for a film by genre, director and year."),
    ("scroll-text-2", "medium", 12, "Scroll the text area to its top or bottom and submit."),
    ("drag-box", "medium", 5, "Drag the small box into the large one and submit."),
    ("drag-circle", "medium", 5, "Drag the circle in the given direction and submit."),
    ("drag-items", "hard", 4, "Drag the named item to the given position."),
)
_HELD_OUT: tuple[_Row, ...] = (
    ("focus-text-2", "easy", 3, "Focus into the numbered textbox."),
    ("click-dialog-2", "easy", 3, "Click the named button of the dialog."),
    ("click-tab-2", "medium", 6, "Find the named link in one of the tabs and click on it."),
    ("click-checkboxes-transfer", "medium", 10, "Select the named checkboxes and submit."),
    ("click-checkboxes-large", "hard", 18, "Select all the named checkboxes and submit."),
    ("click-collapsible-2", "medium", 10, "Find the named link in one of the sections and click on it."),
    ("enter-text-2", "medium", 5, "Enter the text in the given case and submit."),
    ("enter-text-dynamic", "medium", 5, "Enter the given text and submit."),
    ("login-user-popup", "hard", 9, "Log in although a dialog may get in the way."),
    ("find-word", "hard", 5, "Enter the numbered word of the paragraph and submit."),
    ("read-table-2", "hard", 6, "Enter the two values that belong to the labels and submit."),
    ("simple-algebra", "hard", 5, "Solve for x and submit."),
    ("multi-orderings", "medium", 8, "Search for a film by genre, director and year."),
    ("scroll-text", "hard", 12, "Find the last word of the text and enter it."),
    ("drag-single-shape", "medium", 5, "Drag the shape in the given direction and submit."),
    ("drag-items-grid", "hard", 4, "Drag the named item to the given place of the grid."),
)


def training_tasks() -> list[CUATask]:
    """Tasks that training draws from."""
    return [_task(row) for row in _TRAINING]


def eval_tasks(split: EvalSplit = "seeds") -> list[CUATask]:
    """`seeds`: the training tasks (for seeds of use "eval"); `templates`: pages that training never shows."""
    return training_tasks() if split == "seeds" else [_task(row) for row in _HELD_OUT]


def _task(row: _Row) -> CUATask:
    page, difficulty, max_steps, description = row
    return CUATask(
        id=f"miniwob/{page}",
        name=page,
        description=description,
        difficulty=difficulty,
        category=page,
        max_steps=max_steps,
        validation=MiniWobValidator(),
    )
