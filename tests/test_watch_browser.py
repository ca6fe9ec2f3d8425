"""The pages in a real browser: a run of the phone while it trains and afterwards, and one full of planted markup."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.watch_browser_rig import PATIENCE_MS, Pages, browsing, needs_browser, served
from tests.watch_rig import PLANTED, record_run

pytestmark = needs_browser
RUN = (
    *("backend=legacy", "experiment=quick", "run_name=phone", "threads=1", "max_steps=1000", "seed=3"),
    *(
        "rollout.group_size=4",
        "rollout.groups_per_step=2",
        "eval.episodes=6",
        "eval.every_steps=1",
        "env.args.latency={kind:constant,mean_s:1}",
    ),
)
VIEWS = ("now", "groups", "episodes", "evaluations", "curves")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    """A run of the phone that has just begun, and goes on until it is interrupted."""
    outputs = tmp_path_factory.mktemp("outputs")
    command = [sys.executable, "train.py", *RUN, f"output_dir={outputs}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield outputs / "phone", process
        process.kill()


def test_a_run_while_it_trains_and_when_it_is_over(training: tuple[Path, "subprocess.Popen[str]"]) -> None:
    run, process = training
    while not (run / "config.yaml").exists():
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    with served(run) as base, browsing(base) as pages:
        the_wall_shows_devices_live(pages)
        pages.until("/^[2-9] \\/ 1000|^\\d{2,} \\//.test(document.querySelector('.figure b')?.innerText)")  # steps
        every_view_shows_what_is_there(pages)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_MS / 1000) == 130, process.stdout and process.stdout.read()
        the_end_is_told(pages)
        every_view_shows_what_is_there(pages)
        a_narrow_screen_has_room_for_all(pages)
        assert {urlsplit(address).hostname for address in pages.asked} == {"127.0.0.1"}


def the_wall_shows_devices_live(pages: Pages) -> None:
    pages.open("0/now")
    screen = pages.page.locator(".device:not(.idle) .shot img").first
    screen.wait_for()
    pages.until("document.querySelector('.device .shot img')?.naturalWidth === 128")
    pages.until("/(sampling|acting|scoring) \\d/.test(document.querySelector('.wall')?.innerText)")
    assert any("turn " in text for text in pages.texts(".device"))
    pages.until("/g\\d{6}/.test(document.querySelector('#view table')?.innerText)")  # the queue


def every_view_shows_what_is_there(pages: Pages) -> None:
    """The same of a run that trains and of one that is over."""
    pages.open("0/now")
    a_step_opens_its_strip(pages)
    groups_stand_side_by_side(pages)
    episodes_are_found_and_explained(pages)
    seeds_are_followed_over_checkpoints(pages)
    curves_are_drawn(pages)


def the_end_is_told(pages: Pages) -> None:
    pages.open("0/now")
    pages.page.get_by_text("Nobody plays: the run was interrupted after step").wait_for()
    steps = int(pages.texts(".figure b")[0].removesuffix(" / 1000"))
    assert 2 <= len(pages.texts(".time")) <= steps


def a_step_opens_its_strip(pages: Pages) -> None:
    pages.page.get_by_role("link", name="step 2", exact=True).click()
    pages.page.locator("#strip .lane i").first.wait_for()
    lanes = pages.texts("#strip .time > span")
    assert lanes[:3] == ["waiting for rollouts", "training", "publishing weights"] and "device 0" in lanes
    assert pages.page.locator("#strip .lane .k-model").count() > 4
    assert pages.page.locator(".tasks tbody tr").count() >= 2
    assert all(" of 4" in text for text in pages.texts(".tasks td:first-child"))
    pages.page.keyboard.press("Escape")
    pages.page.locator(".times").wait_for()


def groups_stand_side_by_side(pages: Pages) -> None:
    page = pages.page
    page.keyboard.press("2")
    page.locator(".item").nth(3).wait_for()
    assert set(pages.texts(".tag")) <= {"kept", "filtered", "unused", "waiting"}
    page.get_by_label("Step", exact=True).fill("2")
    page.keyboard.press("Enter")
    pages.until("[...document.querySelectorAll('.item')].every((item) => item.innerText.includes('step 2'))")
    page.keyboard.press("Escape")
    page.locator(".strip").first.wait_for()
    assert page.locator(".strip").count() == 4
    assert page.locator(".strip .tap").count() > 0
    assert page.locator(".frame.parts").count() > 0
    assert all("advantage" in text and "reward" in text for text in pages.texts(".heading"))
    page.get_by_label("Step", exact=True).fill("")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.locator(".item").nth(3).wait_for()
    page.locator(".item").first.click()
    first = page.locator(".item").first.inner_text()
    pages.until(f"document.querySelector('.item.current').innerText === {json.dumps(first)}")
    page.keyboard.press("j")
    pages.until(f"document.querySelector('.item.current').innerText !== {json.dumps(first)}")
    page.keyboard.press("k")
    pages.until(f"document.querySelector('.item.current').innerText === {json.dumps(first)}")
    page.keyboard.press("Escape")


def episodes_are_found_and_explained(pages: Pages) -> None:
    page = pages.page
    page.keyboard.press("3")
    page.locator(".episodes tbody tr").first.wait_for()
    outcomes = pages.texts(".episodes .badge")
    assert outcomes == sorted(outcomes, key=lambda outcome: outcome == "success")
    page.keyboard.press("/")
    page.keyboard.type("report_task_complete")
    page.locator(".results p").first.wait_for()
    assert all("report_task_complete" in text for text in pages.texts(".episodes small.mono"))
    page.keyboard.press("Escape")
    page.locator(".episodes tbody a").first.click()
    page.locator(".turn").first.wait_for()
    assert page.locator(".verdict tbody tr").count() > 0
    assert page.locator(".tokens span").count() > 5
    where = page.url
    page.keyboard.press("j" if where.endswith("/0") else "k")
    pages.until(f"location.href !== {json.dumps(where)}")
    page.locator(".turn").first.wait_for()
    page.keyboard.press("Escape")
    page.locator(".episodes").wait_for()


def seeds_are_followed_over_checkpoints(pages: Pages) -> None:
    page = pages.page
    page.keyboard.press("4")
    page.locator(".seeds tbody tr").first.wait_for()
    followed = page.locator(".seeds tbody tr:has(td:nth-child(3) .cell):has(td:nth-child(4) .cell)")
    while not followed.count():  # it was played once so far
        page.reload()
        page.locator(".seeds tbody tr").first.wait_for()
    followed.first.locator("a").first.click()
    page.locator(".strip").first.wait_for()
    after = ["after step 0" in text for text in pages.texts(".heading")]
    assert after[0] and len(after) >= 2 and not any(after[1:])


def curves_are_drawn(pages: Pages) -> None:
    pages.page.keyboard.press("5")
    pages.page.locator(".chart").first.wait_for()
    assert pages.page.locator(".chart").first.locator("circle").count() >= 4
    assert "phone: unseen seeds" in pages.texts(".legend .key")


def a_narrow_screen_has_room_for_all(pages: Pages) -> None:
    pages.page.set_viewport_size({"width": 360, "height": 740})
    for view in (*VIEWS, "now/2", "episodes/0"):
        pages.open(f"0/{view}")
        assert pages.page.evaluate("document.documentElement.scrollWidth") <= 360, view


def test_markup_in_names_and_answers_stays_text(tmp_path: Path) -> None:
    run = record_run(tmp_path / "<b>run", goal=PLANTED)
    (run / "summary.json").write_text(json.dumps({"stop_reason": "max_steps"}))
    with served(run) as base, browsing(base) as pages:
        nothing_of_it_runs(pages)
        pages.open("0/now")
        pages.page.get_by_text("The run is over: max_steps").wait_for()
        assert {urlsplit(address).hostname for address in pages.asked} == {"127.0.0.1"}


def test_an_export_opens_from_disk(tmp_path: Path) -> None:
    run = record_run(tmp_path / "run", goal=PLANTED)
    command = [sys.executable, "-m", "trainers.watch", str(run), "--export", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with browsing(Path(done.stdout.strip()).as_uri()) as pages:
        nothing_of_it_runs(pages)
        assert {urlsplit(address).scheme for address in pages.asked} == {"file"}


def nothing_of_it_runs(pages: Pages) -> None:
    shown = {
        "0/now": "td.bad",
        "0/now/1": ".tasks a",
        "0/groups": "h1",
        "0/groups/0/g11": "figcaption",
        "0/episodes": ".episodes a",
        "0/episodes/0": ".verdict pre",
        "0/episodes/1": "ul.notice",
        "0/evaluations": ".seeds a",
        "0/curves": ".chart",
    }
    for view, selector in shown.items():
        pages.open(view)
        pages.page.locator(selector).first.wait_for()
        if selector != ".chart":
            assert PLANTED[:50] in " ".join(pages.texts(selector)), view  # long names are cut
        assert pages.page.evaluate("window.planted") is None
    pages.open("0/groups/0/g10")
    pages.page.locator(".strip .tap").first.wait_for()
    pages.until("document.querySelector('.strip img').naturalWidth === 64")
