"""The browser of MiniWoB++ pages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Self

from cua_agent.envs.miniwob.page import SIZE
from cua_agent.envs.web.browser import DEFAULT_BROWSER, BrowserMissing, Chromium
from cua_agent.envs.web.page import WebPage

__all__ = ["DEFAULT_BROWSER", "BrowserMissing", "MiniWobBrowser"]


class MiniWobBrowser:
    """A `Chromium` whose pages are MiniWoB++'s, 160x210 pixels times `scale`; see there."""

    def __init__(self, executable: str = DEFAULT_BROWSER, scale: int = 1, timeout_s: float = 15.0) -> None:
        script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
        self.chromium = Chromium(executable, SIZE, script, scale, timeout_s)
        self.timeout_s = timeout_s
        self._html = _find_html()

    async def __aenter__(self) -> Self:
        await self.chromium.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def new_page(self) -> WebPage:
        """A blank page in a new context. Raises `EnvironmentFailure` when even a fresh browser does not give one."""
        return await self.chromium.new_page()

    def url(self, page_name: str) -> str:
        """The file URL of a MiniWoB++ page, for example ``click-test``."""
        return (self._html / f"{page_name}.html").as_uri()

    async def close(self) -> None:
        await self.chromium.close()


def _find_html() -> Path:
    """The pages' directory. `miniwob` is located, not imported: importing it needs gymnasium and selenium."""
    spec = importlib.util.find_spec("miniwob")
    if spec is None or spec.origin is None:
        raise BrowserMissing("env=miniwob needs the packages miniwob and playwright: pip install 'cua-grpo[miniwob]'")
    return Path(spec.origin).parent / "html" / "miniwob"
