"""The pages on runs in a real browser, and the server that they come from."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cua_agent.envs.web.browser import DEFAULT_BROWSER

PATIENCE_MS = 300_000
needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(DEFAULT_BROWSER) is None, reason="no browser: make browser"),
    pytest.mark.timeout(1800),
]


@dataclass
class Pages:
    """A browser's page, where the server is, and every address that the page asked for."""

    page: Any
    base: str
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, view: str) -> None:
        """Go to a view and wait until it is drawn."""
        self.page.goto(f"{self.base}#{view}")
        self.page.locator(f'#view[data-view="{view.split("/")[1]}"] > *').first.wait_for()

    def until(self, holds: str) -> None:
        """Wait for a JavaScript expression; a page's policy allows none that the page itself would have to look at."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(holds):
            assert time.monotonic() < deadline, holds
            time.sleep(0.2)

    def texts(self, selector: str) -> list[str]:
        """What stands in the elements."""
        return list(self.page.locator(selector).all_inner_texts())


@contextmanager
def browsing(base: str) -> Iterator[Pages]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=DEFAULT_BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        pages = Pages(page, base)
        page.on("request", lambda request: pages.asked.append(request.url))
        page.on("pageerror", lambda error: pages.errors.append(str(error)))
        page.on("console", lambda said: pages.errors.append(said.text) if said.type == "error" else None)
        try:
            yield pages
        finally:
            browser.close()
    assert pages.errors == []


@contextmanager
def served(*runs: Path) -> Iterator[str]:
    """The address of a server of the runs."""
    command = [sys.executable, "-m", "trainers.watch", *map(str, runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            server.stdout.readline()
            yield server.stdout.readline().split()[0]
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
