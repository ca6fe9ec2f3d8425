"""How long an action takes: stands for the round trip to a cloud box."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Latency:
    """Seconds per action. `constant`: always the mean. `lognormal`: heavy-tailed around the same mean, seeded.

    `sigma` is the standard deviation of the underlying normal distribution; with 1.0 one action in a hundred takes
    more than six times the mean.
    """

    kind: Literal["none", "constant", "lognormal"] = "none"
    mean_s: float = 0.0
    sigma: float = 1.0
    seed: int = 0
    _rng: random.Random = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def sample(self) -> float:
        """The next delay, seconds."""
        if self.kind == "none" or self.mean_s <= 0:
            return 0.0
        if self.kind == "constant":
            return self.mean_s
        # The mean of a log-normal is exp(mu + sigma^2 / 2); solve it for mu.
        return self._rng.lognormvariate(math.log(self.mean_s) - self.sigma**2 / 2, self.sigma)
