"""The head runs where a token is trained, a few positions at a time, and gives the numbers of all logits at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cua_agent.models.policy import SpecialTokens
from tests.policy_rows import ragged_batch
from tests.tiny_random import build
from trainers.components import build_policy
from trainers.config import LoraConfig, LossConfig, ModelConfig, TrainConfig
from trainers.grpo import forward
from trainers.grpo.forward import score_hidden

WIDTH, VOCABULARY, BANNED = 8, 50, (0, 7, 49)
SPECIAL = SpecialTokens(image_token_id=0, end_of_turn_id=1, stop_ids=(1,), pad_id=2, banned=BANNED)


def by_the_book(head: nn.Module, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    allowed = [token for token in range(VOCABULARY) if token not in BANNED]
    distribution = (head(hidden).double() / temperature)[:, allowed].softmax(-1)
    places = torch.tensor([allowed.index(token) for token in tokens.tolist()])
    return distribution[torch.arange(len(tokens)), places].log(), torch.special.entr(distribution).sum(-1)


@pytest.mark.parametrize("count", [1, 4, 5, 11])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_chunks_give_scores_and_gradients_of_all_logits(
    count: int, entropy_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "HEAD_ROWS", 4)
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    hidden = torch.randn(count, WIDTH, requires_grad=True)
    tokens = torch.randint(1, 7, (count,))
    wanted = by_the_book(head, hidden, tokens, 0.7)
    scores = score_hidden(head, hidden, tokens, SPECIAL, 0.7, entropy_gradient=entropy_gradient)
    torch.testing.assert_close(scores.logprobs, wanted[0].float())
    torch.testing.assert_close(scores.entropy, wanted[1].float())
    gradients = []
    for logprobs, entropy in ((scores.logprobs, scores.entropy), wanted):
        total = logprobs.sum() + (entropy.sum() if entropy_gradient else 0)
        gradients.append(torch.autograd.grad(total, [hidden, head.weight], retain_graph=True))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logits_of_one_chunk_exist_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "HEAD_ROWS", 4)
    rows: list[int] = []

    class Head(nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            rows.append(len(states))
            return super().forward(states)

    hidden = torch.randn(10, WIDTH, requires_grad=True)
    scores = score_hidden(Head(WIDTH, VOCABULARY), hidden, torch.ones(10, dtype=torch.int64), SPECIAL, 1.0)
    assert rows == [4, 4, 2]
    scores.logprobs.sum().backward()
    assert sorted(rows) == [2, 2, 4, 4, 4, 4]  # again, chunk by chunk, in the backward pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def learner(weights: Path, tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("areal")
    from trainers.areal.process import prepare_process
    from trainers.areal.train.phase2_learner import Phase2Learner

    prepare_process(tmp_path)
    config = TrainConfig(
        backend="areal",
        phase=2,
        model=ModelConfig(path=str(weights)),
        lora=LoraConfig(enabled=True, r=4, dropout=0.5),
        loss=LossConfig(kl_coefficient=0.1),
    )
    config = replace(config, loader=replace(config.loader, gradient_checkpointing=True))
    with closing(Phase2Learner(build_policy(config), config)) as learner:
        yield learner


@pytest.mark.slow
def test_the_engine_s_head_sees_trained_positions_only_and_its_layers_train(learner: Any) -> None:
    states: list[int] = []
    modes: list[bool] = []
    base = learner._policy.base_model
    base.lm_head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].shape[1]))
    base.model.language_model.layers[0].register_forward_pre_hook(lambda layer, _: modes.append(layer.training))
    batch = ragged_batch(learner._policy)
    learner.update(batch)
    assert sum(states) == 2 * sum(int(row.loss_mask.sum()) for row in batch.trajectories)  # the reference, and training
    assert modes[0] is False  # the reference has no dropout
    assert modes[-1] is True  # else neither dropout nor gradient checkpointing would happen
    assert not learner._policy.model.training
