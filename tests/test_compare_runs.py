import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.compare_rig import evaluation, learning_run, row, settings, summary_of, write_run
from trainers.compare.arms import sort_into_arms
from trainers.compare.plan import without_beginnings
from trainers.compare.runs import Run, load_run
from trainers.compare.series import held_out, lines, metric, smoothed, window
from trainers.compare.settings import differences, fingerprint, labels
from trainers.config import ConfigError
from trainers.config.validation import leaves
from trainers.run.files import last_error, read_rows


def refusal(directory: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(directory)
    message = str(caught.value)
    assert message.startswith(f"runs={directory}: ")
    assert "\n" not in message
    return message.partition(": ")[2]


def small_run(directory: Path, backend: str = "legacy", seed: int = 0, **keys: Any) -> Path:
    tree = settings(backend, seed, **keys)
    rows = [row(1), row(2)]
    evaluations = [evaluation(0, 0.4), evaluation(2, 0.6)]
    return write_run(directory, tree, rows, evaluations, summary_of(tree, rows, evaluations))


def dotted(**keys: Any) -> dict[str, Any]:
    return dict(leaves(settings(**keys)))


def test_a_run_is_read_with_what_it_had_spent_by_every_step(tmp_path: Path) -> None:
    run = load_run(small_run(tmp_path / "a", seed=4))
    assert (run.name, run.backend, run.seed, run.finished, run.error) == ("a", "legacy", 4, True, None)
    assert run.axis("steps") == {0: 0, 1: 1, 2: 2}
    assert run.axis("episodes") == {0: 0, 1: 64, 2: 128}
    assert run.axis("minutes") == pytest.approx({0: 0, 1: 1 / 6, 2: 2 / 6})
    assert [(e.step, e.success, e.episodes) for e in run.evaluated("seeds")] == [(0, 0.4, 200), (2, 0.6, 200)]


def test_keys_that_are_younger_than_a_run_have_their_defaults_in_it(tmp_path: Path) -> None:
    tree = settings()
    old = {section: values for section, values in tree.items() if section != "optim"}
    before, after = (
        load_run(write_run(tmp_path / name, keys, [row(1)], [])) for name, keys in (("a", old), ("b", tree))
    )
    assert differences([before.settings, after.settings]) == []
    changed = load_run(small_run(tmp_path / "c", optim__learning_rate=0.5))
    ((key, _),) = differences([before.settings, changed.settings])
    assert key == "optim.learning_rate"


def test_what_a_row_lacks_or_spoils_is_unknown(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": 1, "step_s": 6}, row(2, kl=float("nan"), loss=None, entropy="high")]
    run = load_run(write_run(tmp_path / "a", settings(), rows, []))
    for key in ("kl", "loss", "entropy", "no_such_metric"):
        assert [math.isnan(value) for value in run.column(key)] == [True, True]
    assert run.axis("minutes") == pytest.approx({0: 0, 1: 0.1, 2: 0.1 + 1 / 6})
    assert math.isnan(run.axis("episodes")[2])
    assert not run.finished


def test_a_line_cut_short_is_left_out_and_a_later_row_of_a_step_wins(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a", settings(), [row(1, loss=1.0), row(1, loss=2.0)], [])
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert load_run(directory).column("loss").tolist() == [2.0]
    assert len(read_rows(directory / "metrics.jsonl")) == 2


def test_an_evaluation_that_lost_all_its_episodes_says_nothing(tmp_path: Path) -> None:
    lost = evaluation(0, 0.0, success_rate=None, episodes=0)
    run = load_run(write_run(tmp_path / "a", settings(), [row(1)], [lost, evaluation(1, 0.5)]))
    assert [e.step for e in run.evaluated("seeds")] == [1]


def test_a_directory_that_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == "no such directory"
    (tmp_path / "empty").mkdir()
    assert "no config.yaml" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.yaml", "a: [1", "config.yaml cannot be read"),
        ("config.yaml", "- 1\n- 2\n", "config.yaml holds no keys"),
        ("config.yaml", "seed: 1\n", "backend=null in config.yaml"),
        ("config.yaml", "backend: legacy\nseed: two\n", "seed=two in config.yaml; it must be int"),
        ("summary.json", "{", "summary.json is not JSON"),
        ("summary.json", "[]", "summary.json holds no keys"),
        ("run.json", "nothing", "run.json is not JSON"),
        ("metrics.jsonl", '{"step": 1}\n{"loss": 2}\n', "line 2 of metrics.jsonl has no step"),
        ("metrics.jsonl", "[1]\n", "line 1 of metrics.jsonl has no step"),
        ("eval.jsonl", '{"step": 1}\n', "line 1 of eval.jsonl has no step or no split"),
    ],
)
def test_a_broken_file_is_named_in_one_line(file: str, content: str, words: str, tmp_path: Path) -> None:
    directory = small_run(tmp_path / "a")
    (directory / file).write_text(content)
    assert words in refusal(directory)


def test_a_run_that_failed_before_its_first_step_says_why(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a", settings(), [], [])
    assert refusal(directory) == "metrics.jsonl has no rows"
    trace = (
        'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    boom()\nRuntimeError: boom\nand more\n'
    )
    (directory / "error.log").write_text(trace)
    assert refusal(directory) == "metrics.jsonl has no rows; the run failed: RuntimeError: boom"
    assert last_error(tmp_path) is None


def resumed(directory: Path, resumed_from: str, first: int, last: int) -> Path:
    rows = [row(step, loss=9.0) for step in range(first, last + 1)]
    return write_run(
        directory, settings(), rows, [evaluation(last, 0.9)], {"steps": last}, resumed_from=resumed_from,
        started="2026-01-02T00:00:00",
    )  # fmt: skip


@pytest.mark.parametrize("named", ["{}/a", "{}/a/checkpoints/last", "elsewhere/a"])
def test_a_resumed_run_continues_the_one_it_came_from(named: str, tmp_path: Path) -> None:
    evaluations = [evaluation(0, 0.4), evaluation(2, 0.5), evaluation(4, 0.6)]
    write_run(tmp_path / "a", settings(), [row(step) for step in range(1, 5)], evaluations)
    run = load_run(resumed(tmp_path / "b", named.format(tmp_path), 4, 6))
    assert run.steps == [1, 2, 3, 4, 5, 6]
    assert run.column("loss").tolist() == [0.1, 0.1, 0.1, 9.0, 9.0, 9.0]
    assert [e.step for e in run.evaluated("seeds")] == [0, 2, 6]  # step 4 was trained again
    assert run.axis("minutes")[6] == pytest.approx(1.0)
    assert run.notes == ()


def test_a_resumed_run_whose_beginning_is_lost_has_no_minutes_and_says_so(tmp_path: Path) -> None:
    run = load_run(resumed(tmp_path / "b", "outputs/gone", 4, 5))
    assert run.axis("steps") == {3: 3, 4: 4, 5: 5}
    assert all(math.isnan(minutes) for minutes in run.axis("minutes").values())
    assert "outputs/gone, which is not there" in run.notes[0]


def test_runs_that_name_each_other_end(tmp_path: Path) -> None:
    resumed(tmp_path / "a", str(tmp_path / "b"), 1, 2)
    assert load_run(resumed(tmp_path / "b", str(tmp_path / "a"), 3, 4)).steps == [3, 4]


def test_the_beginning_of_a_run_is_no_run_of_its_own_unless_it_did_something_else(tmp_path: Path) -> None:
    rows = [row(1), row(2)]
    for name, keys in (("a", {}), ("other", {"optim__learning_rate": 0.5})):
        write_run(tmp_path / name, settings(**keys), rows, [])
    longer = settings(max_steps=99)
    for name, former in (("b", "a"), ("c", "other")):
        write_run(tmp_path / name, longer, [row(3)], [], resumed_from=str(tmp_path / former), resumed_step=2)
    kept, notes = without_beginnings([tmp_path / name for name in ("a", "b", "c", "other")])
    assert [directory.name for directory in kept] == ["b", "c", "other"]
    assert notes == ["a is the beginning of b, not a run of its own"]


def test_seeds_names_logs_and_checkpoints_make_no_configuration() -> None:
    same = dotted(
        seed=9, run_name="x", output_dir="y", experiment="z", logging__wandb=True, checkpoint__every_steps=3, phase=1,
        rollout__max_staleness=4,
    )  # fmt: skip
    assert fingerprint(same) == fingerprint(dotted())
    assert fingerprint(dotted(rollout__max_staleness=4, backend="areal")) != fingerprint(dotted(backend="areal"))
    assert fingerprint(dotted(env__tasks=["word"])) != fingerprint(dotted())


def test_only_differing_keys_are_listed_with_what_each_side_has() -> None:
    found = differences([dotted(), dotted(backend="areal", rollout__max_staleness=2, optim__betas=[0.8, 0.9])])
    assert dict(found) == {
        "backend": ["legacy", "areal"],
        "phase": ["–", "3"],
        "rollout.max_staleness": ["–", "2"],
        "optim.betas": ["[0.9, 0.95]", "[0.8, 0.9]"],
    }


def test_arms_are_named_by_backend_and_phase_and_where_needed_by_what_differs() -> None:
    assert labels([dotted(), dotted(backend="areal"), dotted(backend="areal", phase=1)]) == [
        "legacy", "areal phase 3", "areal phase 1",
    ]  # fmt: skip
    assert labels([dotted(optim__learning_rate=1e-4), dotted(optim__learning_rate=1e-3)]) == [
        "learning_rate=0.0001", "learning_rate=0.001",
    ]  # fmt: skip
    many = [
        dotted(lora__r=4, lora__alpha=8, seed=0, max_steps=3),
        dotted(lora__r=4, lora__alpha=8, max_steps=3, threads=4),
    ]
    assert len(set(labels([*many, dotted()]))) == 3


def test_runs_of_one_configuration_are_one_arm_and_the_synchronous_one_comes_first(tmp_path: Path) -> None:
    order = [("areal", 1), ("areal", 0), ("legacy", 1), ("legacy", 0)]
    runs = [load_run(small_run(tmp_path / f"{backend}{seed}", backend, seed)) for backend, seed in order]
    arms = sort_into_arms(runs)
    assert [(arm.label, [run.seed for run in arm.runs]) for arm in arms] == [
        ("legacy", [0, 1]),
        ("areal phase 3", [0, 1]),
    ]


def test_a_mean_covers_the_steps_that_all_finished_runs_share(tmp_path: Path) -> None:
    def run(name: str, seed: int, values: dict[int, float], step_s: float, done: bool = True) -> Run:
        rows = [row(step, loss=value, step_s=step_s) for step, value in values.items()]
        return load_run(write_run(tmp_path / name, settings(seed=seed), rows, [], {"steps": 1} if done else None))

    runs = [run("a", 0, {1: 1.0, 2: 2.0, 3: 9.0}, 60), run("b", 1, {1: 3.0, 2: 4.0}, 120)]
    runs.append(run("c", 2, {1: 7.0}, 60, done=False))
    (arm,) = sort_into_arms(runs)
    drawn = lines(arm, metric("loss"), "minutes")
    assert len(drawn.runs) == 3
    assert drawn.mean is not None
    assert drawn.mean.x == pytest.approx((1.5, 3.0))
    assert drawn.mean.y == (2.0, 3.0)
    assert (drawn.mean.low, drawn.mean.high) == ((1.0, 2.0), (3.0, 4.0))
    assert lines(arm, held_out("seeds"), "steps").mean is None


def test_long_runs_are_smoothed_and_short_ones_are_not() -> None:
    assert (window(20), window(60), window(61), window(600)) == (1, 1, 3, 21)
    assert smoothed([1.0, 2.0, 6.0], 1) == [1.0, 2.0, 6.0]
    assert smoothed([1.0, math.nan, 6.0, 8.0], 3)[2:] == [7.0, 7.0]
    assert math.isnan(smoothed([1.0, math.nan, 6.0], 3)[1])


def test_the_rig_writes_what_a_run_writes(tmp_path: Path) -> None:
    from trainers.run.metrics import StepMetrics

    directory = learning_run(tmp_path / "a", "areal")
    written = json.loads((directory / "metrics.jsonl").read_text().splitlines()[0])
    assert set(written) == set(StepMetrics(step=1, policy_version=1).row())
