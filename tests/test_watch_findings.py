"""What the pages say of episodes that failed, of rows written by hand; and what stood where a finger was."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.actions import Point
from cua_agent.envs.pocket.screens import HEIGHT, WIDTH, element_at, elements
from cua_agent.envs.pocket.state import make_state
from cua_agent.touch import NEAR, Place, Touch, touched
from cua_agent.verdict import heard
from tests.test_episodes import WIFI_ON
from tests.toy_world import toy_task
from trainers.watch.findings import answers, beside, common, findings

OK = Place("OK", 300, 500, 700, 600)


def near(name: str, right: int, below: int) -> dict[str, Any]:
    return {"place": {"name": name, "left": 0, "top": 0, "right": 9, "bottom": 9}, "right": right, "below": below}


def turn(action: str | None = "tap target=OK", screen: str = "a/1.webp", **more: Any) -> dict[str, Any]:
    return {"text": "x", "action": action, "result": "", "env_s": 0.1, "screen": screen, **more}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"outcome": "success", "turns": [turn(env_s=99)]}, []),
        (
            {"outcome": "infra_error", "turns": [], "broken_off": ["acting", 120.4], "device": 3, "failure": "gone"},
            [("lost to infrastructure", "Lost on device 3 after 0 turns, waiting 120.4 s for the device to act: gone")],
        ),
        (
            {"outcome": "failure", "final": "a/2.webp", "turns": [turn(env_s=45.2, screen="a/0.webp"), turn()]},
            [("the device was slow", "Turn 1 waited 45 s for the device, usually 0.1 s.")],
        ),
        (
            {"outcome": "failure", "turns": [turn(None, result="error: no call", truncated=True), turn(screen="b/2")]},
            [
                ("replies cut off", "1 of 2 replies was cut off by rollout.max_new_tokens."),
                ("malformed calls", "1 of 2 calls was malformed: “no call”"),
            ],
        ),
        (
            {"outcome": "false_claim", "score": 0, "turns": [turn(screen="a/0"), turn("report_task_complete")],
             "verdict": {"validator": "V", "start": {"wifi": "0"}, "asked": [["get wifi", "1\n"]]}},
            [("did something, not accepted",
              "Reported done, and changed what is asked about; the validator gave 0. get wifi: “0” → “1”")],
        ),
        (
            {"outcome": "false_claim", "score": 0, "turns": [turn(screen="a/0"), turn("report_task_complete")],
             "verdict": {"validator": "V", "start": {"wifi": "0"}, "asked": [["get wifi", "0"]]}},
            [("reported done without a change",
              "Reported done, but what the validator asks is as at the start; the validator gave 0.")],
        ),
        (
            {"outcome": "false_claim", "turns": [turn("report_task_complete")]},
            [("reported done at once", "Reported done before it did anything.")],
        ),
        (
            {"outcome": "failure", "final": "b/1.webp", "turns": [turn(touch=[near("OK", 0, 49)])]},
            [
                ("touches on nothing", "1 of 1 touch was on nothing: 49 below “OK” (of 1000)."),
                ("actions without effect", "1 of 1 action was followed by the same screen."),
            ],
        ),
        (
            {"outcome": "out_of_turns", "turns": [turn(), turn(), turn()], "final": "a/3.webp"},
            [
                ("actions without effect", "2 of 3 actions were followed by the same screen."),
                ("the same again and again", "“tap target=OK” 3 times on the same screen."),
                ("out of turns", "It never reported that it was done, in 3 turns."),
            ],
        ),
    ],
)  # fmt: skip
def test_what_stands_out(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert findings(row) == expected


def test_rows_of_former_versions_are_read() -> None:
    assert findings({}) == [] and answers({}) == []
    assert findings({"outcome": "infra_error", "failure": "gone"}) == [("lost to infrastructure", "Lost: gone")]


def test_whoever_aims_too_low_hits_the_neighbours_of_what_successes_touch() -> None:
    low = [[near("Battery", 0, 0), near("Wi-Fi", 0, 29)], [near("Clock", 0, 0), near("Settings", 0, 8)]]
    (found,) = beside(low, {"Settings", "Wi-Fi"})
    assert found == (
        "touches beside the goal",
        "2 of 2 touches were just below what successes of this task touch: 29 below “Wi-Fi”, 8 below “Settings” "
        "(of 1000).",
    )
    left = [low[0], [near("Clock", 0, 0), near("Settings", -8, 0)]]
    assert beside(left, {"Settings", "Wi-Fi"}) == []  # no common direction
    assert beside(low[:1], {"Wi-Fi"}) == []  # once is no habit
    assert beside(low, set()) == []


def test_findings_are_counted_over_a_group() -> None:
    one, two = [("slow", "45 s"), ("slow", "46 s")], [("slow", "12 s"), ("lost", "gone")]
    assert common([one, two, []]) == [("slow", 2), ("lost", 1)]


def test_a_touch_tells_the_nearest_places_and_how_far_beside_them_it_was() -> None:
    back = Place("Back", 0, 900, 300, 1000)
    assert touched([back, OK], (500, 649)) == (Touch(OK, 0, 49), Touch(back, 200, -251))
    assert touched([OK], (300, 600)) == (Touch(OK, 0, 0),)
    assert touched([OK], (299, 499)) == (Touch(OK, -1, -1),)
    assert touched([], (1, 1)) == () and len(touched([OK] * 9, (1, 1))) == NEAR


@given(st.integers(0, 300), st.integers(0, 1000), st.integers(0, 1000))
def test_a_touch_is_on_what_the_phone_takes_it_for(seed: int, x: int, y: int) -> None:
    state = make_state(seed, "shuffled")
    places = [Place.of_pixels(each.name, each.box, WIDTH, HEIGHT) for each in elements(state)]
    hit = element_at(state, *Point(x, y).to_pixels(WIDTH, HEIGHT))
    first = touched(places, (x, y))[0]
    assert (hit is None) == bool(first.right or first.below)
    assert hit is None or first.place.name == hit.name


class Bare:
    """Nothing is good enough."""

    def __init__(self) -> None:
        self.wanted = "1"

    async def snapshot(self, probe: Any) -> dict[str, str]:
        return {}

    async def score(self, probe: Any, before: Any) -> float:
        return 0.0


def test_a_verdict_tells_how_the_validator_decides() -> None:
    from dataclasses import replace

    _, verdict = heard(replace(toy_task(), validation=Bare()))
    assert verdict.validator == "Bare(wanted='1')"
    words, source = verdict.rule.split("\n\n")
    assert words == "Nothing is good enough." and source.splitlines()[1] == "    return 0.0"
    _, verdict = heard(WIFI_ON)
    assert verdict.validator.startswith("SwitchesAre(") and "no other switch was changed" in verdict.rule
