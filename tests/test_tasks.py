"""Tasks: what can be constructed, what is held out, and seeds that never meet."""

from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.envs.registry import BUILT_IN
from cua_agent.tasks import CUATask, EvalSplit, Probe, SeedUse, get_eval_tasks, get_training_tasks, seed_for

USES = get_args(SeedUse)


class Holds:
    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        return 1.0


class ScoreOnly:
    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        return 1.0


class NotCallable(Holds):
    snapshot = "a snapshot"


FIELDS = {
    "id": "wifi/on",
    "name": "wifi on",
    "description": "Turn Wi-Fi on.",
    "difficulty": "easy",
    "category": "wifi",
    "max_steps": 5,
    "validation": Holds(),
}


@pytest.mark.parametrize("validation", [None, "score", object(), ScoreOnly(), NotCallable()])
def test_a_task_without_a_validator_cannot_be_constructed(validation: Any) -> None:
    with pytest.raises(ValueError, match=r"task 'wifi/on' has no validator"):
        CUATask(**FIELDS | {"validation": validation})
    with pytest.raises(TypeError, match="validation"):
        CUATask(**{key: value for key, value in FIELDS.items() if key != "validation"})


@pytest.mark.parametrize("field", ["id", "name", "description", "category"])
def test_no_field_is_empty(field: str) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        CUATask(**FIELDS | {field: ""})


@pytest.mark.parametrize("max_steps", [0, -1])
def test_a_task_has_a_turn_at_least(max_steps: int) -> None:
    with pytest.raises(ValueError, match=f"max_steps={max_steps} must be at least 1"):
        CUATask(**FIELDS | {"max_steps": max_steps})
    assert CUATask(**FIELDS | {"max_steps": 1}).max_steps == 1


INDICES = st.integers(0, 999_999_999)


@given(first=st.tuples(st.sampled_from(USES), INDICES), second=st.tuples(st.sampled_from(USES), INDICES))
def test_no_seed_belongs_to_two_uses_or_comes_twice(first: tuple[SeedUse, int], second: tuple[SeedUse, int]) -> None:
    assert (seed_for(*first) == seed_for(*second)) == (first == second)


def test_the_ranges_of_seeds_touch_but_do_not_overlap() -> None:
    assert [(seed_for(use, 0), seed_for(use, 999_999_999)) for use in USES] == [
        (0, 999_999_999),
        (1_000_000_000, 1_999_999_999),
        (2_000_000_000, 2_999_999_999),
    ]


@pytest.mark.parametrize("index", [-1, 1_000_000_000])
def test_a_seed_outside_its_range_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"seed index {index} is outside"):
        seed_for("eval", index)


@pytest.mark.parametrize("env", sorted({*BUILT_IN} - {"mobilegym"}))  # whose tasks are in a checkout of its own
def test_ids_are_unique_and_stable(env: str) -> None:
    for tasks in (get_training_tasks(env), get_eval_tasks(env, "seeds"), get_eval_tasks(env, "templates")):
        assert len({task.id for task in tasks}) == len(tasks)
    assert get_training_tasks(env) and get_eval_tasks(env, "seeds")  # without templates the seeds stand for them
    assert [task.id for task in get_training_tasks(env)] == [task.id for task in get_training_tasks(env)]


@pytest.mark.parametrize("split", get_args(EvalSplit))
def test_every_task_of_the_phone_can_be_told_from_the_others_by_its_words(split: EvalSplit) -> None:
    tasks = get_eval_tasks(split=split)
    assert len({task.description for task in tasks}) == len(tasks)


def test_unseen_seeds_are_of_the_training_goals() -> None:
    assert get_eval_tasks(split="seeds") == get_training_tasks()


def test_unseen_templates_share_no_words_with_training() -> None:
    trained, held_out = get_training_tasks(), get_eval_tasks(split="templates")
    assert not {task.description for task in trained} & {task.description for task in held_out}
    assert not {task.id for task in trained} & {task.id for task in held_out}
    # Every trained family has held-out wordings of every goal, and there is a combination that is never trained.
    assert {task.validation for task in trained} < {task.validation for task in held_out}
    assert {task.category for task in held_out} - {task.category for task in trained} == {"toggle_and_brightness"}


def test_the_same_goal_is_validated_alike_in_all_wordings() -> None:
    tasks = get_training_tasks() + get_eval_tasks(split="templates")
    by_goal: dict[str, set[Any]] = {}
    for task in tasks:
        by_goal.setdefault(task.id.rpartition("/")[0], set()).add(task.validation)
    assert {len(validations) for validations in by_goal.values()} == {1}
    assert len(by_goal) == 73  # 8 switches, 24 pairs, 3 levels, 2 timeouts, 4 single goals, 8 alarms, 24 combinations


@pytest.mark.parametrize("env", sorted({*BUILT_IN} - {"mobilegym"}))  # whose tasks are in a checkout of its own
def test_a_goal_is_a_sentence_without_blanks_to_fill(env: str) -> None:
    for task in get_training_tasks(env) + get_eval_tasks(env, "templates"):
        assert "{" not in task.description and task.description == task.description.strip()
