"""`python -m trainers.evaluate`: its figures by hand, what it refuses, and that it says what the run itself says."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.trajectory import Outcome
from tests.toy_world import toy_task, trajectory
from trainers.api import make_trainer
from trainers.config.compose import load_config
from trainers.evaluate.__main__ import main
from trainers.evaluate.figures import ALL, differences, figures_for, measured, pass_at_k
from trainers.evaluate.playing import Play, Start, again, start_of
from trainers.evaluate.report import verdict
from trainers.protocol import Played
from trainers.rollouts.evaluation import evaluation_episodes

WON = Play(Outcome.SUCCESS, 1.0, 2)
CLAIMED = Play(Outcome.FALSE_CLAIM, 0.5, 4)
LATE = Play(Outcome.OUT_OF_TURNS, 0.0, 6)


def start(name: str, *plays: Play) -> Start:
    return Start(f"{name}/0", name, 1, plays)


@given(n=st.integers(1, 7), c=st.integers(0, 7), k=st.integers(1, 7))
def test_pass_at_k_is_the_share_of_draws_of_k_that_hold_a_success(n: int, c: int, k: int) -> None:
    if c > n or k > n:
        with pytest.raises(ValueError, match=f"k={k} of {n}"):
            pass_at_k(n, c, k)
        return
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_figures_by_hand() -> None:
    starts = [start("a", WON, WON, CLAIMED, LATE), start("a", LATE, LATE, LATE, LATE), start("b", WON, LATE, LATE)]
    figures = figures_for(4)
    assert [figure.key for figure in figures] == [*("success", "pass@2", "pass@4", "score", "turns", "false_claims")]
    found = measured(starts, figures)
    assert list(found) == [ALL, "a", "b"]

    def mean(part: str, key: str) -> float | None:
        estimate = found[part][key]
        return None if estimate is None else estimate.mean

    assert mean(ALL, "success") == pytest.approx((1 / 2 + 0 + 1 / 3) / 3)
    assert mean("a", "pass@2") == pytest.approx((1 - 1 / 6 + 0) / 2)  # of 6 pairs one has no success
    assert mean("b", "pass@2") == pytest.approx(2 / 3)
    assert (mean("a", "pass@4"), mean("b", "pass@4")) == (0.5, None)  # of b one episode is lost
    assert mean("a", "score") == pytest.approx(2.5 / 8)
    assert mean("a", "turns") == pytest.approx((14 / 4 + 6) / 2)
    assert mean("a", "false_claims") == pytest.approx(1 / 8)
    assert found[ALL]["pass@4"].runs == 2  # type: ignore[union-attr]


def test_figures_of_powers_of_two_up_to_k() -> None:
    def passes(k: int) -> list[str]:
        return [figure.key for figure in figures_for(k) if figure.key.startswith("pass")]

    assert passes(1) == []
    assert passes(8) == ["pass@2", "pass@4", "pass@8"]
    assert passes(6) == ["pass@2", "pass@4", "pass@6"]


def test_worlds_are_told_where_there_are_several() -> None:
    found = measured([start("pocket::a", WON), start("pocket::b", LATE), start("web::a", WON)], figures_for(1))
    assert list(found) == [ALL, "pocket", "web", "pocket::a", "pocket::b", "web::a"]
    assert found["pocket"]["success"].mean == 0.5  # type: ignore[union-attr]


def test_pairs_cancel_what_is_on_both_sides() -> None:
    easy, hard = (WON, WON), (LATE, LATE)
    ours = [start("a", *plays) for plays in (easy, hard) * 10]
    theirs = [start("a", *plays) for plays in ((WON, LATE), hard) * 10]
    contrast = differences(ours, theirs, figures_for(1))[ALL]["success"]
    alone = measured(ours, figures_for(1))[ALL]["success"]
    assert contrast is not None and alone is not None
    assert contrast.mean == pytest.approx(0.25)
    assert contrast.low is not None and contrast.high is not None and alone.low is not None and alone.high is not None
    assert 0 < contrast.low < 0.25 < contrast.high
    assert contrast.high - contrast.low < alone.high - alone.low
    assert verdict(contrast).startswith("Better")
    same = differences(ours, ours, figures_for(1))[ALL]["success"]
    assert same is not None and (same.mean, same.low, same.high) == (0, 0, 0)
    assert verdict(same).startswith("Undecided")
    assert verdict(None).startswith("Not judged")
    with pytest.raises(ValueError, match="same starts"):
        differences(ours, [start("b", WON) for _ in ours], figures_for(1))


def test_a_start_keeps_what_was_lost_apart() -> None:
    (spec,) = evaluation_episodes([toy_task("a0", "a")], 1)
    names = [again(spec, turn).episode_id for turn in range(3)]
    assert names[0] == spec.episode_id  # the one that training plays
    assert len(set(names)) == 3
    played = [Played([trajectory(1.0, turns=2)]), Played(None, ("dead", "dead")), Played([trajectory(0.0, turns=3)])]
    found = start_of(spec, played)
    assert [play.turns for play in found.plays] == [2, 3]
    assert found.lost == ("dead", "dead")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["k=2"], "checkpoint: has no default and must be given"),
        (["checkpoint=tiny", "k=0"], "k=0: must be greater than or equal to 1"),
        (["checkpoint=nowhere"], "nowhere: no such directory"),
        (["checkpoint=tiny", "against=empty"], "against=empty: no weights there"),
        (["checkpoint=tiny", "tasks=[word,flying]"], "tasks=flying: no such task in split=seeds; allowed: "),
        (["checkpoint=tiny", "split=train"], "split=train: must be 'seeds' or 'templates'"),
        (["checkpoint=tiny", "rollout.temprature=2"], "rollout.temprature=2: unknown key; did you mean"),
        (["checkpoint=tiny", "resume=auto"], "resume=auto: checkpoint says what is evaluated"),
        (["checkpoint=tiny", "out=no/such/place.json"], "out=no/such/place.json: allowed: a file in a directory"),
        (["--fast", "checkpoint=tiny"], "--fast: unknown option"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def evaluated(*arguments: str) -> dict[str, Any]:
    assert main([*arguments, "out=found.json"]) == 0
    content: dict[str, Any] = json.loads(Path("found.json").read_text())
    return content


@pytest.mark.slow
@pytest.mark.parametrize("trained", [["backend=legacy"], ["backend=areal", "phase=3"]])
def test_it_says_of_a_runs_checkpoints_what_the_run_says(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "phase=3" in trained:
        pytest.importorskip("areal")
    monkeypatch.chdir(tmp_path)
    keys = ["max_steps=1", "eval.episodes=10", "eval.every_steps=0", "rollout.groups_per_step=2", "run_name=run"]
    trainer = make_trainer(load_config([*trained, "lora.enabled=true", "optim.learning_rate=1e-2", *keys]))
    try:
        trainer.train()
    finally:
        trainer.close()
    rows = [json.loads(line) for line in Path("outputs/run/eval.jsonl").read_text().splitlines()]
    (start_row,), (end_row,), (_, templates_row) = (
        [row for row in rows if row["split"] == split and row["step"] in steps]
        for split, steps in (("seeds", [0]), ("seeds", [1]), ("templates", [0, 1]))
    )
    last = "checkpoint=outputs/run/checkpoints/last"
    for row, found in (
        (start_row, evaluated("checkpoint=tiny", "eval.episodes=10")),
        (end_row, evaluated(last)),
        (templates_row, evaluated(last, "split=templates")),
    ):
        of_all = {key: figure["mean"] for key, figure in found["figures"][ALL].items()}
        assert of_all["success"] == row["success_rate"]
        assert of_all["score"] == pytest.approx(row["score_mean"])
        assert of_all["turns"] == pytest.approx(row["turns_mean"])
        for category, (successes, episodes) in row["by_category"].items():
            assert found["figures"][category]["success"]["mean"] == successes / episodes
    assert found["step"] == 1

    # The best checkpoint is what a run directory means, and two of one kind do not differ.
    best = evaluated(
        "checkpoint=outputs/run", "against=outputs/run/checkpoints/best", "tasks=word", "episodes=2", "k=2"
    )
    assert best["checkpoint"] == "outputs/run/checkpoints/best"
    assert {place["task"].partition("/")[0] for place in best["starts"]} == {"word"}
    assert [len(place["episodes"]) for place in best["starts"]] == [2, 2]
    assert all(estimate["mean"] == 0 for part in best["difference"].values() for estimate in part.values())
    assert "in pairs of the same start" in capsys.readouterr().out
    assert main(["checkpoint=outputs/run/checkpoints/last", "lora.r=4"]) == 2
    assert "lora.r=4: checkpoint outputs/run/checkpoints/last was trained with 16" in capsys.readouterr().err
