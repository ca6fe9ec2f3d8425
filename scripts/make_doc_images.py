"""Draws the pictures of the documentation: screens of the simulated phone, and pages as a browser shows them.

    python scripts/make_doc_images.py                       all, the episodes played by the built-in model
    python scripts/make_doc_images.py --only phone          without model and browser
    python scripts/make_doc_images.py --only watch          the pages on a run, which it trains for a few minutes
    python scripts/make_doc_images.py --model outputs/my-run/checkpoints/best

The learning curves are drawn by `python -m trainers.curves`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
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
WATCHED = (
    *("experiment=quick", "max_steps=2", "eval.baseline=false", "eval.episodes=8", "run_name=my-run", "seed=3"),
    *("rollout.group_size=8", "rollout.groups_per_step=4", "rollout.concurrency=32", "logging.tensorboard=false"),
    "env.args.latency={kind:lognormal,mean_s:2,sigma:0.5}",
)
WATCHED_SIZE = {"width": 1280, "height": 900}
PATIENCE_MS = 600_000


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


def draw_watch(folder: Path, browser: str) -> None:
    """Trains on 32 slow phones and photographs the pages: the wall meanwhile, a group and an episode afterwards."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as outputs:
        run = Path(outputs) / "my-run"
        training = subprocess.Popen([sys.executable, "train.py", *WATCHED, f"output_dir={outputs}"], cwd=ROOT)
        while not (run / "config.yaml").exists() and training.poll() is None:
            time.sleep(0.5)
        watching = [sys.executable, "-m", "trainers.watch", str(run)]
        with subprocess.Popen(watching, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as p:
            assert server.stdout is not None
            server.stdout.readline()
            base = server.stdout.readline().split()[0]
            chromium = p.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
            page = chromium.new_page(viewport=WATCHED_SIZE, color_scheme="light")
            page.set_default_timeout(PATIENCE_MS)
            page.goto(base)
            page.locator(".times .time").first.wait_for()
            page.locator(".device:not(.idle)").nth(23).wait_for()
            page.screenshot(path=folder / "watch_now.png")
            training.wait()
            page.goto(f"{base}#0/groups")
            page.locator(".strip").nth(7).wait_for()
            page.wait_for_timeout(2000)  # for the pictures
            page.screenshot(path=folder / "watch_group.png", full_page=True)
            page.locator(".strip:has(.badge.false_claim) .heading a, .strip .heading a").first.click()
            page.locator(".turns").wait_for()
            page.wait_for_timeout(2000)
            page.screenshot(path=folder / "watch_episode.png")
            chromium.close()
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("phone", "trace", "watch"), help="draw only this")
    parser.add_argument("--model", default="tiny", help="who plays the episode of the trace (default: tiny)")
    parser.add_argument("--seed", type=int, help="start state of the trace's phone")
    parser.add_argument("--browser-path", default=DEFAULT_BROWSER)
    options = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    if options.only in (None, "phone"):
        draw_phone(IMAGES / "phone.png")
    if options.only in (None, "watch"):
        draw_watch(IMAGES, options.browser_path)
    if options.only in (None, "trace"):
        draw_trace(IMAGES / "trace.png", options.model, options.seed, options.browser_path)


if __name__ == "__main__":
    main()
