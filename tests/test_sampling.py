import math

import pytest
import torch

from cua_agent.inference.sampling import sample


def one_row(probabilities: list[float], uniform: float, **changes: float | bool | list[int]) -> tuple[int, float]:
    tokens, logprobs = sample(
        torch.tensor([probabilities]).log(),
        torch.tensor([changes.get("temperature", 1.0)]),
        torch.tensor([changes.get("greedy", False)]),
        torch.tensor([uniform], dtype=torch.float64),
        torch.tensor(changes.get("banned", []), dtype=torch.long),
    )
    return int(tokens), float(logprobs)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.24, 0), (0.26, 1), (0.74, 1), (0.76, 2), (math.nextafter(1.0, 0.0), 2)]
)
def test_inverse_transform_sampling(uniform: float, token: int) -> None:
    probabilities = [0.25, 0.5, 0.25]
    assert one_row(probabilities, uniform) == (token, pytest.approx(math.log(probabilities[token])))


def test_temperature_one_half_squares_the_odds() -> None:
    """softmax(log p / 0.5) is p^2 normalised: 0.2, 0.8 becomes 1/17, 16/17."""
    assert one_row([0.2, 0.8], 0.05, temperature=0.5) == (0, pytest.approx(math.log(1 / 17), abs=1e-6))
    assert one_row([0.2, 0.8], 0.07, temperature=0.5) == (1, pytest.approx(math.log(16 / 17), abs=1e-6))


def test_banned_tokens_are_never_drawn_and_the_rest_is_renormalised() -> None:
    last = math.nextafter(1.0, 0.0)
    assert one_row([0.2, 0.2, 0.6], last, banned=[2]) == (1, pytest.approx(math.log(0.5)))
    assert one_row([0.6, 0.2, 0.2], 0.0, banned=[0]) == (1, pytest.approx(math.log(0.5)))
    assert one_row([0.2, 0.2, 0.6], 0.9, banned=[2], greedy=True)[0] == 0


def test_greedy_ignores_the_random_number() -> None:
    assert one_row([0.3, 0.6, 0.1], 0.99, greedy=True) == (1, pytest.approx(math.log(0.6)))
