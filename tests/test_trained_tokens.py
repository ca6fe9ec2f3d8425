"""AReaL's advantages of the last trained token of a row are those of all its tokens, asked for one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("areal")

from areal.trainer.ppo.actor import PPOActor

from trainers.areal.config.translation import ppo_actor_config
from trainers.areal.train.ppo_actor import LastTokens
from trainers.config import LossConfig, TrainConfig

ROW = st.lists(st.booleans(), min_size=2, max_size=9).map(lambda trained: [False, *trained, True])
"""Ends with a trained token: where it does not, AReaL loses the reward."""


def advantages(group: dict[str, Any], decoupled: bool) -> dict[str, Any]:
    config = TrainConfig(loss=LossConfig(decoupled=decoupled))
    actor = PPOActor(ppo_actor_config(config), SimpleNamespace())
    actor.reward_norm = None
    return dict(actor.compute_advantages([dict(group)])[0])


def group_of(rows: list[list[bool]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    there = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    mask = torch.tensor([row + [False] * (width - len(row)) for row in rows]).int()
    generator = torch.Generator().manual_seed(len(rows) * width)
    return {
        "input_ids": torch.randint(0, 9, mask.shape, generator=generator),
        "attention_mask": there,
        "loss_mask": mask,
        "logprobs": torch.randn(mask.shape, generator=generator) * mask,
        "rewards": torch.randn(len(rows), generator=generator),
    }


@settings(deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=4), decoupled=st.booleans())
def test_they_are_those_of_whole_rows(rows: list[list[bool]], decoupled: bool) -> None:
    group = group_of(rows)
    wanted = advantages(group, decoupled)
    last = LastTokens(group["loss_mask"])
    found = last.put_back(advantages(last.of(group), decoupled), group)
    assert found.keys() == wanted.keys()
    predicts = group["loss_mask"].roll(-1, dims=-1).bool()
    for name in ("advantages", "logprobs", "tot_rewards", "kl_rewards", "returns", *({"prox_logp"} & wanted.keys())):
        assert torch.equal(found[name][predicts], wanted[name][predicts]), name
        assert not found[name][~predicts].any()
    assert torch.equal(found["loss_mask"], wanted["loss_mask"])
    for name in ("input_ids", "attention_mask", "rewards"):
        assert torch.equal(found[name], group[name])


def test_a_row_that_ends_with_a_prompt_keeps_its_reward_and_one_without_trained_tokens_has_none() -> None:
    group = group_of([[False, True, True, False, False], [False, False, False]])
    last = LastTokens(group["loss_mask"])
    found = last.put_back(advantages(last.of(group), True), group)
    assert found["advantages"][0].tolist() == [group["rewards"][0], group["rewards"][0], 0, 0, 0]
    assert not found["advantages"][1].any()


def test_no_row_trains_a_token() -> None:
    group = group_of([[False, False], [False, False, False]])
    last = LastTokens(group["loss_mask"])
    assert not last.put_back(advantages(last.of(group), True), group)["advantages"].any()
