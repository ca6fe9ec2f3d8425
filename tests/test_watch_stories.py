"""Why a task fails at step 10: the pages of runs with a planted cause lead to it from the first view."""

import re
from pathlib import Path

import pytest

from tests.planted_runs import MEMBERS, Story, planted_run, task_of
from tests.watch_browser_rig import Pages, browsing, needs_browser, served

pytestmark = needs_browser


@pytest.mark.parametrize("story", ["strict", "low", "hangs"])
def test_three_clicks_lead_to_the_cause(story: Story, tmp_path: Path) -> None:
    run = planted_run(tmp_path / story, story)
    with served(run) as base, browsing(base) as pages:
        pages.page.goto(base)
        told = the_step_tells_its_tasks(pages, story)
        group = the_group_tells_what_its_episodes_share(pages, story)
        episode = an_episode_tells_the_cause(pages)
        {"strict": too_strict, "low": too_low, "hangs": hanging}[story](pages, told, group, episode)


def the_step_tells_its_tasks(pages: Pages, story: Story) -> str:
    """First click: the step. The task that fails comes first."""
    pages.page.get_by_role("link", name="step 10", exact=True).click()
    pages.page.locator("#strip").wait_for()
    row = pages.page.locator(".tasks tbody tr").first
    assert pages.page.locator("#step").input_value() == "10"
    assert task_of(story).description in row.inner_text()
    return row.inner_text()


def the_group_tells_what_its_episodes_share(pages: Pages, story: Story) -> str:
    """Second click: the task."""
    pages.page.locator(".tasks tbody a").first.click()
    pages.page.locator(".strip").first.wait_for()
    assert pages.page.locator("h1").inner_text() == task_of(story).description
    return pages.page.locator(".detail").inner_text()


def an_episode_tells_the_cause(pages: Pages) -> str:
    """Third click: an episode."""
    pages.page.locator(".strip .heading a").first.click()
    pages.page.get_by_role("heading", name="What stands out").wait_for()
    return pages.page.locator("#view").inner_text()


def too_strict(pages: Pages, told: str, group: str, episode: str) -> None:
    """What was asked and heard, what is wanted and how that is decided stand beside the screen that shows the goal."""
    assert "0 of 4" in told and f"did something, not accepted {MEMBERS} of {MEMBERS}" in told
    assert "“0” → “64”" in group or "→ “64”" in group
    scored = pages.page.locator(".turn:has(.verdict)")
    assert scored.locator("img").count() == 1
    beside = scored.locator(".verdict").inner_text()
    assert "BrightnessIsExactly(wanted=64)" in beside
    assert '.strip() == f"{self.wanted}.0"' in beside
    assert scored.locator("td.changed").all_inner_texts() == ["64"]
    pages.page.get_by_role("link", name="a success of the same task").click()  # which another validator scored
    pages.page.get_by_text("BrightnessIs(percent=25)").wait_for()


def too_low(pages: Pages, told: str, group: str, episode: str) -> None:
    """Each touch is drawn on its screen, with what it hit and how far below the thing it should have hit."""
    assert "0 of 4" in told and f"touches beside the goal {MEMBERS} of {MEMBERS}" in told
    # 100 below the middle of a row whose lower edge is 69 below its middle.
    assert "just below what successes of this task touch: 31 below “Wi-Fi”" in group
    assert "of this task touch" in episode and "on “Battery”" in episode
    boxes = pages.page.locator(".turns .shot:has(.tap) .place").count()
    assert boxes == pages.page.locator(".turns .tap").count() == 8


def hanging(pages: Pages, told: str, group: str, episode: str) -> None:
    """What was waited for, on which device, for how long, on which screen."""
    assert told.startswith("8 lost") and "lost to infrastructure 8 of 8" in told
    assert "every episode was lost" in group
    assert "waiting 0.3 s for the device to act: Scroll: no end within 0.3 s (env.timeout_s)" in episode
    assert "Lost on device" in episode and "after 2 turns" in episode
    pages.open("0/now")
    lost = pages.page.locator("h2:has-text('Lost episodes') + table tr").all_inner_texts()
    assert len(lost) == 8 and all(re.search(r"device [012]\b.*no end within", line, re.DOTALL) for line in lost)
