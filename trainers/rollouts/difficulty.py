"""How hard tasks are for the policy of late, and how often each is worth playing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cua_agent.tasks import CUATask
from trainers.protocol import Group

Counts = tuple[float, float]
"""Successes and episodes, both decayed."""

PRIOR_EPISODES = 4.0
"""What is expected of a task counts as much as so many episodes of it."""


def expected_success(counts: Counts, prior: float) -> float:
    """The mean of the Beta distribution over a success rate, after `counts` and a `prior` worth `PRIOR_EPISODES`;
    between 0 and 1, both excluded, when `prior` is."""
    successes, episodes = counts
    return (successes + PRIOR_EPISODES * prior) / (episodes + PRIOR_EPISODES)


def draw_probabilities(uniform: Sequence[float], success: Sequence[float], floor: float) -> list[float]:
    """floor * u_i + (1 - floor) * u_i p_i (1 - p_i) / sum_j u_j p_j (1 - p_j): how often each task is drawn that is
    solved with probability p_i and that uniform sampling draws with probability u_i (these sum to 1).

    p (1 - p) is the variance of an episode's success, without which a group teaches nothing: Foster et al., "Learning
    to Reason at the Frontier of Learnability" (arXiv 2502.12272). Where it is 0 everywhere the draw is uniform.
    """
    weights = [share * rate * (1 - rate) for share, rate in zip(uniform, success, strict=True)]
    total = sum(weights)
    if total == 0:
        return list(uniform)
    return [floor * share + (1 - floor) * weight / total for share, weight in zip(uniform, weights, strict=True)]


class TaskDifficulty:
    """How often each task was solved; `counts`, by task, is all of its state.

    After every step what was seen before counts less: half after `half_life` steps. So the estimate of a task that was
    not played for long goes back to that of its category, and it gets another chance.
    """

    def __init__(self, half_life: float, floor: float) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._floor = floor
        self.counts: dict[str, Counts] = {}

    def observe(self, groups: Iterable[Group]) -> None:
        """A step played `groups`."""
        counts = {task: (self._keep * won, self._keep * of) for task, (won, of) in self.counts.items()}
        for group in groups:
            won, of = counts.get(group.spec.task.id, (0.0, 0.0))
            wins = sum(episode[0].success for episode in group.episodes)
            counts[group.spec.task.id] = (won + wins, of + len(group.episodes))
        self.counts = counts

    def probabilities(self, categories: Mapping[str, Sequence[CUATask]]) -> dict[str, float]:
        """How often each task of `categories` is drawn, by id. What is not known of a task is expected to be as in its
        category, and of a category to be 1/2."""
        uniform: dict[str, float] = {}
        success: dict[str, float] = {}
        for tasks in categories.values():
            seen = [self.counts.get(task.id, (0.0, 0.0)) for task in tasks]
            category = expected_success((sum(won for won, _ in seen), sum(of for _, of in seen)), prior=0.5)
            for task, counts in zip(tasks, seen, strict=True):
                uniform[task.id] = 1 / (len(categories) * len(tasks))
                success[task.id] = expected_success(counts, prior=category)
        drawn = draw_probabilities(list(uniform.values()), list(success.values()), self._floor)
        return dict(zip(uniform, drawn, strict=True))
