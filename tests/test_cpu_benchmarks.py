"""What the benchmarks on a CPU hand over, measure and draw, and how they share processor time out."""

import itertools
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Outcome, Trajectory

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def policy(weights: Path) -> PolicyModel:
    return load_policy(str(weights))


def row_of(policy: PolicyModel, *turns: tuple[int, int]) -> Trajectory:
    """A row of turns of (text tokens before the turn, sampled tokens), a screenshot of one token in each prompt."""
    image = policy.special.image_token_id
    ids = np.concatenate([[image, *range(5, 4 + told), *range(100, 100 + said)] for told, said in turns])
    mask = np.concatenate([np.repeat([0, 1], turn) for turn in turns]).astype(np.int32)
    return Trajectory(
        input_ids=ids,
        loss_mask=mask,
        logprobs=np.float32(-0.5) * mask,
        versions=mask - 1,
        images=[np.full((32, 32, 3), number, np.uint8) for number, _ in enumerate(turns)],
        reward=0.0,
        outcome=Outcome.FAILURE,
        task_id="task",
        group_id="group",
        episode_id="episode",
        seed=0,
    )


def test_trl_is_given_the_recorded_rows_whole(policy: PolicyModel) -> None:
    from other_updates import of_trl

    rows = [row_of(policy, (3, 2), (4, 1)), row_of(policy, (5, 3))]
    given = of_trl(rows, [1.0, -1.0], policy)

    prompt, completion = given["prompt_mask"].bool(), given["completion_mask"].bool()
    for number, row in enumerate(rows):
        parts = given["prompt_ids"][number][prompt[number]], given["completion_ids"][number][completion[number]]
        assert torch.cat(parts).tolist() == row.input_ids.tolist()
    assert given["prompt_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert given["completion_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]
    assert given["tool_mask"].tolist() == [[1, 1, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0, 0]]
    assert given["old_per_token_logps"][0].tolist() == [-0.5, -0.5, 0, 0, 0, 0, -0.5]
    assert given["num_items_in_batch"] == 6
    assert given["num_images"] == [2, 1]
    assert len(given["image_grid_thw"]) == 3


def test_an_engine_is_told_what_stood_before_each_recorded_turn(policy: PolicyModel) -> None:
    from bench_engine import recorded_prompts

    row = row_of(policy, (3, 2), (4, 1))
    prompts = recorded_prompts(row, policy)
    assert [len(prompt.ids) for prompt in prompts] == [3, 4]
    assert [image[0, 0, 0] for prompt in prompts for image in prompt.images] == [0, 1]
    assert [*prompts[0].ids, *row.input_ids[3:5], *prompts[1].ids, *row.input_ids[9:]] == row.input_ids.tolist()
    unanswered = replace(row, loss_mask=np.where(np.arange(len(row)) < 9, row.loss_mask, 0))
    assert [len(prompt.ids) for prompt in recorded_prompts(unanswered, policy)] == [3]


def test_time_counts_for_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from timed_parts import timed

    ticks = itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: float(next(ticks)))  # every look at the clock takes a second
    work = SimpleNamespace(inner=lambda: None)
    work.outer = lambda: (work.inner(), work.inner())
    with timed({"outer": [(work, "outer")], "inner": [(work, "inner")]}) as spent:
        work.outer()
        work.inner()
    assert spent.seconds == {"outer": 5.0 - 2.0, "inner": 3.0}
    assert spent.calls == {"outer": 1, "inner": 3}


def test_the_scheduler_is_measured_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import bench_scheduler

    command = ["bench_scheduler.py", "--boxes", "16", "--steps", "3", "--staleness", "4"]
    monkeypatch.setattr("sys.argv", command)
    bench_scheduler.main()
    row = next(line for line in capsys.readouterr().out.splitlines() if "none" in line)
    boxes, groups, _, step_s, in_use, _ = (cell.strip() for cell in row.strip("│ ").split("│"))
    assert (boxes, groups) == ("16", "2") and float(step_s) > 5
    assert 50 < float(in_use.removesuffix("%")) <= 100


@pytest.mark.slow
def test_a_picture_is_drawn_of_what_was_measured(tmp_path: Path) -> None:
    from bench_async import Measured, Repeat
    from plot_async import draw, read

    def repeat(phase_s: float, undelayed: Measured | None) -> Repeat:
        runs = [("legacy", 40.0), ("areal phase 3", phase_s), ("areal phase 3:0", 30.0)]
        measured = [Measured(name, step_s, step_s - 4, 4.0, 0.25, 76.0, 2) for name, step_s in runs]
        return Repeat(tuple(measured), undelayed, 64)

    files = tmp_path / "delayed.json", tmp_path / "undelayed.json"
    alone = Measured("areal phase 3 without delays", 5.0, 0.0, 5.0, 0.5, 64.0, 2)
    for file, repeats in zip(files, ([repeat(10.0, alone), repeat(12.5, alone)], [repeat(30.0, None)]), strict=True):
        file.write_text(json.dumps([asdict(each) for each in repeats]))
    delayed, undelayed = (read([file]) for file in files)
    assert delayed[0] == repeat(10.0, alone) and undelayed == [repeat(30.0, None)]
    draw(delayed, undelayed, tmp_path / "backends.png")
    assert (tmp_path / "backends.png").read_bytes().startswith(b"\x89PNG")


def test_a_recipe_with_demonstrations_clones_them_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_long_tasks

    commands: list[tuple[str, ...]] = []

    def note(*words: str) -> None:
        commands.append(words)
        if words[0] == "train.py":
            (tmp_path / "demonstrations-3").mkdir()
            (tmp_path / "demonstrations-3" / "summary.json").write_text('{"eval_success_end": 0.5}')

    monkeypatch.setattr(bench_long_tasks, "run_python", note)
    assert bench_long_tasks.train(tmp_path, "demonstrations", 3, ["max_steps=2"]) == {"eval_success_end": 0.5}
    clone, run = commands
    assert clone[:2] == ("-m", "trainers.clone") and f"out={tmp_path}/clone-3" in clone and "seed=3" in clone
    assert {f"model.path={tmp_path}/clone-3", "optim.learning_rate=1e-4", "max_steps=2"} <= set(run)
