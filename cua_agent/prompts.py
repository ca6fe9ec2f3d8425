"""Everything the model reads: the tool schema, the system prompt, and the text around each screenshot.

The format is ChatML as the Qwen-VL chat templates write it, with every image placeholder already expanded to as many
tokens as its screenshot needs. Each turn's text continues the former one, so token rows grow and are never rebuilt.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from cua_agent.actions import COORDINATE_MAX, Button, Coordinates, Direction
from cua_agent.calls.schema import ACTION_NAMES, MAX_SECONDS, PERFORM_ACTION, REPORT_TASK_COMPLETE, SLEEP

Grounding = Literal["target", "coordinates"]
PromptStyle = Literal["brief", "full"]

END_OF_TURN = "<|im_end|>"
MAX_RESULT = 500
"""Longest result text that is shown to the model, in characters; pages could otherwise fill the context."""

_BRIEF = f"You control a phone. Tools: {PERFORM_ACTION}, {SLEEP}, {REPORT_TASK_COMPLETE}."

_PREAMBLE = f"""You operate a device through its screen to reach the user's goal.
After every call you get the new screen. Look at it, then make exactly one call.
Call {REPORT_TASK_COMPLETE} only when the goal is reached; this ends the task."""

_TOOLS_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""

_TOOLS_AFTER = """</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

_MARKUP = re.compile(r"<(?=\||/?(?:tool_call|tool_response|tools|think|screen)>)")
"""A "<" that begins a special token or one of the chat format's tags."""


def tool_schemas(grounding: Grounding, coordinates: Coordinates = "relative") -> list[dict[str, Any]]:
    """The three tools as JSON-schema function descriptions, the form that chat templates take as `tools`."""
    return [
        _function(
            PERFORM_ACTION, "Act on the screen.", _action_properties(grounding, coordinates), required=["action"]
        ),
        _function(
            SLEEP,
            "Wait for the screen to change.",
            {"seconds": {"type": "number", "minimum": 0, "maximum": MAX_SECONDS}},
            required=["seconds"],
        ),
        _function(
            REPORT_TASK_COMPLETE,
            "Say that the goal is reached. Ends the task.",
            {"message": {"type": "string", "description": "A summary for the user."}},
            required=[],
        ),
    ]


def preamble(style: PromptStyle) -> str:
    """The system prompt without the tool schema."""
    return _BRIEF if style == "brief" else _PREAMBLE


def system_prompt(style: PromptStyle, grounding: Grounding, coordinates: Coordinates = "relative") -> str:
    """`brief` names the tools only, for a model trained on them; `full` spells their schema out."""
    if style == "brief":
        return _BRIEF
    tools = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tool_schemas(grounding, coordinates))
    return f"{_PREAMBLE}\n\n{_TOOLS_BEFORE}\n{tools}\n{_TOOLS_AFTER}"


def first_prompt(system: str, goal: str, n_image_tokens: int, screen: str = "", *, prefix: str = "") -> str:
    """Start of a conversation: system prompt, goal and the first screenshot (0 image tokens: without it), or the
    `screen` in words. `prefix` begins the model's turn for it: an opened thought, say."""
    return (
        f"<|im_start|>system\n{system}{END_OF_TURN}\n<|im_start|>user\n{plain(goal)}"
        f"{_vision(n_image_tokens)}{_words(screen)}{END_OF_TURN}\n<|im_start|>assistant\n{prefix}"
    )


def next_prompt(result: str, n_image_tokens: int, *, ended: bool, screen: str = "", prefix: str = "") -> str:
    """What follows a model's turn: the result of its call ("ok" when there is nothing to say), and the screenshot or
    the `screen` in words.

    `ended` tells whether the model closed its turn itself; otherwise (it hit the token limit) this text closes it.
    """
    shown = plain(result)[:MAX_RESULT] or "ok"
    return (
        f"{'' if ended else END_OF_TURN}\n<|im_start|>user\n<tool_response>\n{shown}\n</tool_response>"
        f"{_vision(n_image_tokens)}{_words(screen)}{END_OF_TURN}\n<|im_start|>assistant\n{prefix}"
    )


def plain(text: str) -> str:
    """`text` with every special token and chat tag broken up: goals and pages must not be able to speak for others.

    Lone surrogates, which no tokenizer can encode, become "?".
    """
    return _MARKUP.sub("< ", text.encode(errors="replace").decode())


def _vision(n_image_tokens: int) -> str:
    return f"<|vision_start|>{'<|image_pad|>' * n_image_tokens}<|vision_end|>" if n_image_tokens else ""


def _words(screen: str) -> str:
    return f"\n<screen>\n{plain(screen)}\n</screen>" if screen else ""


def _function(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _action_properties(grounding: Grounding, coordinates: Coordinates) -> dict[str, Any]:
    return {
        "action": {"type": "string", "enum": list(ACTION_NAMES)},
        **_location_properties(grounding, coordinates),
        "text": {"type": "string", "description": "What to type; replaces the field's content."},
        "enter": {"type": "boolean", "description": "Press enter after typing."},
        "direction": {"type": "string", "enum": list(Direction), "description": "Where the view scrolls."},
        "key": {"type": "string", "description": "Key or combination, for example enter or control+a."},
        "button": {"type": "string", "enum": list(Button)},
        "seconds": {"type": "number", "description": "Duration of long_press."},
    }


def _location_properties(grounding: Grounding, coordinates: Coordinates) -> dict[str, Any]:
    if grounding == "target":
        return {
            "target": {"type": "string", "description": "Visible name of the element to act on, or to start from."},
            "target2": {"type": "string", "description": "Element where swipe or drag ends."},
        }
    point = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    unit = (
        f"each from 0 to {COORDINATE_MAX}" if coordinates == "relative" else "in pixels of the screenshot as you see it"
    )
    scale = f"[x, y], {unit}, [0, 0] is the top left corner."
    return {
        "coordinate": {**point, "description": f"Where to act, or to start from: {scale}"},
        "coordinate2": {**point, "description": f"Where swipe or drag ends: {scale}"},
    }
