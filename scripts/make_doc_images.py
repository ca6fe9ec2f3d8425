"""Draws the pictures of the documentation: screens of the simulated phone, and a trace page as a browser shows it.

    python scripts/make_doc_images.py                       both, the episode played by the built-in model
    python scripts/make_doc_images.py --only phone          without model and browser
    python scripts/make_doc_images.py --model outputs/my-run/checkpoints/best

The learning curves are drawn by `python -m trainers.curves`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from cua_agent.envs.miniwob.browser import DEFAULT_BROWSER
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.state import PhoneState, make_state

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SCREENS = ("home", "Settings", "Display", "Contacts", "Browser", "Clock")
DIALOG_ON = {"Clock": "Update available"}
PHONE_SEED = 49
SCALE, GAP = 3, 24
BACKGROUND = (255, 255, 255)
TASK = "word/w0"
TRACE_WIDTH = 760  # CSS pixels


def phone_screen(screen: str) -> PhoneState:
    """The example phone at `screen`."""
    state = make_state(PHONE_SEED, "shuffled")
    state.screen, state.dialog, state.pending_dialog = screen, DIALOG_ON.get(screen), None
    return state


def contact_sheet(pictures: list[Image.Image], gap: int) -> Image.Image:
    """Pictures of one size side by side."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + gap) + gap, height + 2 * gap), BACKGROUND)
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (gap + index * (width + gap), gap))
    return sheet


def draw_phone(path: Path) -> None:
    """Six screens of one phone."""
    contact_sheet([draw(phone_screen(screen), SCALE) for screen in SCREENS], GAP).save(path, optimize=True)


def draw_trace(path: Path, model: str, seed: int | None, browser: str) -> None:
    """Plays an episode with `python -m cua_agent` and photographs its page."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        page_file = Path(folder) / "trace.html"
        options = [f"task={TASK}", f"model={model}", f"out={page_file}", "grounding=target", "prompt=brief"]
        options += ["greedy=true"] + ([] if seed is None else [f"seed={seed}"])
        subprocess.run([sys.executable, "-m", "cua_agent", *options], cwd=ROOT, check=True)
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
            page = chromium.new_page(viewport={"width": TRACE_WIDTH, "height": 600}, color_scheme="light")
            page.goto(page_file.as_uri())
            page.screenshot(path=path, full_page=True)
            chromium.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("phone", "trace"), help="draw one of the two")
    parser.add_argument("--model", default="tiny", help="who plays the episode of the trace (default: tiny)")
    parser.add_argument("--seed", type=int, help="start state of the trace's phone")
    parser.add_argument("--browser-path", default=DEFAULT_BROWSER)
    options = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    if options.only != "trace":
        draw_phone(IMAGES / "phone.png")
    if options.only != "phone":
        draw_trace(IMAGES / "trace.png", options.model, options.seed, options.browser_path)


if __name__ == "__main__":
    main()
