"""Every objective that AReaL has means the same there: its own functions against ours, on any tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.config import LossConfig, TrainConfig

pytest.importorskip("areal")

from areal.utils.functional import ppo_actor_loss_fn, sapo_loss_fn

from trainers.areal.config.translation import ppo_actor_config
from trainers.grpo.objectives import token_losses

DRIFT = st.sampled_from([-3.0, -0.6, -0.11, 0.0, 0.11, 0.6, 3.0])
ROWS = st.lists(st.lists(st.tuples(DRIFT, DRIFT), min_size=1, max_size=4), min_size=1, max_size=4)


@st.composite
def losses(draw):
    kind = draw(st.sampled_from(["ppo_clip", "sapo"]))
    metric = draw(st.sampled_from(["ratio", "k1", "k2", "k3"]))
    return LossConfig(
        kind=kind,
        ratio_level=draw(st.sampled_from(["token", "sequence"])),
        clip_epsilon_high=draw(st.sampled_from([None, 0.4])) if kind == "ppo_clip" else None,
        dual_clip=draw(st.sampled_from([None, 1.5])) if kind == "ppo_clip" else None,
        decoupled=kind == "ppo_clip" and draw(st.booleans()),
        behaviour_level=draw(st.sampled_from(["token", "sequence", "geometric"])),
        behaviour_metric=metric,
        behaviour_action=draw(st.sampled_from(["mask", "clamp"])) if metric == "ratio" else "mask",
        behaviour_weight_cap=draw(st.sampled_from([1.3, 4.0])),
        behaviour_weight_floor=draw(st.sampled_from([None, 0.5])),
    )


@settings(max_examples=300)
@given(rows=ROWS, advantages=st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=4, max_size=4), config=losses())
def test_areals_loss_and_gradient_are_ours(rows, advantages, config):
    tokens = torch.tensor([token for row in rows for token in row], dtype=torch.float32)
    numbers = torch.tensor([n for n, row in enumerate(rows) for _ in row])
    behaviour = torch.full((len(tokens),), -8.0)
    proximal = behaviour + tokens[:, 0]
    start = proximal if config.decoupled else behaviour
    weights = torch.tensor(advantages)[numbers]

    ours = (start + tokens[:, 1]).requires_grad_()
    loss = token_losses(ours, proximal, behaviour, weights, numbers, config).losses.mean()
    loss.backward()
    theirs = (start + tokens[:, 1]).requires_grad_()
    bounds = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()], dtype=torch.int32)
    expected = areals(theirs, start, behaviour, weights, bounds, config)
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def areals(logprobs, proximal, behaviour, advantages, bounds, config):
    """The loss as AReaL's actor computes it with the configuration that it is handed."""
    actor = ppo_actor_config(TrainConfig(loss=config))
    mask = torch.ones(len(logprobs), dtype=torch.bool)
    level = {"importance_sampling_level": actor.importance_sampling_level, "cu_seqlens": bounds}
    if actor.use_sapo_loss:
        gates = (actor.sapo_tau_pos, actor.sapo_tau_neg)
        return sapo_loss_fn(logprobs, behaviour, advantages, *gates, mask, **level)[0]
    return ppo_actor_loss_fn(
        logprobs=logprobs,
        proximal_logprobs=proximal,
        old_logprobs=behaviour,
        advantages=advantages,
        eps_clip=actor.eps_clip,
        eps_clip_higher=actor.eps_clip_higher,
        c_clip=actor.c_clip,
        loss_mask=mask,
        rejection_sampling=actor.rejection_sampling,
        **level,
    )[0]
