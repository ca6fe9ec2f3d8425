"""Prefills: which conversations share a forward pass."""

from hypothesis import given
from hypothesis import strategies as st

from cua_agent.inference.prefill_batches import PASS_TOKENS, prefill_batches


def cost(lengths: list[int], batches: list[list[int]]) -> int:
    return sum(PASS_TOKENS + len(batch) * max(lengths[i] for i in batch) for batch in batches)


def test_rows_of_like_lengths_share_a_pass() -> None:
    assert prefill_batches([300, 20, 310, 25, 22], most=4096) == [[1, 4, 3], [0, 2]]


def test_a_pass_of_its_own_has_to_be_worth_it() -> None:
    assert prefill_batches([40, 41, 50, 60], most=4096) == [[0, 1, 2, 3]]


def test_a_row_beyond_the_budget_goes_alone() -> None:
    assert prefill_batches([10, 500, 10], most=100) == [[0, 2], [1]]


def test_nothing_waits() -> None:
    assert prefill_batches([], most=100) == []


@given(st.lists(st.integers(1, 400), max_size=40), st.integers(1, 2000))
def test_every_row_once_within_the_budget_and_never_dearer_than_all_together_or_each_alone(
    lengths: list[int], most: int
) -> None:
    batches = prefill_batches(lengths, most)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most for batch in batches)
    if lengths and len(lengths) * max(lengths) <= most:
        assert cost(lengths, batches) <= cost(lengths, [list(range(len(lengths)))])
    assert cost(lengths, batches) <= cost(lengths, [[i] for i in range(len(lengths))])
