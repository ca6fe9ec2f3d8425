"""The correction for tokens of other policies, by hand."""

import math

import pytest
import torch

from trainers.config import LossConfig
from trainers.grpo.correction import behaviour_correction

RATIOS = [0.25, 4.0, 8.0, 2.0]
ROWS = [0, 0, 1, 1]


def corrected(config, ratios=RATIOS, rows=ROWS):
    behaviour = torch.full((len(ratios),), -10.0)
    proximal = behaviour + torch.tensor(ratios).log()
    out = behaviour_correction(
        proximal,
        behaviour,
        torch.tensor(rows),
        LossConfig(decoupled=True, **{f"behaviour_{key}": value for key, value in config.items()}),
    )
    return out.weights.tolist(), out.cut.tolist()


@pytest.mark.parametrize(
    ("config", "weights", "cut"),
    [
        # Every token by itself.
        ({"weight_cap": 3.0}, [0.25, 0, 0, 2.0], [0, 1, 1, 0]),
        ({"weight_cap": 3.0, "weight_floor": 0.5}, [0, 0, 0, 2.0], [1, 1, 1, 0]),
        (
            {"weight_cap": 3.0, "weight_floor": 0.5, "action": "clamp"},
            [0.5, 3.0, 3.0, 2.0],
            [1, 1, 1, 0],
        ),
        # Geometric means are 1 and 4; the products 1 and 16.
        ({"level": "geometric", "weight_cap": 3.0}, [1, 1, 0, 0], [0, 0, 1, 1]),
        ({"level": "geometric", "weight_cap": 5.0}, [1, 1, 4, 4], [0, 0, 0, 0]),
        ({"level": "sequence", "weight_cap": 5.0}, [1, 1, 0, 0], [0, 0, 1, 1]),
        ({"level": "geometric", "weight_cap": 3.0, "action": "clamp"}, [1, 1, 3, 3], [0, 0, 1, 1]),
        # k2 = (log r)^2 / 2: 0.96, 0.96, 2.16, 0.24; sums 1.92 and 2.40.
        ({"metric": "k2", "weight_cap": 1.0}, [0.25, 4.0, 0, 2.0], [0, 0, 1, 0]),
        ({"metric": "k2", "level": "sequence", "weight_cap": 2.0}, [0.25, 4.0, 0, 0], [0, 0, 1, 1]),
        # k3 = 1/r - 1 + log r: 1.61, 0.64, 1.20, 0.19.
        ({"metric": "k3", "weight_cap": 1.0}, [0, 4.0, 0, 2.0], [1, 0, 1, 0]),
        # k1 = log r.
        ({"metric": "k1", "weight_cap": 1.5, "weight_floor": 0.0}, [0, 4.0, 0, 2.0], [1, 0, 1, 0]),
    ],
)  # fmt: skip
def test_by_hand(config, weights, cut):
    found, found_cut = corrected(config)
    assert found == pytest.approx(weights, rel=1e-5)
    assert found_cut == [bool(c) for c in cut]


def test_a_weight_that_is_not_a_number_stays_visible():
    assert math.isnan(corrected({}, ratios=[math.nan, 1.0], rows=[0, 0])[0][0])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"behaviour_weight_cap": 0.5}, "behaviour_weight_cap=0.5: above 1"),
        ({"behaviour_weight_floor": 1.5}, "behaviour_weight_floor=1.5: between 0 and 1"),
        ({"behaviour_metric": "k3", "behaviour_action": "clamp"}, "only ratio with behaviour_action=clamp"),
        ({"kind": "sapo", "dual_clip": 3.0}, "dual_clip=3 with kind=sapo"),
        ({"kind": "policy_gradient", "ratio_level": "sequence"}, "kind=policy_gradient has no ratio"),
        ({"kind": "sapo", "clip_epsilon_high": 0.3}, "kind=sapo does not clip"),
    ],
)
def test_what_would_have_no_effect_is_refused(keys, words):
    with pytest.raises(ValueError, match=words):
        LossConfig(**keys)
