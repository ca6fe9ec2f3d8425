"""Worlds of web pages in Chromium: `open_pages` makes one of HTML, `Script` says in JavaScript when a goal holds."""

from cua_agent.envs.web.browser import BrowserMissing, find_browser
from cua_agent.envs.web.environment import Script, open_pages

__all__ = ["BrowserMissing", "Script", "find_browser", "open_pages"]
