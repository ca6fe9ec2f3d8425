"""The wall of a run with 64 devices, in a real browser: what it shows, and how little it redraws when one moves on."""

import json
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.watch_browser_rig import Pages, browsing, needs_browser, served
from tests.watch_rig import PLANTED, record_run
from trainers.episodes.files import EPISODES, LIVE, replace_json
from trainers.episodes.screens import ScreenStore

pytestmark = needs_browser
DEVICES, STUCK = 64, 41
COUNTS = """
window.seen = { added: 0, pictures: 0, texts: 0 };
new MutationObserver((changes) => changes.forEach((change) => {
  const nodes = [...change.addedNodes, ...change.removedNodes], shown = (node) => node.nodeType === 1 &&
    (node.matches("img") || node.querySelector("img"));
  seen.added += nodes.length;
  seen.pictures += nodes.filter(shown).length;
  seen.texts += change.type === "characterData";
})).observe(document.querySelector(".wall"), { childList: true, subtree: true, characterData: true });
"""


class Wall:
    """What a process that plays on 64 devices tells of itself."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.screens = ScreenStore(run / EPISODES, "0", 1e8)
        present = time.time()
        self.devices: list[dict[str, Any]] = [
            {"device": number, "id": f"g{number}-0", "group": f"g{number}", "task": "tap", "goal": f"Goal {number}",
             "turn": 1, "waits_for": "sampling", "since": present, "began": present, "version": 1,
             "screen": self.screen(number), "said": ""}
            for number in range(DEVICES)
        ]  # fmt: skip

    def screen(self, shade: int) -> str | None:
        return self.screens.put(Image.new("RGB", (64, 112), (shade, 90, 120)), 1, evaluation=False)

    def tell(self) -> None:
        state = {
            "process": "0",
            "time": time.time() + 3600,
            "open": True,
            "screens_dropped": 0,
            "lost": [],
            "groups": [],
        }
        replace_json(self.run / EPISODES / f"{LIVE}0.json", {**state, "devices": self.devices})


def test_sixty_four_devices_are_shown_and_only_what_changes_is_drawn_again(tmp_path: Path) -> None:
    wall = Wall(record_run(tmp_path / "run"))
    hung = wall.devices[STUCK]
    hung.update(waits_for="acting", since=time.time() - 3000, said=PLANTED, goal=PLANTED)
    wall.tell()
    with served(wall.run) as base, browsing(base) as pages:
        pages.open("0/now")
        pages.until(f"document.querySelectorAll('.device img').length === {DEVICES}")
        assert pages.texts(".device header b") == [str(number) for number in range(DEVICES)]
        the_one_that_hangs_stands_out(pages)
        pages.page.evaluate(COUNTS)
        loaded = len(pages.asked)
        wall.devices[7].update(turn=2, said="tap target=OK", screen=wall.screen(200), waits_for="scoring")
        wall.tell()
        pages.until("/turn 2/.test(document.querySelectorAll('.device')[7].innerText)")
        assert "scoring" in pages.texts(".device")[7] and "tap target=OK" in pages.texts(".device")[7]
        little_was_drawn_and_loaded(pages, loaded)


def the_one_that_hangs_stands_out(pages: Pages) -> None:
    assert pages.page.locator(".device.stuck").count() == 1
    card = pages.page.locator(".device.stuck").inner_text()
    assert f"{STUCK}\n" in card and "acting 50 min" in card and PLANTED in card
    assert pages.page.evaluate("window.planted") is None


def little_was_drawn_and_loaded(pages: Pages, loaded: int) -> None:
    seen = pages.page.evaluate("seen")
    drawn = [address for address in pages.asked[loaded:] if address.endswith("/data/0/now")]
    assert seen["pictures"] == 2, seen  # the one that is shown instead of the other
    assert seen["added"] <= 12 and seen["texts"] <= 2 * DEVICES * (len(drawn) + 1), seen
    assert sum("/screens/" in address for address in pages.asked[loaded:]) == 1
    answer = pages.page.request.get(f"{pages.base}data/0/now")
    assert len(answer.body()) < 1000 * DEVICES and len(json.loads(answer.text())["devices"]) == DEVICES
