"""What stands out in an episode that failed: the facts that a person would look for first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cua_agent.calls.schema import REPORT_TASK_COMPLETE, SLEEP

SLOW_S = 10.0
"""A turn that waited for its device longer than that stands out."""
_NEXT_TO = 150
"""How far from a place its neighbours are touched, of 1000."""
_LISTED = 3
_SHOWN = 60
_WAITED = {
    "starting": "for the device to start",
    "sampling": "for the model",
    "acting": "for the device to act",
    "scoring": "for the validator",
}
_LEAVES_THE_SCREEN = (REPORT_TASK_COMPLETE, SLEEP)

Row = Mapping[str, Any]
Finding = tuple[str, str]
"""What kind of thing it is, in words that can be counted over a group, and what was seen."""


def findings(row: Row) -> list[Finding]:
    """Of a recorded episode, the most telling first; none of a success."""
    if row.get("outcome") == "success":
        return []
    turns = [turn for turn in row.get("turns") or [] if isinstance(turn, dict)]
    looked: Sequence[Callable[[Row, Sequence[Row]], Iterator[Finding]]] = (
        *(_lost, _slow, _malformed, _missed, _refused),
        *(_without_effect, _repeated, _out_of_turns),
    )
    return [finding for look in looked for finding in look(row, turns)]


def common(members: Iterable[Sequence[Finding]]) -> list[tuple[str, int]]:
    """How many of several episodes each kind of finding was made in, the most frequent first."""
    return Counter(kind for found in members for kind in dict.fromkeys(kind for kind, _ in found)).most_common()


def answers(verdict: Mapping[str, Any]) -> list[tuple[str, str, str | None]]:
    """What a validator asked at the end, the answer, and the one at the start (None where it did not ask)."""
    start: dict[str, str] = verdict.get("start") or {}
    found = []
    for question, answer in verdict.get("asked") or []:
        before = next((start[key] for key in start if question == key or question.endswith(f" {key}")), None)
        found.append((question, answer.strip(), None if before is None else before.strip()))
    return found


def touches_of(row: Row) -> list[Sequence[Row]]:
    """What stood at and near each place that an episode touched, the nearest first."""
    return [turn["touch"] for turn in row.get("turns") or [] if isinstance(turn, dict) and turn.get("touch")]


def beside(touches: Sequence[Sequence[Row]], names: Collection[str]) -> list[Finding]:
    """Touches of a failed episode on something else than what successes of its task touch, with `names`, and next to
    it: whoever aims badly hits the neighbours."""
    off = [near for near in touches if near[0]["place"]["name"] not in names]
    meant = [next((touch for touch in near[1:] if touch["place"]["name"] in names), None) for near in off]
    found = [
        touch for touch in meant if touch is not None and max(abs(touch["right"]), abs(touch["below"])) <= _NEXT_TO
    ]
    if len(found) < 2 or len({_side(touch) for touch in found}) > 1:
        return []
    text = f"{_share(found, touches, 'touch', 'touches')} just {_side(found[0])} what successes of this task touch"
    return [("touches beside the goal", f"{text}: {_asides(found)} (of 1000).")]


def _lost(row: Row, turns: Sequence[Row]) -> Iterator[Finding]:
    if row.get("outcome") != "infra_error":
        return
    told = ["Lost"]
    if row.get("device") is not None:
        told.append(f"on device {row['device']}")
    if row.get("broken_off"):
        what, seconds = row["broken_off"]
        told.append(f"after {_count(len(turns), 'turn')}, waiting {seconds:g} s {_WAITED.get(what, f'for {what}')}")
    yield "lost to infrastructure", f"{' '.join(told)}: {row.get('failure') or 'no cause was told'}"


def _slow(row: Row, turns: Sequence[Row]) -> Iterator[Finding]:
    slow = [(turn.get("env_s") or 0, number) for number, turn in enumerate(turns, start=1)]
    seconds, number = max(slow, default=(0, 0))
    if seconds > SLOW_S:
        others = sorted(each for each, other in slow if other != number)
        usual = f", usually {others[len(others) // 2]:.1f} s" if others else ""
        device = "the device" if row.get("device") is None else f"device {row['device']}"
        yield "the device was slow", f"Turn {number} waited {seconds:.0f} s for {device}{usual}."


def _malformed(_: Row, turns: Sequence[Row]) -> Iterator[Finding]:
    cut = [turn for turn in turns if turn.get("truncated")]
    wrong = [turn for turn in turns if not turn.get("action")]
    if cut:
        yield "replies cut off", f"{_share(cut, turns, 'reply', 'replies')} cut off by rollout.max_new_tokens."
    if wrong:
        why = _quoted(str(wrong[0].get("result") or "").removeprefix("error: "))
        yield "malformed calls", f"{_share(wrong, turns, 'call', 'calls')} malformed: {why}"


def _missed(row: Row, _: Sequence[Row]) -> Iterator[Finding]:
    nearest = [near[0] for near in touches_of(row)]
    missed = [touch for touch in nearest if touch["right"] or touch["below"]]
    if missed:
        one_side = len(missed) > 1 and len({_side(touch) for touch in missed}) == 1
        side = f", all {_side(missed[0])} what is nearest" if one_side else ""
        share = _share(missed, nearest, "touch", "touches")
        yield "touches on nothing", f"{share} on nothing{side}: {_asides(missed)} (of 1000)."


def _refused(row: Row, turns: Sequence[Row]) -> Iterator[Finding]:
    claimed = row.get("outcome") == "false_claim"
    if not claimed and row.get("outcome") != "out_of_turns":
        return
    if claimed and len(turns) == 1:
        yield "reported done at once", "Reported done before it did anything."
        return
    asked = answers(row.get("verdict") or {})
    changed = [(q, answer, before) for q, answer, before in asked if before is not None and answer != before]
    score = f"the validator gave {row.get('score') or 0:g}"
    told = ", ".join(f"{q}: {_quoted(before or '')} → {_quoted(answer)}" for q, answer, before in changed[:_LISTED])
    if claimed and changed:
        yield "did something, not accepted", f"Reported done, and changed what is asked about; {score}. {told}"
    elif claimed and any(before is not None for _, _, before in asked):
        yield (
            "reported done without a change",
            f"Reported done, but what the validator asks is as at the start; {score}.",
        )
    elif claimed:
        heard = ", ".join(f"{q}: {_quoted(answer)}" for q, answer, _ in asked[:_LISTED])
        yield "reported done, not accepted", f"Reported done; {score}. It heard: {heard or 'nothing'}"
    elif changed:
        yield "did something, not accepted", f"Changed what is asked about; {score}. {told}"


def _without_effect(row: Row, turns: Sequence[Row]) -> Iterator[Finding]:
    screens = [_pixels(name) for name in (*(turn.get("screen") for turn in turns), row.get("final"))]
    acted = [
        (before, after)
        for turn, (before, after) in zip(turns, pairwise(screens), strict=True)
        if turn.get("action") and not str(turn["action"]).startswith(_LEAVES_THE_SCREEN)
    ]
    same = [pair for pair in acted if pair[0] is not None and pair[0] == pair[1]]
    if same:
        text = _share(same, acted, "action", "actions")
        yield "actions without effect", f"{text} followed by the same screen."


def _repeated(_: Row, turns: Sequence[Row]) -> Iterator[Finding]:
    done = Counter((turn.get("screen"), turn["action"]) for turn in turns if turn.get("action") and turn.get("screen"))
    if done and (most := done.most_common(1)[0])[1] > 2:
        yield "the same again and again", f"{_quoted(most[0][1])} {most[1]} times on the same screen."


def _out_of_turns(row: Row, turns: Sequence[Row]) -> Iterator[Finding]:
    if row.get("outcome") == "out_of_turns":
        yield "out of turns", f"It never reported that it was done, in {_count(len(turns), 'turn')}."


def _pixels(screen: str | None) -> str | None:
    """What two screens with the same pixels share, wherever they are kept."""
    return None if screen is None else screen.rpartition("/")[2]


def _share(part: Sequence[Any], whole: Sequence[Any], one: str, many: str) -> str:
    return f"{len(part)} of {_count(len(whole), one, many)} {'was' if len(part) == 1 else 'were'}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _side(touch: Row) -> str:
    right, below = touch["right"], touch["below"]
    if abs(below) >= abs(right):
        return "below" if below > 0 else "above"
    return "right of" if right > 0 else "left of"


def _asides(touches: Sequence[Row]) -> str:
    """How far beside which places, each once."""
    told = (
        f"{max(abs(touch['right']), abs(touch['below']))} {_side(touch)} {_quoted(touch['place']['name'])}"
        for touch in touches
    )
    listed = list(dict.fromkeys(told))
    return ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "")


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= _SHOWN else line[: _SHOWN - 1] + '…'}”"
