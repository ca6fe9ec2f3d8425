"""Experts for MiniWoB++ pages that have to be looked at: they read the page where an agent reads the screen."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cua_agent.actions import Action, Direction, Drag, Point, Scroll, Tap, Target, TypeText
from cua_agent.envs.miniwob.environment import MiniWobEnvironment
from cua_agent.envs.miniwob.page import HEIGHT, SIZE, WIDTH
from cua_agent.envs.web.page import point_of

TEXTBOX, SUBMIT = Target("textbox"), Target("Submit")
_MAX_SCROLLS = 20
_PASS = 6  # CSS pixels


@dataclass(frozen=True)
class Episode:
    """What an expert sees: the environment after `reset`, and the goal."""

    environment: MiniWobEnvironment
    goal: str

    async def read(self, expression: str) -> Any:
        """Value of a JavaScript expression that JSON can hold."""
        return json.loads(await self.environment.probe(f"JSON.stringify({expression})"))

    async def text(self, selector: str) -> str:
        """The text of the first element that matches a selector."""
        return str(await self.read(f"document.querySelector({json.dumps(selector)}).textContent.trim()"))

    async def texts(self, selector: str) -> list[str]:
        """The texts of all elements that match a selector."""
        nodes = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return [str(text) for text in await self.read(f"{nodes}.map(node => node.innerText.trim())")]

    async def point(self, selector: str) -> Point:
        """Where a tap reaches the element. Raises `ValueError` when none is visible."""
        pixel = await self.read(f"cua.visiblePixel(document.querySelector({json.dumps(selector)}))")
        if pixel is None:
            raise ValueError(f"nothing visible matches {selector!r}")
        return point_of(pixel[0], pixel[1], SIZE)

    async def centre(self, selector: str) -> Point:
        """The middle of the first element that matches a selector."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = await self.read(f"(r => [r.left + r.width / 2, r.top + r.height / 2])({box})")
        return point_of(int(x), int(y), SIZE)

    async def shows(self, name: str) -> bool:
        """Whether an element of that name is on the page."""
        return await self.environment.locate(name) is not None


Expert = Callable[[Episode], AsyncIterator[Action]]
"""Yields the next action; each is to be executed before the next is asked for."""


def tap(name: str) -> Tap:
    """A tap on the element of that name."""
    return Tap(Target(name))


def quoted(goal: str) -> list[str]:
    """What the goal puts in quotation marks."""
    return re.findall(r'"(.*?)"', goal)


def matched(pattern: str, goal: str) -> str:
    """The pattern's group in the goal. Raises `ValueError` when the goal has another form."""
    found = re.search(pattern, goal)
    if found is None:
        raise ValueError(f"goal {goal!r} has not the form {pattern!r}")
    return found.group(1)


def _shift(point: Point, across: int, down: int) -> Point:
    """`point` moved by CSS pixels, kept on the screen."""
    x, y = point.to_pixels(WIDTH, HEIGHT)
    return point_of(min(max(x + across, 0), WIDTH - 1), min(max(y + down, 0), HEIGHT - 1), SIZE)


async def _collapsible(episode: Episode) -> AsyncIterator[Action]:
    yield tap(await episode.text("#area h3"))
    yield Tap(SUBMIT)


async def _colour(episode: Episode) -> AsyncIterator[Action]:
    yield Tap(await episode.point(f"#area .color[data-color={matched(r'on the (.*) colored', episode.goal)}]"))


async def _identify(episode: Episode) -> AsyncIterator[Action]:
    figure = "document.querySelector('#area_svg').firstElementChild"
    shape, text = await episode.read(f"(f => [f.localName, f.textContent])({figure})")
    names = {"rect": "Rectangle", "circle": "Circle", "polygon": "Triangle"}
    yield tap(names.get(shape) or ("Number" if text.strip().isdigit() else "Letter"))


async def _coordinate(episode: Episode) -> AsyncIterator[Action]:
    coordinate = matched(r"(\(.*\))", episode.goal)
    yield Tap(await episode.point(f"circle[id='{coordinate}']"))


async def _table(episode: Episode) -> dict[str, str]:
    cells = await episode.texts("#tab td")
    return dict(zip(cells[::2], cells[1::2], strict=True))


async def _read_table(episode: Episode) -> AsyncIterator[Action]:
    yield TypeText((await _table(episode))[matched(r"value of (.*) into", episode.goal)], TEXTBOX)
    yield Tap(SUBMIT)


async def _read_table_2(episode: Episode) -> AsyncIterator[Action]:
    table = await _table(episode)
    for selector in ("#ll1", "#ll2"):
        key = (await episode.text(selector)).rstrip(":")
        yield TypeText(table[key], Target(key))
    yield Tap(SUBMIT)


async def _arithmetic(episode: Episode) -> AsyncIterator[Action]:
    left, operator, right = (await episode.text("#math-problem")).split()[:3]
    a, b = int(left), int(right)
    yield TypeText(str({"+": a + b, "-": a - b, "x": a * b}[operator]), TEXTBOX)
    yield Tap(SUBMIT)


async def _algebra(episode: Episode) -> AsyncIterator[Action]:
    left, operator, right, _, total = (await episode.text("#math-problem")).split()
    if left == "x":
        answer = int(total) - int(right) if operator == "+" else int(total) + int(right)
    else:
        answer = int(total) - int(left) if operator == "+" else int(left) - int(total)
    yield TypeText(str(answer), TEXTBOX)
    yield Tap(SUBMIT)


async def _find_word(episode: Episode) -> AsyncIterator[Action]:
    words = (await episode.text("#area p")).split()
    yield TypeText(re.sub("[^a-zA-Z]", "", words[int(matched(r"the (\d+)", episode.goal)) - 1]), TEXTBOX)
    yield Tap(SUBMIT)


async def _autocomplete(episode: Episode) -> AsyncIterator[Action]:
    start, *end = quoted(episode.goal)
    items: list[str] = await episode.read("ITEMS")
    choice = next(item for item in items if item.startswith(start) and item.endswith("".join(end)))
    yield TypeText(choice, Target("Tags"))
    yield tap(choice)  # the suggestion; it lies over the button
    yield Tap(SUBMIT)


async def _spinner(episode: Episode) -> AsyncIterator[Action]:
    wanted = int(matched(r"Select (-?\d+)", episode.goal))
    arrow = await episode.point(".ui-spinner-up" if wanted > 0 else ".ui-spinner-down")
    for _ in range(abs(wanted)):
        yield Tap(arrow)
    yield Tap(SUBMIT)


async def _open_until_visible(episode: Episode, name: str, openers: Sequence[str]) -> AsyncIterator[Action]:
    """Tap openers (tabs, sections) in turn until `name` shows, then tap it."""
    for opener in openers:
        if await episode.shows(name):
            break
        yield tap(opener)
    yield tap(name)


async def _link_in_tabs(episode: Episode) -> AsyncIterator[Action]:
    async for action in _open_until_visible(episode, quoted(episode.goal)[0], ["Tab #2", "Tab #3"]):
        yield action


async def _link_in_sections(episode: Episode) -> AsyncIterator[Action]:
    headers = await episode.texts("#area h3")
    async for action in _open_until_visible(episode, quoted(episode.goal)[0], headers):
        yield action


async def _tree(episode: Episode) -> AsyncIterator[Action]:
    name = quoted(episode.goal)[0]
    folders = await episode.texts("#tree > li > .folder")
    async for action in _open_until_visible(episode, name, folders):
        yield action


async def _search(episode: Episode) -> AsyncIterator[Action]:
    yield TypeText(quoted(episode.goal)[0], TEXTBOX)
    yield tap("Search")
    page, row = divmod(int(matched(r"the (\d+)", episode.goal)) - 1, 3)
    if page:
        yield tap(str(page + 1))
    yield Tap(await episode.point(f"#page-content > div:nth-child({row + 1}) a"))


async def _film(episode: Episode) -> AsyncIterator[Action]:
    found = re.search(r"Search for (.*) movies directed by (.*) from year (\d+)", episode.goal)
    values = found.groups() if found else ()
    for names, value in zip((("Genre",), ("Director",), ("Year", "Released")), values, strict=True):
        yield TypeText(value, Target(await _first_name(episode, names, ("", "Movie {}", "{} Name", "{} Date"))))
    yield tap(await _first_name(episode, ("Submit", "Search", "Go!"), ("",)))


async def _first_name(episode: Episode, names: Sequence[str], forms: Sequence[str]) -> str:
    """The first of the names, in one of the forms, that is on the screen."""
    for name in (form.format(name) or name for name in names for form in forms):
        if await episode.shows(name):
            return name
    raise ValueError(f"none of {names} is on the screen")


async def _log_in_despite_dialog(episode: Episode) -> AsyncIterator[Action]:
    user, password = quoted(episode.goal)
    for text, field in ((user, "Username"), (password, "Password")):
        yield TypeText(text, Target(field))
        if await episode.shows("Cancel"):
            yield tap("Cancel")
            yield TypeText(text, Target(field))
    yield tap("OK")


# Scrolling and dragging -----------------------------------------------------------------------------------------------


async def _scroll_to_end(episode: Episode, direction: Direction) -> AsyncIterator[Action]:
    area = "document.querySelector('#text-area')"
    at = await episode.point("#text-area")
    for _ in range(_MAX_SCROLLS):
        top, bottom = await episode.read(f"(t => [t.scrollTop, t.scrollHeight - t.clientHeight - t.scrollTop])({area})")
        if (top if direction is Direction.UP else bottom) < 1:
            return
        yield Scroll(direction, at)


async def _scroll_text_2(episode: Episode) -> AsyncIterator[Action]:
    direction = Direction.DOWN if "bottom" in episode.goal else Direction.UP
    async for action in _scroll_to_end(episode, direction):
        yield action
    yield Tap(SUBMIT)


async def _scroll_text(episode: Episode) -> AsyncIterator[Action]:
    async for action in _scroll_to_end(episode, Direction.DOWN):
        yield action
    yield TypeText((await episode.text("#text-area")).split()[-1].rstrip("."), TEXTBOX)
    yield Tap(SUBMIT)


async def _drag_box(episode: Episode) -> AsyncIterator[Action]:
    yield Drag(await episode.centre("#draggableSmall"), await episode.centre("#draggableLarge"))
    yield Tap(SUBMIT)


async def _drag_shape(episode: Episode) -> AsyncIterator[Action]:
    start = await episode.point("#area svg > *")
    shifts = {"left": (-18, 0), "right": (18, 0), "up": (0, -18), "down": (0, 18)}
    yield Drag(start, _shift(start, *shifts[matched(r"(\w+) then", episode.goal)]))
    yield Tap(SUBMIT)


async def _drag_item(episode: Episode) -> AsyncIterator[Action]:
    names = await episode.texts("#sortable li")
    source = names.index(matched(r"Drag ([\w-]+)", episode.goal))
    target = _list_place(episode.goal, source, len(names))
    start, end = [await episode.centre(f"#sortable li:nth-child({place + 1})") for place in (source, target)]
    # The item has to pass the middle of the one whose place it takes.
    yield Drag(start, _shift(end, 0, _PASS if target > source else -_PASS))


def _list_place(goal: str, source: int, count: int) -> int:
    places = {"top": 0, "bottom": count - 1, "down by one": source + 1, "up by one": source - 1}
    for words, place in places.items():
        if words in goal:
            return place
    return int(matched(r"the (\d+)", goal)) - 1


LOOKING: dict[str, Expert] = {
    "click-collapsible": _collapsible,
    "click-collapsible-2": _link_in_sections,
    "click-color": _colour,
    "click-tab-2": _link_in_tabs,
    "identify-shape": _identify,
    "grid-coordinate": _coordinate,
    "read-table": _read_table,
    "read-table-2": _read_table_2,
    "simple-arithmetic": _arithmetic,
    "simple-algebra": _algebra,
    "find-word": _find_word,
    "use-autocomplete-nodelay": _autocomplete,
    "use-spinner": _spinner,
    "navigate-tree": _tree,
    "search-engine": _search,
    "multi-layouts": _film,
    "multi-orderings": _film,
    "login-user-popup": _log_in_despite_dialog,
    "scroll-text": _scroll_text,
    "scroll-text-2": _scroll_text_2,
    "drag-box": _drag_box,
    "drag-circle": _drag_shape,
    "drag-single-shape": _drag_shape,
    "drag-items": _drag_item,
}
"""The experts by page name."""
