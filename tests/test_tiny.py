"""The built-in tiny model as it is shipped: its files, its tokenizer and its chat template."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cua_agent import actions, prompts
from cua_agent.actions import Action, Button, Direction, Point, Target
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.state import (
    ALARM_TIMES,
    APPS,
    BATTERY_SAVER,
    DIALOGS,
    NAMES,
    SETTINGS_ROWS,
    TIMEOUTS,
    WORDS,
    make_state,
)
from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel
from cua_agent.models.sources import TINY_WEIGHTS
from cua_agent.models.tiny import PHRASES, SPECIAL_TOKENS, TAG_TOKENS, build_model, build_tokenizer, save_tiny
from cua_agent.parsing import render_tool_call
from cua_agent.prompts import END_OF_TURN
from cua_agent.tasks import get_eval_tasks, get_training_tasks

MEGABYTE = 1024**2
MOST_TOKENS = 12  # of a call, the end of the turn included


@pytest.fixture(scope="module")
def tiny() -> PolicyModel:
    return load_policy("tiny")


def test_the_shipped_model_is_small_and_complete(tiny: PolicyModel) -> None:
    assert sum(file.stat().st_size for file in TINY_WEIGHTS.iterdir()) < 15 * MEGABYTE
    assert type(tiny.model).__name__ == "Qwen3VLForConditionalGeneration"
    assert type(tiny.model).__module__.startswith("transformers.")
    parameters = list(tiny.model.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert 1e6 < sum(parameter.numel() for parameter in parameters) < 7e6
    assert all(parameter.isfinite().all() for parameter in parameters)


def test_a_phones_screen_costs_28_tokens_and_is_seen(tiny: PolicyModel) -> None:
    screens = [np.asarray(draw(make_state(seed, "shuffled"))) for seed in range(2)]
    n = tiny.image_tokens(*screens[0].shape[:2])
    assert n == 28
    ids = tiny.encode(prompts.first_prompt(prompts.system_prompt("brief", "target"), "Open the starred contact.", n))
    assert ids.count(tiny.special.image_token_id) == n

    def logits(screen: np.ndarray) -> torch.Tensor:
        values, grids = tiny.pixels([screen])
        positions = torch.from_numpy(tiny.positions(ids, [screen]))[:, None]
        with torch.no_grad():
            return tiny.model(
                input_ids=torch.tensor([ids]), position_ids=positions, pixel_values=values, image_grid_thw=grids
            ).logits[0, -1]

    first, second = map(logits, screens)
    assert first.isfinite().all()
    assert not torch.allclose(first, second)


NAMED = (
    *APPS,
    *SETTINGS_ROWS,
    BATTERY_SAVER,
    *TIMEOUTS,
    *ALARM_TIMES,
    *NAMES,
    *DIALOGS.values(),
    "Home",
    "Back",
    "+",
    "-",
)


def test_the_calls_that_tasks_need_cost_few_tokens(tiny: PolicyModel) -> None:
    calls: list[Action] = [
        *(actions.Tap(Target(name)) for name in NAMED),
        *(actions.TypeText(word, Target("Address bar"), press_enter=True) for word in WORDS),
        *(actions.Scroll(direction) for direction in Direction),
        *(actions.PressButton(button) for button in (Button.HOME, Button.BACK)),
        actions.Tap(Point(512, 1000)),
        actions.TypeText("river"),
        actions.PressKey("enter"),
        actions.Wait(2),
        actions.ReportTaskComplete(),
    ]
    lengths = {action: len(tiny.encode(render_tool_call(action) + END_OF_TURN)) for action in calls}
    assert {action: n for action, n in lengths.items() if n > MOST_TOKENS} == {}


@pytest.mark.parametrize("before", ["", "[", " ", '": ['])
def test_numbers_are_single_tokens(tiny: PolicyModel, before: str) -> None:
    start = len(tiny.encode(before))
    for number in range(1001):
        assert len(tiny.encode(f"{before}{number}")) == start + 1


def test_goals_are_short(tiny: PolicyModel) -> None:
    lengths = [len(tiny.encode(task.description)) for task in get_training_tasks() + get_eval_tasks(split="templates")]
    assert max(lengths) <= 30


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_makes_the_round_trip(tiny: PolicyModel, text: str) -> None:
    ids = tiny.encode(text)
    assert tiny.decode(ids) == text
    assert max(ids, default=0) < len(tiny.tokenizer)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    parts=st.lists(
        st.sampled_from([*PHRASES, *SPECIAL_TOKENS, *TAG_TOKENS, "Wi-Fi", " on", "1000", "é", "\n"]), max_size=12
    )
)
def test_text_with_markup_makes_the_round_trip(tiny: PolicyModel, parts: list[str]) -> None:
    assert tiny.decode(tiny.encode("".join(parts))) == "".join(parts)


def test_special_tokens_and_tags_are_single_tokens(tiny: PolicyModel) -> None:
    for token in (*SPECIAL_TOKENS, *TAG_TOKENS, *PHRASES):
        assert len(tiny.encode(token)) == 1, token
    assert tiny.decode([tiny.special.end_of_turn_id]) == END_OF_TURN
    assert not set(tiny.encode("<tool_call></tool_call>")) & set(tiny.special.banned)


@pytest.mark.parametrize("grounding", get_args(prompts.Grounding))
@pytest.mark.parametrize("style", get_args(prompts.PromptStyle))
def test_the_shipped_chat_template_is_what_the_agent_writes(
    tiny: PolicyModel, style: prompts.PromptStyle, grounding: prompts.Grounding
) -> None:
    first = render_tool_call(actions.Tap(Target("Settings")))
    ours = (
        prompts.first_prompt(prompts.system_prompt(style, grounding), "Turn Wi-Fi on.", 1)
        + first
        + END_OF_TURN
        + prompts.next_prompt("", 1, ended=True)
    )
    messages = [
        {"role": "system", "content": prompts.preamble(style)},
        {"role": "user", "content": [{"type": "text", "text": "Turn Wi-Fi on."}, {"type": "image"}]},
        {"role": "assistant", "content": first},
        {
            "role": "user",
            "content": [{"type": "text", "text": "<tool_response>\nok\n</tool_response>"}, {"type": "image"}],
        },
    ]
    tools = prompts.tool_schemas(grounding) if style == "full" else None
    rendered = tiny.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    assert rendered == ours


def test_a_tiny_model_is_rebuilt_the_same_from_a_seed(tmp_path: Path) -> None:
    words = ["Wi-Fi", "Settings", "on", "off"]
    policies = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tokenizer = build_tokenizer(["Turn Wi-Fi on", "Open Settings"], words)
        save_tiny(tmp_path / name, build_model(tokenizer, seed, hidden=64, layers=1, vision_depth=1), tokenizer)
        policies.append(load_policy(str(tmp_path / name)))
    first, same, other = (policy.model.state_dict() for policy in policies)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    assert policies[0].model.config.text_config.hidden_size == 64
    assert len(policies[0].encode(" Settings")) == 1
