"""Final figures by hand, what they let us say, and the gates."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.compare_rig import evaluation, learning_run, row, settings, summary_of, write_run
from trainers.compare.bootstrap import Estimate, Sample, difference_of
from trainers.compare.comparison import Comparison, compare, judgement, speed_in_words, success_in_words
from trainers.compare.figures import Cell, Figure
from trainers.compare.power import episodes_needed, seeds_needed
from trainers.compare.runs import Run, load_run
from trainers.compare.tables import run_table
from trainers.compare.verdict import Gates, judge
from trainers.compare.words import cell, contrast, signed, value


def make(
    directory: Path, backend: str = "legacy", seed: int = 0, end: float = 0.95,
    rows: list[dict[str, Any]] | None = None, done: bool = True, **keys: Any,
) -> Run:  # fmt: skip
    """A run of two steps of 10 s that ends at success `end`."""
    tree = settings(backend, seed, **({"rollout__max_staleness": 2} if backend == "areal" else {}) | keys)
    rows = rows or [row(1), row(2)]
    evaluations = [evaluation(0, 0.4), evaluation(1, 0.91), evaluation(2, end), evaluation(2, 0.7, "templates")]
    summary = summary_of(tree, rows, evaluations) if done else None
    return load_run(write_run(directory / f"{backend}{seed}", tree, rows, evaluations, summary))


def arms(directory: Path, ours: list[float], theirs: list[float], **keys: Any) -> tuple[list[Run], list[Run]]:
    """Reference runs that end at `theirs`, candidate runs that end at `ours`."""
    reference = [make(directory, "legacy", seed, end) for seed, end in enumerate(theirs)]
    return reference, [make(directory, "areal", seed, end, **keys) for seed, end in enumerate(ours)]


def figure(comparison: Comparison, key: str) -> tuple[list[float | None], list[float | None]]:
    """Means by arm, contrasts by arm."""
    found = comparison.row(key)
    assert found is not None
    means = [each.estimate.mean if each.estimate else None for each in found.cells]
    return means, [estimate.mean if estimate else None for estimate in found.contrasts]


def test_figures_by_hand(tmp_path: Path) -> None:
    fast = [
        row(1, step_s=4.0, rollout_s=4.0, env_utilisation=0.8, groups_filtered=0),
        row(2, step_s=6.0, rollout_s=6.0),
    ]
    runs = [make(tmp_path, seed=0), make(tmp_path, seed=1, end=0.93), make(tmp_path, "areal", rows=fast, end=0.97)]
    comparison = compare(runs, target=0.9, margin=0.05)
    for key, means, against in (
        ("success_start", [0.4, 0.4], 0.0),
        ("success_end", [0.94, 0.97], 0.03),
        ("success_best", [0.94, 0.97], 0.03),
        ("templates_end", [0.7, 0.7], 0.0),
        ("minutes", [1 / 3, 1 / 6], 0.5),
        ("minutes_to_target", [1 / 6, 4 / 60], 0.4),
        ("episodes_to_target", [64, 64], 1.0),
        ("boxes_to_target", [2, 2], 1.0),  # minutes of environments, of the one step that it took
        ("generalisation_gap", [0.24, 0.27], 0.03),
        ("steps_per_hour", [360, 720], 2.0),
        ("episodes_per_hour", [360 * 64, 720 * 64], 2.0),
        ("tokens_per_s", [100, 200], 2.0),
        ("step_s", [10, 5], 0.5),
        ("rollout_s", [6, 5], -1.0),
        # legacy: 0.5 of 6 s in 10 s; areal measures the whole step: (0.8 * 4 + 0.5 * 6) / 10
        ("environments", [0.3, 0.62], 0.32),
        ("filtered", [0.25, 2 / 14], 2 / 14 - 0.25),
        ("updates_skipped", [0, 0], 0.0),
    ):
        found = figure(comparison, key)
        assert found[0] == pytest.approx(means), key
        assert found[1][1] == pytest.approx(against, abs=1e-9), key
    assert comparison.row("kl_end") is None  # null in every row
    assert comparison.row("price_to_target") is None


def test_what_environments_cost_until_the_target(tmp_path: Path) -> None:
    dear, cheap = make(tmp_path, env__price_per_box_hour=3.0), make(tmp_path, "areal", env__price_per_box_hour=1.5)
    comparison = compare([dear, cheap], target=0.9, margin=0.05)
    assert figure(comparison, "price_to_target") == ([pytest.approx(0.1), pytest.approx(0.05)], [None, 0.5])
    assert comparison.verdicts[0].checks[1].passed and "env.price_per_box_hour" not in dict(comparison.settings)


def test_the_last_steps_and_the_worst_step(tmp_path: Path) -> None:
    rows = [row(step, entropy=float(step), logprob_gap=1 + step / 100) for step in range(1, 11)]
    run = make(tmp_path, rows=rows)
    comparison = compare([run], target=0.9, margin=0.05)
    assert figure(comparison, "entropy_end")[0] == [8.0]
    assert figure(comparison, "logprob_gap")[0] == [1.1]
    assert comparison.row("success_end") is None  # the last evaluation was at step 2 of 10


def test_a_figure_that_not_every_run_has_is_counted_not_averaged(tmp_path: Path) -> None:
    runs = [make(tmp_path, seed=0, end=0.99), make(tmp_path, seed=1, end=0.5)]
    comparison = compare(runs, target=0.95, margin=0.05)
    found = comparison.row("minutes_to_target")
    assert found is not None
    assert found.cells == (Cell(None, known=1, total=2),)
    assert cell(found.figure, found.cells[0]) == "1 of 2 runs"


def test_unfinished_runs_are_named_and_in_no_figure(tmp_path: Path) -> None:
    runs = [make(tmp_path, seed=0), make(tmp_path, seed=1, end=0.1, done=False)]
    comparison = compare(runs, target=0.9, margin=0.05)
    assert figure(comparison, "success_end")[0] == [0.95]
    assert "legacy1: not finished after step 2; drawn, but not in the figures." in comparison.notes
    assert "legacy: one finished seed only, so no intervals." in comparison.notes


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.04, "Better"),
        (-0.04, 0.01, "Not inferior"),
        (-0.06, 0.01, "Undecided"),
        (-0.09, -0.06, "Inferior"),
        (None, None, "Not judged"),
    ],
)
def test_what_an_interval_allows_to_say(low: float | None, high: float | None, words: str) -> None:
    assert judgement(Estimate(0.0, low, high, 3), margin=0.05) == words


def test_sentences_hold_the_figures(tmp_path: Path) -> None:
    reference, candidate = arms(tmp_path, [0.96, 0.97, 0.98], [0.97, 0.97, 0.97])
    comparison = compare([*reference, *candidate], target=0.9, margin=0.05)
    (arm,) = comparison.candidates
    sentence = success_in_words(comparison, arm)
    assert sentence.startswith(
        "Not inferior: areal phase 3 ends at 97.0 % success on unseen seeds, legacy at 97.0 %: 0.0 points, "
        "95 % interval −"
    )
    assert speed_in_words(comparison, arm) == (
        "areal phase 3: 1.00× [1.00, 1.00] the training steps per hour of legacy, "
        "90 % success after 0.2 min of training instead of 0.2 min."
    )


def test_success_is_told_by_category_and_machines_that_differ(tmp_path: Path) -> None:
    def run(backend: str, counts: dict[str, list[int]], machine: str) -> Run:
        tree, rows = settings(backend), [row(1)]
        evaluations = [evaluation(0, 0.4), evaluation(1, 0.75, by_category=counts)]
        summary = summary_of(tree, rows, evaluations)
        return load_run(write_run(tmp_path / backend, tree, rows, evaluations, summary, platform=machine, cpus=2))

    runs = [run("legacy", {"a": [9, 10], "b": [6, 10]}, "one"), run("areal", {"a": [5, 10], "b": [10, 10]}, "two")]
    comparison = compare(runs, target=0.9, margin=0.05)
    assert figure(comparison, "success_a") == ([0.9, 0.5], [None, pytest.approx(-0.4)])
    assert figure(comparison, "success_b") == ([0.6, 1.0], [None, pytest.approx(0.4)])
    assert "The runs were made on 2 different machines: their minutes do not compare." in comparison.notes
    assert [line[-1] for line in run_table(comparison).rows] == ["one, 2 CPUs", "two, 2 CPUs"]


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    reference, candidate = arms(tmp_path, [0.99], [0.5])
    comparison = compare([*reference, *candidate], target=0.9, margin=0.05)
    sentence = success_in_words(comparison, comparison.candidates[0])
    assert "+49.0 points. One seed only" in sentence
    assert "interval" in sentence and "95 %" not in sentence


def failing(reference: list[Run], candidate: list[Run], **gates: float) -> list[str]:
    verdict = judge(reference, candidate, Gates(**gates))
    assert len(verdict.reasons) == len(verdict.checks) == 7
    failed = [check.name for check in verdict.checks if not check.passed]
    assert verdict.go == (failed == [])
    assert [line for line in verdict.reasons if not line.startswith("pass: ")] == [
        f"{check.word}: {check.name}: {check.reason}" for check in verdict.checks if not check.passed
    ]
    return failed


def test_equal_runs_are_a_go_with_a_reason_for_every_gate(tmp_path: Path) -> None:
    reference, candidate = arms(tmp_path, [0.96, 0.97, 0.98], [0.97, 0.96, 0.98])
    assert failing(reference, candidate) == []


def test_the_margin_decides_about_a_small_loss(tmp_path: Path) -> None:
    reference, candidate = arms(tmp_path, [0.93, 0.94, 0.93], [0.97, 0.96, 0.98])
    assert failing(reference, candidate) == ["final success not inferior"]
    assert failing(reference, candidate, success_margin=0.1) == []


def test_a_single_run_is_judged_on_its_evaluation_episodes_and_says_so(tmp_path: Path) -> None:
    reference, candidate = arms(tmp_path, [0.97], [0.97])
    reason = judge(reference, candidate).checks[2].reason
    assert "interval over evaluation episodes only" in reason
    assert failing(reference, candidate) == []
    assert failing(reference, candidate, success_margin=0.02) == ["final success not inferior"]


@pytest.mark.parametrize(
    ("values", "gate"),
    [
        ({"staleness_max": 3}, "staleness bound kept"),
        ({"staleness_max": None}, "staleness bound kept"),
        ({"logprob_gap": 1.06}, "log-probs agree"),
        ({"logprob_gap": None}, "log-probs agree"),
        ({"updates_skipped": 1}, "no update skipped"),
        ({"episodes_infra_error": 8}, "few episodes lost"),
    ],
)
def test_each_gate_closes_on_its_own_figure(values: dict[str, Any], gate: str, tmp_path: Path) -> None:
    reference = [make(tmp_path, seed=seed) for seed in range(2)]
    fresh = {} if values.get("staleness_max") else values  # the gap is judged where there is no staleness
    bad = [row(1, **fresh), row(2, **values)]
    candidate = [make(tmp_path, "areal", 0), make(tmp_path, "areal", 1, rows=bad)]
    assert failing(reference, candidate) == [gate]


def test_drift_of_a_stale_policy_is_reported_but_no_fault(tmp_path: Path) -> None:
    rows = [row(1, logprob_gap=1.01), row(2, staleness_max=2, logprob_gap=1.3), row(3, logprob_gap=1.02)]
    run = make(tmp_path, "areal", rows=rows)
    check = judge([make(tmp_path)], [run]).checks[4]
    assert (check.passed, check.reason) == (True, "largest gap 1.0200, limit 1.05; judged in 2 of 3 steps")
    comparison = compare([run], target=0.9, margin=0.05)
    assert figure(comparison, "logprob_gap")[0] == [1.02]
    assert figure(comparison, "logprob_drift")[0] == [1.3]


def test_log_probs_of_stale_steps_alone_cannot_be_judged(tmp_path: Path) -> None:
    stale = [row(1, staleness_max=1), row(2, staleness_max=1)]
    assert failing([make(tmp_path)], [make(tmp_path, "areal", rows=stale)]) == ["log-probs agree"]


def test_at_the_limit_is_still_a_go(tmp_path: Path) -> None:
    rows = [row(1, logprob_gap=1.05, episodes=95, episodes_infra_error=5), row(2, staleness_max=2, episodes=95)]
    candidate = [make(tmp_path, "areal", rows=rows)]
    assert failing([make(tmp_path)], candidate, infra_errors=5 / 195) == []


def test_runs_that_do_not_say_how_many_episodes_they_played_are_a_no_go(tmp_path: Path) -> None:
    candidate = [make(tmp_path, "areal", rows=[row(1, episodes=None), row(2, episodes=None)])]
    assert failing([make(tmp_path)], candidate) == ["few episodes lost"]


def test_success_of_other_tasks_is_no_comparison(tmp_path: Path) -> None:
    reference, candidate = arms(tmp_path, [0.96, 0.97], [0.96, 0.97], env__tasks=["word"], optim__learning_rate=1e-3)
    assert failing(reference, candidate) == ["same task, model and evaluation"]
    assert judge(reference, candidate).checks[1].reason == "different env.tasks"


def test_unfinished_or_missing_runs_are_a_no_go(tmp_path: Path) -> None:
    reference = [make(tmp_path, seed=0), make(tmp_path, seed=1)]
    candidate = [make(tmp_path, "areal", 0), make(tmp_path, "areal", 1, done=False)]
    assert failing(reference, candidate) == ["finished runs"]
    assert not judge(reference, []).go
    assert not judge([], reference).go


def test_a_resumable_bound_is_read_from_the_configuration(tmp_path: Path) -> None:
    rows = [row(1), row(2, staleness_max=4)]
    wide = [make(tmp_path, "areal", rows=rows, rollout__max_staleness=4)]
    assert failing([make(tmp_path)], wide) == []


def test_a_real_looking_comparison_is_a_go(tmp_path: Path) -> None:
    runs = {
        backend: [load_run(learning_run(tmp_path / f"{backend}{seed}", backend, seed)) for seed in range(3)]
        for backend in ("legacy", "areal")
    }
    assert judge(runs["legacy"], runs["areal"]).go


SHARE = Figure("a", "a", "%", lambda _: None)
SPEED = Figure("b", "b", "per hour", lambda _: None, "ratio")
SECONDS = Figure("c", "c", "s", lambda _: None)


def test_numbers_read_well() -> None:
    assert value(0.9725, "%") == "97.2 %"
    assert value(41908.7, "per hour") == "41,909"
    assert (value(2.0, "count"), value(2.25, "count")) == ("2", "2.2")
    assert value(1.0000003, "gap") == "1.0000"
    assert (signed(-0.04, 1), signed(-2.26, 1), signed(2.0, 1)) == ("0.0", "−2.3", "+2.0")
    estimate = Estimate(0.5, 0.4, 0.6, 3)
    assert cell(SHARE, Cell(estimate, 3, 3)) == "50.0 % [40.0, 60.0]"
    assert cell(SHARE, Cell(Estimate(0.5, None, None, 1), 1, 1)) == "50.0 %"
    assert cell(SHARE, Cell(None, 0, 3)) == "–"
    assert contrast(SHARE, Estimate(-0.015, -0.03, 0.01, 3)) == "−1.5 points [−3.0, +1.0]"
    assert contrast(SPEED, Estimate(1.4, 1.3, 1.5, 3)) == "1.40× [1.30, 1.50]"
    assert contrast(SECONDS, Estimate(-1.2, -1.2, -1.2, 3)) == "−1.20 s"
    assert contrast(SECONDS, None) == "–"


def test_a_wide_interval_is_undecided_and_says_what_would_decide(tmp_path: Path) -> None:
    reference, candidate = arms(tmp_path, [0.99, 0.80, 0.95], [0.97, 0.96, 0.98])
    verdict = judge(reference, candidate)
    check = verdict.checks[2]
    assert (verdict.go, verdict.decision, check.passed, check.undecided) == (False, "undecided", False, True)
    assert "−5.0 lies in it: " in check.reason
    assert "seeds a side" in check.reason
    assert "should it stay so" in check.reason


def test_a_gate_that_fails_is_a_no_go_whatever_else_is_undecided(tmp_path: Path) -> None:
    reference, _ = arms(tmp_path, [], [0.97, 0.96, 0.98])
    bad = [row(1), row(2, updates_skipped=1)]
    candidate = [make(tmp_path, "areal", seed, end=end, rows=bad) for seed, end in enumerate([0.99, 0.8, 0.95])]
    assert judge(reference, candidate).decision == "no-go"


def test_an_interval_below_the_margin_is_a_no_go(tmp_path: Path) -> None:
    reference, candidate = arms(tmp_path, [0.5, 0.51, 0.5], [0.97, 0.96, 0.98])
    verdict = judge(reference, candidate)
    assert verdict.decision == "no-go"
    assert "its upper end is below −5.0" in verdict.checks[2].reason


def samples(*values: float, episodes: int = 200) -> list[Sample]:
    return [Sample(value, episodes) for value in values]


def test_seeds_that_would_decide_are_those_of_the_formula() -> None:
    # Variances of the runs: 0.01 and 0. Of an evaluation: the mean of 0.16, 0.09 and 0 over 100 episodes, and nothing.
    left, right = samples(0.8, 0.9, 1.0, episodes=100), samples(0.5, 0.5, 0.5, episodes=10**9)
    spread = 0.01 + (0.16 + 0.09 + 0.0) / 3 / 100 + 0.0 + 0.25 / 10**9
    assert seeds_needed(left, right, 0.05) == math.ceil(spread * (1.96 / 0.05) ** 2) == 17
    assert seeds_needed(left, right, 0.5) == 4  # at least one more than there are
    assert seeds_needed(left[:1], right, 0.05) is None
    assert seeds_needed(left, right, 0.0001) is None
    assert seeds_needed(left, right, 0.0) is None


def test_episodes_that_would_decide_are_those_of_the_formula() -> None:
    single = samples(0.9), samples(0.9)
    assert episodes_needed(*single, 0.02) == math.ceil(200 * 2 * (0.09 / 200) / (0.02 / 1.96) ** 2) == 1729
    far_apart = samples(0.2, 0.9), samples(0.5, 0.5)
    assert episodes_needed(*far_apart, 0.05) is None  # the runs differ, whatever is measured
    assert episodes_needed(*single, 0.0) is None


def test_so_many_seeds_do_decide() -> None:
    """With as many seeds as advised, of the same spread, half of the interval is the distance that it was to be."""
    few = samples(0.88, 0.92, 0.88, 0.92)
    needed = seeds_needed(few, few, 0.02)
    assert needed is not None
    deviation = math.sqrt(0.02**2 * 4 / 3 * (needed - 1) / needed)
    many = samples(*[0.9 - deviation, 0.9 + deviation] * (needed // 2))
    estimate = difference_of(many, many)
    assert estimate.low is not None
    assert estimate.mean - estimate.low == pytest.approx(0.02, rel=0.1)
