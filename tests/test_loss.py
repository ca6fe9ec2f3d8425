import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import LossConfig
from trainers.grpo.kl import k1, k3
from trainers.grpo.loss import LossInputs, LossSums, grpo_loss, token_coefficients
from trainers.grpo.objectives import cispo, policy_gradient, ppo_clip, sapo
from trainers.grpo.tokens import action_tokens

PPO = LossConfig(kind="ppo_clip", clip_epsilon=0.2)


def inputs(ratios, advantages, rows=None, **changes):
    """Tokens with the given ratios to an old policy of probability 1/2, averaged."""
    n = len(ratios)
    old = torch.full((n,), math.log(0.5))
    return LossInputs(
        logprobs=(old + torch.tensor(ratios).log()).requires_grad_(),
        old_logprobs=old,
        advantages=torch.tensor(advantages),
        coefficients=torch.full((n,), 1 / n, dtype=torch.float64),
        entropy=torch.zeros(n),
        rows=torch.arange(n) if rows is None else torch.tensor(rows),
        **changes,
    )


def test_ppo_clip_by_hand():
    # A > 0: ratio 1.5 is clipped to 1.2, 0.5 is not; A < 0: 0.5 is clipped to 0.8, 1.5 is not.
    loss = ppo_clip(torch.tensor([1.5, 0.5, 1.5, 0.5]), torch.tensor([2.0, 2.0, -1.0, -1.0]), 0.8, 1.2)
    torch.testing.assert_close(loss, torch.tensor([-2.4, -1.0, 1.5, 0.8]))
    metrics = grpo_loss(inputs([1.5, 0.5, 1.5, 0.5], [2.0, 2.0, -1.0, -1.0]), PPO).sums.metrics()
    assert (metrics["clip_fraction"], metrics["clip_fraction_high"]) == (0.5, 0.25)


def test_gradient_of_ppo_clip_by_hand():
    # d(-ratio A)/dlogp = -ratio A where unclipped, 0 where clipped
    tokens = inputs([1.5, 0.5, 1.5, 0.5], [2.0, 2.0, -1.0, -1.0])
    (4 * grpo_loss(tokens, PPO).loss).backward()
    torch.testing.assert_close(tokens.logprobs.grad, torch.tensor([0.0, -1.0, 1.5, 0.0]))


def gradient(tokens, config):
    """Loss and gradient of every token, without the division by their number."""
    n = len(tokens.logprobs)
    tokens.logprobs.grad = None
    loss = n * grpo_loss(tokens, config).loss
    loss.backward()
    return loss.item(), tokens.logprobs.grad.tolist()


def test_clip_higher_and_dual_clip_by_hand():
    # Allowed are ratios of 0.8 to 1.4. A > 0: 1.3 is within, 1.5 counts as 1.4. A < 0: 5 counts as 3, 2 as it is.
    tokens = inputs([1.3, 1.5, 5.0, 2.0], [1.0, 1.0, -1.0, -1.0])
    loss, grad = gradient(tokens, LossConfig(clip_epsilon_high=0.4, dual_clip=3.0))
    assert loss == pytest.approx(-1.3 - 1.4 + 3 + 2, rel=1e-6)
    assert grad == pytest.approx([-1.3, 0, 0, 2.0], rel=1e-6)
    metrics = grpo_loss(tokens, LossConfig(clip_epsilon_high=0.4, dual_clip=3.0)).sums.metrics()
    assert (metrics["clip_fraction"], metrics["clip_fraction_high"]) == (0.5, 0.5)


def test_gspo_takes_the_geometric_mean_of_a_rows_ratios():
    # Row 0: sqrt(0.5 * 2.88) = 1.2, within 1.25; row 1: 1.5, clipped to 1.25. Gradients spread evenly over a row.
    tokens = inputs([0.5, 1.5, 2.88], [1.0, 1.0, 1.0], rows=[0, 1, 0])
    loss, grad = gradient(tokens, LossConfig(ratio_level="sequence", clip_epsilon_high=0.25))
    assert loss == pytest.approx(-1.2 - 1.25 - 1.2, rel=1e-6)
    assert grad == pytest.approx([-1.2, 0, -1.2], rel=1e-6)


def test_sapo_by_hand():
    # sigmoid(0) = 1/2: at ratio 1 the loss is -2 A / t and its gradient that of the policy gradient.
    at_one = sapo(torch.ones(2), torch.tensor([1.0, -1.0]), 1.0, 2.0)
    assert at_one.tolist() == pytest.approx([-2.0, 1.0])
    tokens = inputs([1.0, 1.0], [3.0, -1.0])
    assert gradient(tokens, LossConfig(kind="sapo"))[1] == pytest.approx([-3.0, 1.0], rel=1e-6)
    # ratio 2, t = 1: 4 sigmoid(1) = 2.9242
    assert sapo(torch.tensor([2.0]), torch.tensor([1.0]), 1.0, 2.0).item() == pytest.approx(-2.92423, rel=1e-5)


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = cispo(logprobs, torch.tensor([3.0, 0.5]), torch.tensor([1.0, -2.0]), 0.8, 1.2)
    torch.testing.assert_close(loss, torch.tensor([1.2, -3.2]))  # 1.2 * 1 * 1; 0.8 * -2 * 2
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.2, 1.6]))


def test_policy_gradient_by_hand():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = policy_gradient(logprobs, torch.tensor([3.0, -0.5]))
    torch.testing.assert_close(loss, torch.tensor([3.0, -1.0]))
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-3.0, 0.5]))


def test_on_policy_both_losses_have_the_same_gradient():
    grads = []
    for kind in ("ppo_clip", "policy_gradient"):
        tokens = inputs([1.0, 1.0, 1.0], [1.0, -2.0, 0.5])
        grpo_loss(tokens, LossConfig(kind=kind)).loss.backward()
        grads.append(tokens.logprobs.grad)
    torch.testing.assert_close(*grads)


def test_an_absurd_ratio_stays_finite():
    tokens = replace(inputs([1.0, 1.0], [1.0, -1.0]), old_logprobs=torch.tensor([-500.0, -500.0]))
    out = grpo_loss(tokens, PPO)
    out.loss.backward()
    assert torch.isfinite(out.loss) and torch.isfinite(tokens.logprobs.grad).all()
    assert all(math.isfinite(value) for value in out.sums.metrics().values())


def test_kl_estimators_by_hand():
    # policy 0.5, reference 0.25: r = 1/2; k1 = log 2, k3 = (1/2 - 1) + log 2
    logprobs, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert k1(logprobs, reference).item() == pytest.approx(math.log(2), rel=1e-6)
    assert k3(logprobs, reference).item() == pytest.approx(math.log(2) - 0.5, rel=1e-6)


def test_kl_estimators_are_unbiased():
    policy, reference = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    exact = (policy * (policy / reference).log()).sum()
    for estimator in (k1, k3):
        torch.testing.assert_close((policy * estimator(policy.log(), reference.log())).sum(), exact)


@given(st.floats(-15, 0), st.floats(-15, 0))
def test_k3_is_never_negative(a, b):
    assert k3(torch.tensor([a]), torch.tensor([b])).item() >= 0


def test_kl_and_entropy_terms_enter_with_their_coefficients():
    tokens = replace(
        inputs([1.0, 1.0], [1.0, 1.0], reference_logprobs=torch.full((2,), math.log(0.25))),
        entropy=torch.tensor([0.4, 0.6]),
    )
    out = grpo_loss(tokens, LossConfig(kl_coefficient=0.1, kl_estimator="k1", entropy_coefficient=0.01))
    assert out.loss.item() == pytest.approx(-1 + 0.1 * math.log(2) - 0.01 * 0.5, rel=1e-6)
    metrics = out.sums.metrics()
    assert metrics["policy_loss"] == pytest.approx(-1)
    assert metrics["kl"] == pytest.approx(math.log(2), rel=1e-6)
    assert metrics["entropy"] == pytest.approx(0.5)


def test_metrics_by_hand():
    metrics = grpo_loss(inputs([1.5, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]), PPO).sums.metrics()
    assert metrics["logprob_gap"] == pytest.approx((1.5 + 2 + 1 + 1) / 4, rel=1e-6)  # exp|log 0.5| = 2
    assert metrics["ratio_max"] == pytest.approx(1.5, rel=1e-6)
    assert metrics["clip_fraction"] == 0.25
    assert metrics["tokens"] == 4
    assert "kl" not in metrics


def test_normalisation_by_hand():
    # Rows of 1 and 3 tokens with losses 4 and 1,1,1.
    losses = [torch.tensor([4.0]), torch.tensor([1.0, 1.0, 1.0])]

    def total(config, weights=(1.0, 1.0)):
        factors = token_coefficients([1, 3], weights, config)
        return sum(factor * row.sum().item() for factor, row in zip(factors, losses, strict=True))

    assert total(LossConfig(normalisation="token_mean")) == pytest.approx(7 / 4)
    assert total(LossConfig(normalisation="sequence_mean")) == pytest.approx((4 + 1) / 2)
    assert total(LossConfig(normalisation="constant", constant_length=10)) == pytest.approx((4 + 3) / 2 / 10)
    # Both rows belong to one episode: the mean of its rows' means; the constant divides one episode.
    halves = (0.5, 0.5)
    assert total(LossConfig(normalisation="sequence_mean"), halves) == pytest.approx((4 + 1) / 2)
    assert total(LossConfig(normalisation="constant", constant_length=10), halves) == pytest.approx((4 + 3) / 10)


def test_sequence_mean_counts_every_episode_once():
    # Episode a has two rows of weight 1/2 (means 4 and 2), episode b one row (mean 1): (3 + 1) / 2
    factors = token_coefficients([1, 1, 2], [0.5, 0.5, 1.0], LossConfig(normalisation="sequence_mean"))
    assert 4 * factors[0] + 2 * factors[1] + (0.5 + 1.5) * factors[2] == pytest.approx(2.0)


def test_a_batch_without_trained_tokens_is_refused():
    with pytest.raises(ValueError, match="none of the batch's 2 trajectories"):
        token_coefficients([0, 0], [1, 1], PPO)


def test_a_kl_coefficient_needs_a_reference():
    with pytest.raises(ValueError, match=r"loss.kl_coefficient=0.1"):
        grpo_loss(inputs([1.0], [1.0]), LossConfig(kl_coefficient=0.1))


finite = st.floats(-5, 5, width=32)


@st.composite
def split_batches(draw):
    rows = draw(st.lists(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=5), min_size=1, max_size=6))
    parts = draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    kind = draw(st.sampled_from(["ppo_clip", "sapo", "cispo", "policy_gradient"]))
    config = LossConfig(
        kind=kind,
        ratio_level="token" if kind == "policy_gradient" else draw(st.sampled_from(["token", "sequence"])),
        decoupled=draw(st.booleans()),
        behaviour_level=draw(st.sampled_from(["token", "sequence", "geometric"])),
        behaviour_action=draw(st.sampled_from(["mask", "clamp"])),
        behaviour_weight_cap=1.5,
        behaviour_weight_floor=draw(st.sampled_from([None, 0.6])),
        normalisation=draw(st.sampled_from(["token_mean", "sequence_mean", "constant"])),
        kl_coefficient=0.1,
        kl_estimator=draw(st.sampled_from(["k1", "k3"])),
        entropy_coefficient=0.01,
    )
    return rows, parts, config


@given(split_batches())
def test_any_split_gives_the_same_loss_gradient_and_metrics(case):
    rows, parts, config = case
    factors = token_coefficients([len(row) for row in rows], [1.0] * len(rows), config)
    table = torch.tensor([[*token, i] for i, row in enumerate(rows) for token in row])
    row_of = table[:, 3].long()
    logprobs = (-table[:, 0].abs()).requires_grad_()

    def run(masks):
        logprobs.grad = None
        total = LossSums()
        for mask in masks:
            micro = LossInputs(
                logprobs=logprobs[mask],
                old_logprobs=-table[mask, 1].abs(),
                advantages=table[mask, 2],
                coefficients=torch.tensor(factors, dtype=torch.float64)[row_of[mask]],
                entropy=logprobs[mask].exp(),
                rows=row_of[mask],
                proximal_logprobs=-table[mask, 0].abs(),
                reference_logprobs=-table[mask, 2].abs(),
            )
            out = grpo_loss(micro, config)
            out.loss.backward()
            total += out.sums
        return total, logprobs.grad.clone()

    whole, whole_grad = run([torch.ones(len(table), dtype=torch.bool)])
    part_of = torch.tensor(parts)[row_of]
    split, split_grad = run([part_of == part for part in sorted(set(parts))])
    scale = whole_grad.abs().max().item()
    torch.testing.assert_close(split_grad, whole_grad, rtol=1e-6, atol=1e-6 * scale)
    for name, value in whole.metrics().items():
        assert split.metrics()[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_actions_and_thoughts_have_an_entropy_of_their_own():
    some = replace(
        inputs([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
        entropy=torch.tensor([1.0, 2.0, 6.0]),
        actions=torch.tensor([False, True, True]),
    )
    metrics = (grpo_loss(some, LossConfig()).sums + grpo_loss(some, LossConfig()).sums).metrics()
    assert (metrics["entropy"], metrics["entropy_action"], metrics["entropy_thought"]) == (3.0, 4.0, 1.0)
    untold = grpo_loss(replace(some, actions=None), LossConfig()).sums.metrics()
    assert not {"entropy_action", "entropy_thought"} & untold.keys()
    assert (
        "entropy_action"
        not in grpo_loss(replace(some, actions=torch.zeros(3, dtype=bool)), LossConfig()).sums.metrics()
    )


def test_an_action_begins_with_its_call_in_every_turn_anew():
    call = 7
    ids = torch.tensor([[0, 1, call, 1, 0, 1, 1, 0, call, call], [0, call, 0, 1, 1, call, 0, 1, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1, 0, 1, 0, 0]])
    expected = [[0, 0, 1, 1, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]]
    assert action_tokens(ids, mask, call).int().tolist() == expected
    assert action_tokens(ids, mask, None) is None
