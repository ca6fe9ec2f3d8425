import threading
from dataclasses import replace

import numpy as np
import pytest
import tiny_random
import torch
from hypothesis import given
from hypothesis import strategies as st
from policy_rows import ragged_batch, row

from cua_agent.models.loaders import load_policy
from trainers.config import LossConfig
from trainers.grpo.batching import Row, collate, micro_batches, split_packed, split_padded, weigh_rows
from trainers.grpo.prefetch import prefetched
from trainers.protocol import Batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load_policy(str(tiny_random.build(tmp_path_factory.mktemp("model"))))


def test_split_by_hand():
    # Longest first. Padded: 7 alone (2 * 7 > 12), 4 + 4 + 3 as 3 * 4 = 12, then 2. Packed: 7 + 4, then 4 + 3 + 2.
    assert split_padded([3, 7, 4, 2, 4], budget=12) == [[1], [2, 4, 0], [3]]
    assert split_packed([3, 7, 4, 2, 4], budget=12) == [[1, 2], [4, 0, 3]]


@pytest.mark.parametrize("split", [split_padded, split_packed])
def test_a_row_longer_than_the_budget_goes_alone(split):
    assert split([50, 5, 5], budget=10) == [[0], [1, 2]]


@pytest.mark.parametrize(
    ("split", "size"), [(split_padded, lambda group: len(group) * max(group)), (split_packed, sum)]
)
@given(lengths=st.lists(st.integers(1, 100), max_size=30), budget=st.integers(1, 300))
def test_every_row_once_and_within_budget(split, size, lengths, budget):
    groups = split(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or size([lengths[i] for i in group]) <= budget
    assert groups == split(lengths, budget)


@given(lengths=st.lists(st.integers(1, 100), max_size=30), budget=st.integers(1, 300))
def test_packing_leaves_no_two_micro_batches_half_empty(lengths, budget):
    sizes = [sum(lengths[i] for i in group) for group in split_packed(lengths, budget)]
    assert sum(2 * size <= budget for size in sizes) <= 1


def test_collate_pads_on_the_right_and_keeps_every_array(policy):
    batch = ragged_batch(policy)
    rows = [Row(t, a, 0.1 * i) for i, (t, a) in enumerate(zip(batch.trajectories, batch.advantages, strict=True))]
    micro = collate(policy, rows)
    longest = max(len(t) for t in batch.trajectories)
    assert micro.input_ids.shape == (5, longest) and micro.position_ids.shape == (3, 5, longest)
    assert (micro.input_ids.dtype, micro.position_ids.dtype, micro.loss_mask.dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )
    for i, t in enumerate(batch.trajectories):
        n = len(t)
        np.testing.assert_array_equal(micro.input_ids[i, :n], t.input_ids)
        np.testing.assert_array_equal(micro.loss_mask[i, :n], t.loss_mask == 1)
        np.testing.assert_array_equal(micro.old_logprobs[i, :n], t.logprobs)
        np.testing.assert_array_equal(micro.position_ids[:, i, :n], policy.positions(t.input_ids, t.images))
        assert micro.attention_mask[i].tolist() == [1] * n + [0] * (longest - n)
        assert (micro.input_ids[i, n:] == policy.special.pad_id).all() and not micro.loss_mask[i, n:].any()
        assert set(micro.advantages[i, :n].tolist()) == {batch.advantages[i]}
    assert micro.coefficients.tolist() == [0.0, 0.1, 0.2, pytest.approx(0.3), 0.4]
    images = [image for t in batch.trajectories for image in t.images]
    assert micro.image_bytes.dtype == torch.uint8
    assert torch.equal(policy.pixel_values(micro.image_bytes, micro.image_grid_thw), policy.pixels(images)[0])
    assert len(micro.image_grid_thw) == len(images) == 6
    assert micro.lengths == tuple(len(t) for t in batch.trajectories)
    assert len(micro.trained_at) == 16
    assert torch.equal(micro.of_trained(micro.input_ids), micro.input_ids[micro.loss_mask])
    assert torch.equal(micro.rows, micro.loss_mask.nonzero()[:, 0])


def test_rows_without_screenshots_have_no_pixels(policy):
    micro = collate(policy, [Row(row(policy, 0, [(0, 0, 2)]), 1.0, 1.0)]).to("cpu")
    assert micro.image_bytes is None and micro.image_grid_thw is None


def test_micro_batches_train_every_token_once(policy):
    batch = ragged_batch(policy)
    micros = list(micro_batches(policy, batch, LossConfig(), budget=150))
    assert len(micros) > 1
    assert sum(len(m.input_ids) for m in micros) == 5
    assert sum(int(m.loss_mask.sum()) for m in micros) == 16
    assert all(m.coefficients.tolist() == [1 / 16] * len(m.input_ids) for m in micros)
    assert sorted(a for m in micros for a in m.advantages[:, 0].tolist()) == sorted(batch.advantages)


def test_the_next_is_made_while_one_is_worked_on_and_all_come_in_order():
    begun, worked_on = threading.Event(), []

    def second() -> str:
        begun.set()
        return "second"

    for made in prefetched([lambda: "first", second, lambda: "third"], CPU):
        worked_on.append(made)
        assert begun.wait(30)
    assert worked_on == ["first", "second", "third"]
    assert list(prefetched([], CPU)) == []


def test_what_goes_wrong_ahead_of_time_is_raised_when_its_turn_comes():
    coming = prefetched([lambda: 1, lambda: 1 // 0], CPU)
    assert next(coming) == 1
    with pytest.raises(ZeroDivisionError):
        next(coming)


def test_weights_reach_the_coefficients(policy):
    rows = [replace(row(policy, 0, [(0, 0, 2)]), weight=0.5), replace(row(policy, 1, [(0, 0, 4)]), weight=0.5)]
    weighted = weigh_rows(Batch(rows, [1.0, 1.0]), LossConfig(normalisation="sequence_mean"))
    assert [r.coefficient for r in weighted] == [0.5 / 2, 0.5 / 4]


def test_a_dropped_screenshot_is_an_error(policy):
    good = row(policy, 0, [(64, 64, 2), (64, 64, 2)])
    with pytest.raises(ValueError, match=r"episode 'episode-0': 8 image placeholders, but its 1 images give 4"):
        collate(policy, [Row(replace(good, images=good.images[:1]), 1.0, 1.0)])


def test_tokens_that_cannot_be_trained_are_refused(policy):
    good = row(policy, 0, [(0, 0, 2)])
    first = good.loss_mask.copy()
    first[0] = 1
    with pytest.raises(ValueError, match="covers the first token"):
        collate(policy, [Row(replace(good, loss_mask=first), 1.0, 1.0)])
    banned = policy.special.banned[0]
    ids = np.where(good.loss_mask == 1, banned, good.input_ids)
    with pytest.raises(ValueError, match=f"trains on token {banned}, which the policy never samples"):
        collate(policy, [Row(replace(good, input_ids=ids), 1.0, 1.0)])
