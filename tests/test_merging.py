"""Merging an adapter, tensor by tensor."""

import torch

from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.merging import Factors, _merged, adapter_factors, merged_weights
from tests.vllm_rig import change, checkpoint


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    factor = Factors(down=torch.tensor([[1.0, -1.0]]), up=torch.tensor([[2.0], [0.5]]), scale=0.5)
    assert _merged(weight, factor).tolist() == [[2.0, 1.0], [3.25, 3.75]]


def test_the_merged_model_is_the_adapted_one() -> None:
    adapted, plain = load_policy(checkpoint(), lora=LoraSpec(r=4)), load_policy(checkpoint())
    change(adapted)
    weights = dict(merged_weights(adapted, adapter_factors(adapted)))
    parameters = dict(plain.model.named_parameters())
    assert set(weights) == set(parameters)
    assert any(not torch.equal(weights[name], parameter) for name, parameter in parameters.items())
    plain.load_trained(weights)
    ids = torch.tensor([[10, 11, 12, 13]])
    difference = adapted.model(input_ids=ids).logits - plain.model(input_ids=ids).logits
    assert float(difference.detach().abs().max()) < 1e-4


def test_factors_stay_what_they_were() -> None:
    policy = load_policy(checkpoint(), lora=LoraSpec(r=4))
    factors = adapter_factors(policy)
    before = dict(merged_weights(policy, factors))
    change(policy)
    after = dict(merged_weights(policy, factors))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_an_adapter_weights_are_the_models_own() -> None:
    policy = load_policy(checkpoint())
    assert adapter_factors(policy) == {}
    assert [name for name, _ in merged_weights(policy, {})] == [name for name, _ in policy.model.named_parameters()]
