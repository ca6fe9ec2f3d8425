"""Token rows: prefixes, masks, screenshots and weights, for every context and any number of turns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cua_agent.conversation import Context, Conversation, EpisodeInfo
from cua_agent.inference.base import GenerateResponse
from cua_agent.trajectory import Outcome, Trajectory, Turn
from tests.agent_fakes import IMAGE_TOKENS, ByteCodec, pixels, response

CODEC = ByteCodec()
INFO = EpisodeInfo(1.0, Outcome.SUCCESS, "task", "group", "episode", 3)


def unique_answers(lengths: list[int], ended: list[bool]) -> list[GenerateResponse]:
    """Answers whose log-probs number every sampled token of the episode: -1, -2, ... (versions: the turn's index)."""
    answers, count = [], 0
    for turn, (length, end) in enumerate(zip(lengths, ended, strict=True)):
        ids = [97 + (count + i) % 26 for i in range(length)] + ([CODEC.special.end_of_turn_id] if end else [])
        logprobs = [-float(count + i + 1) for i in range(len(ids))]
        answers.append(GenerateResponse(ids, logprobs, [turn] * len(ids), "stop" if end else "length"))
        count += len(ids)
    return answers


def play(answers: list[GenerateResponse], context: Context, last_k: int) -> tuple[Conversation, list[list[int]]]:
    conversation, prompts = Conversation(CODEC, "S", context, last_k), []
    conversation.start("goal", pixels())
    for turn, answer in enumerate(answers):
        if turn:
            conversation.observe("", pixels(turn))
        prompts.append(conversation.prompt()[0])
        conversation.add_response(answer)
    return conversation, prompts


def placeholder_runs(row: Trajectory) -> int:
    is_image = np.concatenate([[0], (row.input_ids == CODEC.special.image_token_id).astype(int)])
    assert is_image.sum() == IMAGE_TOKENS * len(row.images)
    return int((np.diff(is_image) == 1).sum())


turns = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=8)


@settings(deadline=None)
@given(turns, st.sampled_from(["full", "last_k", "folded"]), st.integers(1, 4))
def test_rows_of_any_episode(lengths: list[tuple[int, bool]], context: Context, last_k: int) -> None:
    answers = unique_answers([n for n, _ in lengths], [end for _, end in lengths])
    conversation, prompts = play(answers, context, last_k)
    rows = conversation.to_trajectories(INFO)

    turn_of = range(len(answers))
    row_of = {
        "full": [0 for _ in turn_of],
        "last_k": [max(0, turn - last_k + 1) for turn in turn_of],
        "folded": [turn // last_k for turn in turn_of],
    }[context]
    assert len(rows) == row_of[-1] + 1
    assert sum(row.weight for row in rows) == pytest.approx(1)
    # Each sampled token is trained exactly once, with its own log-prob and version, in order.
    masks = [row.loss_mask.astype(bool) for row in rows]
    trained = [
        np.concatenate([getattr(row, name)[mask] for row, mask in zip(rows, masks, strict=True)])
        for name in ("input_ids", "logprobs", "versions")
    ]
    assert trained[0].tolist() == [i for answer in answers for i in answer.output_ids]
    assert trained[1].tolist() == [-float(i + 1) for i in range(len(trained[1]))]
    assert trained[2].tolist() == [v for answer in answers for v in answer.versions]
    for row, mask in zip(rows, masks, strict=True):
        assert (row.logprobs[~mask] == 0).all() and (row.versions[~mask] == -1).all()
        assert placeholder_runs(row) == len(row.images)
        if context != "full":
            assert len(row.images) <= last_k
    # Every prompt that was sampled from is the beginning of the row that trains its answer.
    for turn, prompt in enumerate(prompts):
        row = rows[row_of[turn]].input_ids.tolist()
        assert row[: len(prompt) + len(answers[turn].output_ids)] == prompt + answers[turn].output_ids


def test_full_context_by_hand() -> None:
    conversation, _ = play([response("a"), response("b", ended=False), response("c")], "full", 1)
    conversation.observe("never answered", pixels())
    (row,) = conversation.to_trajectories(INFO)
    image = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
    again = f"\n<|im_start|>user\n<tool_response>\nok\n</tool_response>{image}<|im_end|>\n<|im_start|>assistant\n"
    assert CODEC.decode(row.input_ids.tolist()) == (
        f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\ngoal{image}<|im_end|>\n<|im_start|>assistant\n"
        f"a<|im_end|>{again}b<|im_end|>{again}c<|im_end|>"
    )
    assert CODEC.decode(row.input_ids[row.loss_mask == 1].tolist()) == "a<|im_end|>bc<|im_end|>"
    assert [image[0, 0, 0] for image in row.images] == [0, 1, 2]
    assert (row.reward, row.outcome, row.task_id, row.group_id) == (1.0, Outcome.SUCCESS, "task", "group")
    assert (row.episode_id, row.seed, row.weight) == ("episode", 3, 1.0)


def test_last_k_keeps_old_text_and_drops_old_screenshots() -> None:
    records = [Turn(text, None, "", 0.0, 0.0) for text in "abc"]
    conversation, _ = play([response(text) for text in "abc"], "last_k", 2)
    first, second = conversation.to_trajectories(INFO, records)
    image = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
    again = "\n<|im_start|>user\n<tool_response>\nok\n</tool_response>" + image + "<|im_end|>\n<|im_start|>assistant\n"
    assert CODEC.decode(second.input_ids.tolist()) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\ngoal<|im_end|>\n<|im_start|>assistant\n"
        f"a<|im_end|>{again}b<|im_end|>{again}c<|im_end|>"
    )
    assert CODEC.decode(second.input_ids[second.loss_mask == 1].tolist()) == "c<|im_end|>"
    assert CODEC.decode(first.input_ids[first.loss_mask == 1].tolist()) == "a<|im_end|>b<|im_end|>"
    assert [[image[0, 0, 0] for image in row.images] for row in (first, second)] == [[0, 1], [1, 2]]
    assert [[turn.text for turn in row.turns] for row in (first, second)] == [["a", "b"], ["c"]]
    assert first.weight == second.weight == 0.5


def test_folded_lets_k_screenshots_go_at_a_time() -> None:
    conversation, _ = play([response(text) for text in "abcde"], "folded", 2)
    rows = conversation.to_trajectories(INFO)
    said = [CODEC.decode(row.input_ids[row.loss_mask == 1].tolist()) for row in rows]
    assert said == ["a<|im_end|>b<|im_end|>", "c<|im_end|>d<|im_end|>", "e<|im_end|>"]
    assert [[image[0, 0, 0] for image in row.images] for row in rows] == [[0, 1], [2, 3], [4]]
    for row, turns_before in zip(rows, ["", "ab", "abcd"], strict=True):
        context = CODEC.decode(row.input_ids[row.loss_mask == 0].tolist())
        assert [text for text in "abcde" if f"{text}<|im_end|>" in context] == list(turns_before)


@pytest.mark.parametrize(("context", "expected"), [("last_k", [0, 0, 1, 2]), ("folded", [0, 0, 1, 1])])
def test_rows_are_numbered_as_they_begin(context: Context, expected: list[int]) -> None:
    conversation = Conversation(CODEC, "S", context, 2)
    conversation.start("goal", pixels())
    seen = []
    for _ in range(4):
        seen.append(conversation.row)
        conversation.add_response(response("a"))
        conversation.observe("", pixels())
    assert seen == expected


def test_an_episode_without_answers_is_one_empty_row() -> None:
    for started in (False, True):
        conversation = Conversation(CODEC, "S")
        if started:
            conversation.start("goal", pixels())
        (row,) = conversation.to_trajectories(INFO)
        assert len(row) == 0 and row.images == [] and row.weight == 1


def test_answers_that_cannot_be_trained_on_are_refused() -> None:
    conversation = Conversation(CODEC, "S")
    conversation.start("goal", pixels())
    with pytest.raises(ValueError, match="image placeholder"):
        conversation.add_response(GenerateResponse([CODEC.special.image_token_id], [0.0], [0], "length"))
    with pytest.raises(ValueError, match="1 sampled tokens, 2 logprobs"):
        conversation.add_response(GenerateResponse([97], [0.0, 0.0], [0], "length"))
    with pytest.raises(ValueError, match="no model turn"):
        conversation.observe("", pixels())


def test_a_prompt_that_does_not_continue_the_row_is_an_error() -> None:
    conversation, _ = play([response("a")], "full", 1)
    conversation.observe("", pixels())
    conversation._exchanges[0].prompt[0] += 1
    with pytest.raises(AssertionError, match="turn 1"):
        conversation.prompt()
