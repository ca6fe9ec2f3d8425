"""One Chromium for all that BrowserGym launches."""

from __future__ import annotations

from typing import Any


class OneBrowser:
    """Playwright as BrowserGym is to see it: whatever it launches, for an episode or for its chat window, is the same
    browser, which stays open between episodes. What keeps them apart is a context for each."""

    def __init__(self, playwright: Any) -> None:
        self.selectors = playwright.selectors
        self.chromium = self
        self._playwright = playwright
        self._browser: Any = None

    def launch(self, **options: Any) -> OneBrowser._Kept:
        """The browser, started with the `options` of the first call: those of the pages."""
        if self._browser is None:
            self._browser = self._playwright.chromium.launch(**options)
        return self._Kept(self._browser)

    class _Kept:
        def __init__(self, browser: Any) -> None:
            self._browser = browser

        def new_context(self, **options: Any) -> Any:
            return self._browser.new_context(**options)

        def close(self) -> None:
            """It is needed again; Playwright's end is its own."""
