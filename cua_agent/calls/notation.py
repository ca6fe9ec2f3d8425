"""Where the call stands in what a model wrote, and how it is written down: tags and JSON, tags and XML, or a line.

The notations, each with one reading, whoever writes it:
- ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, what the prompt asks for (Qwen's chat templates);
- the same without tags, when the turn is nothing but the JSON object or holds one code block with it;
- ``<tool_call><function=...><parameter=...>...</parameter></function></tool_call>`` (templates of Qwen3-Coder);
- ``Action: click(start_box='(x,y)')`` (UI-TARS, prompt.py and action_parser.py of bytedance/UI-TARS).
"""

from __future__ import annotations

import re
from typing import Any

from cua_agent.calls.errors import CallError
from cua_agent.calls.lenient_json import read_object

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
THINK, THINK_END = "<think>", "</think>"

_TAG = re.compile(f"{CALL_START}|{CALL_END}")
_TAGGED = re.compile(r"<tool_call>\s*(?:```\w*\s*)?(?=[\[{]|<function=)")
_FENCED = re.compile(r"```\w*\s*(?=\{)")
_END_OF_TURN = re.compile(r"(?:<\|im_end\|>|<\|endoftext\|>|\s)+\Z")
_FUNCTION = re.compile(r"<function=(?P<name>\w+)>(?P<body>.*?)(?:</function>|(?=</tool_call>))", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=(?P<key>\w+)>\n?(?P<value>.*?)\n?</parameter>\s*", re.DOTALL)
_ACTION_LINE = re.compile(r"^\s*Action:", re.MULTILINE)
_ACTION_CALL = re.compile(r"\s*(?P<name>\w+)\((?P<arguments>.*)\)\s*", re.DOTALL)
_KEYWORD = re.compile(r"""\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*(?:,|$)""", re.DOTALL)
_LEFT_OVER = " \t\r\n}]),;`"
"""What may stand between a call and its end tag: brackets that are too many, a comma, the end of a code block."""
_ESCAPED = {"n": "\n", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def find_call(text: str, *, truncated: bool) -> dict[str, Any]:
    """The only call in a model's turn, as a mapping with the keys `name` and `arguments` or what the model wrote in
    their place. `truncated`: the token limit cut the turn off. Raises `CallError`."""
    text = _after_thought(_END_OF_TURN.sub("", text), truncated=truncated)
    call, end = _next_call(text, 0, truncated=truncated)
    if call is None:
        call = _action_line(text)
    elif _next_call(text, end, truncated=truncated)[0] is not None:
        raise CallError(f"expected exactly one {CALL_START}, found several")
    if call is not None:
        return call
    if CALL_START in text:
        raise CallError(f'{CALL_START} must hold a JSON object with "name" and "arguments", then {CALL_END}')
    raise CallError(f"expected exactly one {CALL_START}, found none")


def _after_thought(text: str, *, truncated: bool) -> str:
    """`text` without the model's thoughts, which may mention calls and are none."""
    while True:
        first_call = text.find(CALL_START)
        opened = text.find(THINK)
        thinks = opened >= 0 and (first_call < 0 or opened < first_call)
        thought, closed, rest = text.partition(THINK_END)
        if closed and (thinks or (CALL_START in rest and not _in_a_call(text, len(thought)))):
            text = rest
        elif thinks:
            cut = ": the turn was cut off at the token limit" if truncated else ""
            raise CallError(f"{THINK} is not closed by {THINK_END}{cut}")
        else:
            return text


def _in_a_call(text: str, position: int) -> bool:
    """Whether `position` is inside the JSON of the first call of `text`."""
    tagged = _TAGGED.search(text, 0, position)
    if tagged is None:
        return False
    try:
        return read_object(text, tagged.end(), truncated=False)[1] > position
    except CallError:
        return False


def _next_call(text: str, start: int, *, truncated: bool) -> tuple[dict[str, Any] | None, int]:
    """The first call from `start` on, and where it ends."""
    tagged = _TAGGED.search(text, start)
    if tagged is None and (function := _FUNCTION.search(text, start)):
        return _function(function), function.end()
    if tagged is None and start == 0:
        tagged = re.match(r"\s*(?=\{)", text) or _only(_FENCED, text)
    if tagged is None:
        return None, start
    if function := _FUNCTION.match(text, tagged.end()):
        return _function(function), function.end()
    if text.startswith("<function", tagged.end()):
        raise CallError("<function=...> is not closed by </function>")
    call, end = read_object(text, tagged.end(), truncated=truncated)
    tag = _TAG.search(text, end)
    closed = tag is not None and tag.group() == CALL_END
    rest = text[end : tag.start() if tag else len(text)]
    if rest.strip(_LEFT_OVER) and (closed or "{" in rest):
        raise CallError(f"there is something else between the tool call's JSON and {CALL_END}")
    return call, tag.end() if tag and closed else end + len(rest)


def _only(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = list(pattern.finditer(text))
    return matches[0] if len(matches) == 1 else None


def _function(match: re.Match[str]) -> dict[str, Any]:
    """A call of the XML kind: every argument is text."""
    arguments: dict[str, Any] = {}
    position, body = 0, match["body"]
    while parameter := _PARAMETER.match(body, position):
        if parameter["key"] in arguments:
            raise CallError("a key stands twice in the tool call")
        arguments[parameter["key"]] = parameter["value"]
        position = parameter.end()
    if body[position:].strip():
        raise CallError("between <function=...> and </function> only <parameter=...>...</parameter> may stand")
    return {"name": match["name"], "arguments": arguments}


def _action_line(text: str) -> dict[str, Any] | None:
    """A call as UI-TARS writes it, after the only ``Action:`` of the turn."""
    line = _only(_ACTION_LINE, text)
    call = _ACTION_CALL.fullmatch(text, line.end()) if line else None
    if call is None:
        return None
    arguments: dict[str, Any] = {}
    position, written = 0, call["arguments"]
    while keyword := _KEYWORD.match(written, position):
        name, single, double = keyword.groups()
        arguments[name] = _unescaped(single if single is not None else double)
        position = keyword.end()
    if written[position:].strip():
        raise CallError("the arguments of Action: must be name='value', separated by commas")
    return {"name": call["name"], "arguments": _of_ui_tars(call["name"], arguments)}


def _of_ui_tars(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What goes without saying in UI-TARS's prompt: `wait()` is five seconds, keys are separated by spaces, and text
    that ends with a line break is submitted."""
    if name == "wait" and not arguments:
        return {"time": 5}
    if name == "hotkey" and "key" in arguments:
        return {**arguments, "key": "+".join(arguments["key"].split())}
    if name == "type" and arguments.get("content", "").endswith("\n"):
        return {**arguments, "content": arguments["content"][:-1], "enter": True}
    return arguments


def _unescaped(written: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPED:
            raise CallError("a backslash in Action: is no escape; write it twice")
        return _ESCAPED[match[1]]

    return re.sub(r"\\(.)", one, written, flags=re.DOTALL)
