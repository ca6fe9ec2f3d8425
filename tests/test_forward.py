import pytest
import tiny_random
import torch
from policy_rows import ragged_batch

from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from trainers.config import LossConfig
from trainers.grpo.batching import Row, collate, micro_batches
from trainers.grpo.forward import loss_inputs, reference_logprobs, score_tokens
from trainers.grpo.gradients import accumulate_gradients

TEMPERATURE = 0.7


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def checkpoint(request, tmp_path_factory):
    return str(tiny_random.build(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(params=["full", "lora"])
def policy(request, checkpoint):
    lora = LoraSpec(r=4, alpha=8) if request.param == "lora" else None
    policy = load_policy(checkpoint, lora=lora, keep_reference=True)
    if lora:
        disturb(policy)  # a fresh adapter would change nothing
    return policy


def disturb(policy):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def only_micro_batch(policy):
    (micro,) = micro_batches(policy, ragged_batch(policy), LossConfig(), budget=10_000)
    return micro


def naive_scores(policy, trajectory):
    """Token by token from the full logits of one row, through the model's own forward."""
    micro = collate(policy, [Row(trajectory, 1.0, 1.0)])
    with torch.no_grad():
        logits = policy.model(
            input_ids=micro.input_ids,
            attention_mask=micro.attention_mask,
            position_ids=micro.position_ids,
            pixel_values=None
            if micro.image_bytes is None
            else policy.pixel_values(micro.image_bytes, micro.image_grid_thw),
            image_grid_thw=micro.image_grid_thw,
        ).logits[0]
    logprobs, entropies = [], []
    for position in range(1, len(trajectory)):
        if trajectory.loss_mask[position]:
            scaled = logits[position - 1].double() / TEMPERATURE
            scaled[list(policy.special.banned)] = -torch.inf
            distribution = torch.distributions.Categorical(logits=scaled)
            logprobs.append(distribution.log_prob(torch.tensor(trajectory.input_ids[position])).item())
            entropies.append(torch.special.entr(distribution.probs).sum().item())
    return logprobs, entropies


def test_scores_equal_a_naive_forward_of_each_row_alone(policy):
    micro = only_micro_batch(policy)
    scores = score_tokens(policy, micro, TEMPERATURE)
    order = sorted(ragged_batch(policy).trajectories, key=lambda t: -len(t))
    naive = [naive_scores(policy, t) for t in order]
    for mine, expected in (
        (scores.logprobs, [x for logprobs, _ in naive for x in logprobs]),
        (scores.entropy, [x for _, entropies in naive for x in entropies]),
    ):
        assert mine.dtype == torch.float32 and mine.shape == (16,)
        torch.testing.assert_close(mine.detach().double(), torch.tensor(expected).double(), rtol=1e-5, atol=2e-5)


def test_entropy_has_a_gradient_only_on_request(policy):
    micro = only_micro_batch(policy)
    assert not score_tokens(policy, micro, 1.0).entropy.requires_grad
    entropy = score_tokens(policy, micro, 1.0, entropy_gradient=True).entropy
    gradients = torch.autograd.grad(entropy.sum(), [p for _, p in policy.trainable_parameters()], allow_unused=True)
    assert all(g is None or torch.isfinite(g).all() for g in gradients)
    assert any(g is not None and g.abs().max() > 0 for g in gradients)


def test_images_reach_the_scores(policy):
    micro = only_micro_batch(policy)
    before = score_tokens(policy, micro, 1.0).logprobs
    micro.image_bytes.bitwise_not_()
    assert (score_tokens(policy, micro, 1.0).logprobs - before).abs().max() > 1e-3


def test_reference_is_the_policy_as_it_was_loaded(policy, checkpoint):
    if not policy.has_adapter:
        disturb(policy)
    micro = only_micro_batch(policy)
    original = score_tokens(load_policy(checkpoint), micro, 1.0).logprobs
    reference = reference_logprobs(policy, micro, 1.0)
    assert not reference.requires_grad
    torch.testing.assert_close(reference, original.detach(), rtol=0, atol=1e-5)
    assert (score_tokens(policy, micro, 1.0).logprobs - reference).abs().max() > 1e-2


def test_loss_inputs_line_up_with_the_rollout(policy):
    micro = only_micro_batch(policy)
    inputs = loss_inputs(micro, score_tokens(policy, micro, 1.0))
    batch = ragged_batch(policy)
    rows = sorted(zip(batch.trajectories, batch.advantages, strict=True), key=lambda pair: -len(pair[0]))
    assert inputs.advantages.tolist() == [a for t, a in rows for _ in range(t.loss_mask.sum())]
    assert inputs.old_logprobs.tolist() == [p for t, _ in rows for p in t.logprobs[t.loss_mask == 1].tolist()]


@pytest.mark.parametrize("normalisation", ["token_mean", "sequence_mean", "constant"])
def test_the_micro_batch_budget_changes_neither_loss_nor_gradient(policy, normalisation):
    config = LossConfig(normalisation=normalisation, constant_length=4, kl_coefficient=0.05, entropy_coefficient=0.01)
    batch = ragged_batch(policy)

    def run(budget):
        policy.model.zero_grad()
        sums = accumulate_gradients(policy, batch, config, temperature=TEMPERATURE, micro_batch_tokens=budget)
        return sums.metrics(), {n: p.grad.clone() for n, p in policy.trainable_parameters() if p.grad is not None}

    metrics, gradients = run(10_000)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    assert norm > 1e-2
    for budget in (1, 200):
        other_metrics, other_gradients = run(budget)
        assert other_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
        assert other_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (other_gradients[name] - gradient).norm().item() < 1e-5 * norm, name
