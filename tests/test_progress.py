import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from trainers.protocol import EvalRecord
from trainers.run.metrics import StepMetrics
from trainers.run.progress import LiveProgress, PlainProgress, evaluation_line, open_progress, step_line

STEP = StepMetrics(
    step=3, policy_version=3, loss=-0.0125, reward_mean=0.5, success_rate=0.75, groups_kept=6, groups_filtered=2,
    rollout_s=1.44, train_s=2.0, step_s=3.6, env_utilisation=0.625, staleness_mean=0.5, staleness_max=2,
)  # fmt: skip
EVALUATION = EvalRecord(
    step=10, episodes=200, success_rate=0.915, reward_mean=0.915, turns_mean=3.24, by_category={"clock": (9, 10)}
)


def screen(terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=100, highlight=False), file


def last_panel(file: io.StringIO) -> str:
    """What a terminal showed last, without its colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    return "╭" + plain.rpartition("╭")[2]


def test_a_step_and_an_evaluation_read_as_one_line() -> None:
    assert step_line(STEP, 40) == (
        "step 3/40  reward 0.500  success 75.0 %  groups 6/8  loss -0.013  rollout 1.4 s  train 2.0 s"
    )
    assert evaluation_line(EVALUATION, "seeds") == (
        "evaluation at step 10 on unseen seeds: success 91.5 % of 200 episodes, 3.2 turns each"
    )


def test_a_step_that_trained_on_nothing_shows_dashes_and_losses_are_named() -> None:
    line = step_line(StepMetrics(step=1, policy_version=0, episodes_infra_error=2, updates_skipped=1), 5)
    assert "reward -" in line
    assert "nan" not in line
    assert line.endswith("lost episodes 2  updates skipped 1")


def test_turns_that_were_cut_off_are_seen() -> None:
    assert step_line(replace(STEP, truncated=0.125), 40).endswith("train 2.0 s  turns cut off 12.5 %")
    assert "cut off" not in step_line(replace(STEP, truncated=0.0), 40)


def test_plain_lines_where_there_is_no_terminal() -> None:
    console, file = screen(terminal=False)
    progress = open_progress(40, console)
    assert isinstance(progress, PlainProgress)
    progress.phase("rollout", 1, 64)
    progress.step(STEP, 40)
    progress.evaluation(EVALUATION, "templates")
    progress.message("stopped [bold]here[/]" + "x" * 200)
    progress.close()
    lines = file.getvalue().splitlines()
    assert lines == [step_line(STEP, 40), evaluation_line(EVALUATION, "templates"), "stopped [bold]here[/]" + "x" * 200]
    assert "\x1b" not in file.getvalue()


def test_one_panel_in_a_terminal() -> None:
    console, file = screen(terminal=True)
    progress = open_progress(40, console)
    assert isinstance(progress, LiveProgress)
    progress.phase("rollout", 0, 64)
    progress.phase("rollout", 32, 64)
    progress.step(STEP, 40)
    progress.evaluation(EVALUATION, "seeds")
    progress.phase("training", 1, 5)
    progress.close()
    progress.close()
    shown = file.getvalue()
    assert "success 91.5 % of 200 episodes" in shown
    assert "ETA" in shown
    last = last_panel(file)
    for figure in (
        "success 75.0 %",
        "waiting 40.0 %",
        "devices in use 62.5 %",
        "staleness 0.5, at most 2",
        "step 3.6 s",
    ):
        assert figure in last
    assert "evaluation at step 10" in last


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_panel_fits_any_terminal_and_shows_text_as_it_is(width: int) -> None:
    file = io.StringIO()
    progress = LiveProgress(Console(file=file, force_terminal=True, width=width, height=30, highlight=False), 40)
    progress.step(STEP, 40)
    progress.message("lost [bold]box[/] " + "x" * 300)
    progress.close()
    panel = last_panel(file)
    assert all(len(line.rstrip("\r")) <= width for line in panel.splitlines())
    assert "lost [bold]box[/]" in panel


@pytest.mark.parametrize(("calls", "completed", "total"), [([(0, 8), (5, 8)], 5, 8), ([(8, 8), (1, 4)], 1, 4)])
def test_the_phase_bar_follows_and_starts_over(calls: list[tuple[int, int]], completed: int, total: int) -> None:
    progress = LiveProgress(screen(terminal=True)[0], 40)
    for done, out_of in calls:
        progress.phase("rollout", done, out_of)
    bar = progress._bars.tasks[1]
    progress.close()
    assert (bar.completed, bar.total, bar.description) == (completed, total, "rollout")
