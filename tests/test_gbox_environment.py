"""A box behind the environment protocol: against a local GBox, over HTTP."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest

from cua_agent import actions
from cua_agent.actions import Button, Direction, Point
from cua_agent.envs.android.start import ANDROID_FAMILIES, android_start
from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.gbox.environment import GBoxEnvironment
from cua_agent.envs.local_gbox.faults import Fault, FaultKind, Operation, ScriptedFaults
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.envs.local_gbox.server import LocalGBox, running
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.latency import Latency
from cua_agent.envs.pocket.tasks import FAMILIES
from cua_agent.envs.pocket.validators import FOCUS, get_command
from cua_agent.tasks import seed_for
from tests.gbox_rig import TASKS, WIFI_ON, box_on, factory_on, play_expert, pool_on

T = TypeVar("T")
SEED = seed_for("train", 3)
CENTRE = Point(500, 500)


@dataclass
class Counting:
    """A fault source that breaks nothing and counts requests."""

    counts: Counter[Operation] = field(default_factory=Counter)

    def decide(self, stream: str, operation: Operation, number: int) -> None:
        self.counts[operation] += 1

    def taken(self) -> Counter[Operation]:
        counts = Counter(self.counts)
        self.counts.clear()
        return counts


COUNTING = Counting()


@pytest.fixture(scope="module")
def gbox() -> Iterator[LocalGBox]:
    with running(LocalGBoxOptions(faults=COUNTING)) as server:
        yield server


def on_box(server: LocalGBox, use: Callable[[Any], Awaitable[T]], **changes: Any) -> T:
    async def main() -> T:
        async with box_on(server, **changes) as box:
            return await use(box)

    return asyncio.run(main())


def broken(*faults: tuple[Operation, int, Fault], **options: Any) -> Any:
    """A server with faults at given requests of every box."""
    script = ScriptedFaults({(operation, number): fault for operation, number, fault in faults})
    return running(LocalGBoxOptions(faults=script, **options))


@pytest.mark.parametrize("category", [family.category for family in FAMILIES])
def test_the_expert_solves_every_family_and_sees_what_pocket_shows(gbox: LocalGBox, category: str) -> None:
    tasks = [task for task in TASKS.values() if task.category == category]

    async def play(box: Any) -> list[float]:
        return [await play_expert(box, task, seed_for("train", seed)) for seed, task in enumerate(tasks[:2])]

    assert on_box(gbox, play) == [1.0] * len(tasks[:2])


def test_a_goal_that_was_not_reached_scores_0(gbox: LocalGBox) -> None:
    task = TASKS["brightness/25/w0"]

    async def use(box: GBoxEnvironment) -> float:
        await box.reset(task, SEED)
        return await box.compute_reward()

    assert on_box(gbox, use) == 0.0


@pytest.mark.parametrize(
    "action",
    [
        actions.Tap(CENTRE),
        actions.DoubleTap(CENTRE),
        actions.LongPress(CENTRE, 0.1),
        actions.TypeText("hello", CENTRE, press_enter=True),
        actions.TypeText("hello"),
        actions.Swipe(CENTRE, Point(500, 100)),
        actions.Scroll(Direction.DOWN),
        actions.Scroll(Direction.UP, CENTRE),
        actions.Drag(CENTRE, Point(900, 500)),
        actions.PressKey("enter"),
        actions.PressButton(Button.BACK),
        actions.PressButton(Button.HOME),
        actions.PressButton(Button.VOLUME_UP),
        actions.Wait(0.01),
        actions.ReportTaskComplete(),
    ],
    ids=lambda action: type(action).__name__,
)
@pytest.mark.parametrize("seed", range(2))
def test_every_action_does_what_it_does_on_pocket(gbox: LocalGBox, action: Any, seed: int) -> None:
    async def use(box: GBoxEnvironment) -> tuple[bytes, bytes, str]:
        phone = PocketEnvironment()
        await box.reset(WIFI_ON, seed)
        await phone.reset(WIFI_ON, seed)
        result, expected = await box.step(action), await phone.step(action)
        assert result.error is None
        return (
            result.observation.screenshot.tobytes(),
            expected.observation.screenshot.tobytes(),
            await box.probe("dumpsys window | grep mCurrentFocus"),
        )

    seen, expected, _ = on_box(gbox, use)
    assert seen == expected


def test_an_action_brings_its_screenshot_along(gbox: LocalGBox) -> None:
    """One round trip per turn; nothing else is asked."""

    async def use(box: GBoxEnvironment) -> Counter[Operation]:
        await box.reset(WIFI_ON, SEED)
        COUNTING.taken()
        for _ in range(3):
            await box.step(actions.Tap(CENTRE))
        return COUNTING.taken()

    assert on_box(gbox, use) == Counter({Operation.ACTION: 3})


def test_every_turn_shows_the_screen_of_that_turn(gbox: LocalGBox) -> None:
    """The model must not stay with the picture of its first turn."""

    async def use(box: GBoxEnvironment) -> set[bytes]:
        seen = {(await box.reset(TASKS["toggle/wi-fi-on/w0"], 2)).screenshot.tobytes()}
        for name in ("Home", "Settings"):
            at = await box.locate(name)
            assert at is not None
            seen.add((await box.step(actions.Tap(at))).observation.screenshot.tobytes())
        return seen

    assert len(on_box(gbox, use)) == 3


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("pixel_scale", [1, 3])
def test_places_are_right_at_every_size_of_the_screenshot(gbox: LocalGBox, scale: float, pixel_scale: int) -> None:
    async def use(box: GBoxEnvironment) -> tuple[tuple[int, int], Point | None, str]:
        box._pixel_scale = pixel_scale
        first = await box.reset(WIFI_ON, 2)
        at = await box.locate("Home")
        assert at is not None
        await box.step(actions.Tap(at))
        return first.screenshot.size, at, await box.probe("dumpsys window | grep mCurrentFocus")

    size, at, focus = on_box(gbox, use, scale=scale)
    assert size == (round(128 * pixel_scale * scale), round(224 * pixel_scale * scale))
    assert at is not None and abs(at.x - 500) <= 10 and at.y > 900
    assert "nexuslauncher" in focus


def test_grounding_asks_the_model_and_finds_nothing_where_nothing_is(gbox: LocalGBox) -> None:
    async def use(box: GBoxEnvironment) -> tuple[Any, Any, Counter[Operation]]:
        await box.reset(WIFI_ON, SEED)
        COUNTING.taken()
        return await box.locate("home"), await box.locate("No such thing"), COUNTING.taken()

    home, nothing, asked = on_box(gbox, use)
    assert isinstance(home, Point) and nothing is None
    assert asked == Counter({Operation.MODEL: 2})


def test_a_key_that_does_not_exist_costs_the_turn_and_no_call(gbox: LocalGBox) -> None:
    async def use(box: GBoxEnvironment) -> tuple[Any, bytes]:
        first = await box.reset(WIFI_ON, SEED)
        COUNTING.taken()
        return await box.step(actions.PressKey("Enterr")), first.screenshot.tobytes()

    result, before = on_box(gbox, use)
    assert result.error == result.observation.text
    assert result.error is not None and result.error.startswith("unknown key 'Enterr'; allowed: back, control, ")
    assert result.observation.screenshot.tobytes() == before
    assert COUNTING.counts[Operation.ACTION] == 0


def test_what_the_service_refuses_costs_the_turn_and_the_box_stays(gbox: LocalGBox) -> None:
    async def use(box: GBoxEnvironment) -> tuple[Any, bool]:
        await box.reset(WIFI_ON, SEED)
        return await box.step(actions.Tap(CENTRE)), await box.is_fit()

    result, fit = on_box(gbox, use, screenshot_delay_s=31.0)  # more than the service allows
    assert result.error == result.observation.text
    assert result.error is not None and result.error.startswith("refused: 422 options.screenshot")
    assert fit


@pytest.mark.parametrize("family", ANDROID_FAMILIES)
def test_a_phone_is_made_ready_by_its_shell(family: str) -> None:
    """The way of a real phone, on a simulated one; it has no goal in words of its own."""
    task = next(task for task in TASKS.values() if task.category == family)

    async def use(box: GBoxEnvironment) -> str:
        for seed in range(4):
            assert (await box.reset(task, seed)).text == ""
            ready = android_start(task.validation, seed).settings
            assert {key: (await box.probe(get_command(key))).strip() for key in ready} == ready
        return await box.probe(FOCUS)

    with running() as server:
        assert "nexuslauncher" in on_box(server, use, reset="android")


def test_a_linux_box_plays_as_well(gbox: LocalGBox) -> None:
    assert on_box(gbox, lambda box: play_expert(box, TASKS["notification/w0"], 5), box="linux") == 1.0
    kinds = [box["type"] for box in gbox.ledger()["boxes"]]
    assert kinds[-1] == "linux"


def test_a_fresh_box_is_used_once(gbox: LocalGBox) -> None:
    async def main() -> list[str]:
        ids = []
        async with pool_on(gbox, 1, reset="fresh") as pool:
            for _ in range(3):
                async with pool.lend() as box:
                    assert isinstance(box, GBoxEnvironment)
                    await box.reset(WIFI_ON, SEED)
                    ids.append(box.box.id)
        return ids

    assert len(set(asyncio.run(main()))) == 3


def test_a_task_that_the_box_does_not_know_is_said(gbox: LocalGBox) -> None:
    with pytest.raises(EnvironmentFailure, match=r"pocket reset: .*'mine' is unknown"):
        on_box(gbox, lambda box: box.reset(replace(WIFI_ON, id="mine"), 1))


def test_boxes_act_side_by_side() -> None:
    """The SDK's synchronous client would let one episode after the other wait."""
    count, acting, most = 6, 0, 0
    with running(LocalGBoxOptions(action_latency=Latency("constant", 0.1))) as server:

        async def main() -> None:
            async with pool_on(server, count) as pool:

                async def episode() -> None:
                    nonlocal acting, most
                    async with pool.lend() as box:
                        await box.reset(TASKS["notification/w0"], SEED)
                        acting += 1
                        most = max(most, acting)
                        for _ in range(4):
                            await box.step(actions.Tap(CENTRE))
                        acting -= 1

                await asyncio.gather(*[episode() for _ in range(count)])

        asyncio.run(main())
    assert most > 1


DEATH = Fault(FaultKind.DEATH, status=404)


@pytest.mark.parametrize(
    ("operation", "number"), [(Operation.ACTION, 2), (Operation.COMMAND, 1), (Operation.SCREENSHOT, 1)]
)
def test_a_box_that_dies_costs_the_episode(operation: Operation, number: int) -> None:
    with broken((operation, number, DEATH)) as server:
        with pytest.raises(EnvironmentFailure, match="404"):
            on_box(server, lambda box: play_expert(box, TASKS["toggle/wi-fi-on/w0"], 8))
        assert server.ledger()["summary"]["running"] == []


@pytest.mark.parametrize("kind", [FaultKind.TRUNCATED_IMAGE, FaultKind.DUPLICATE])
def test_a_bad_picture_is_taken_again_and_the_action_is_not_repeated(kind: FaultKind) -> None:
    """A repeated answer shows the screen before the action: it must not be taken for the one after it."""
    faults = [(Operation.ACTION, number, Fault(kind, after=True)) for number in (1, 2, 3)]
    with broken(*faults, (Operation.SCREENSHOT, 1, Fault(FaultKind.TRUNCATED_IMAGE, after=True))) as server:
        assert on_box(server, lambda box: play_expert(box, TASKS["toggle/wi-fi-on/w0"], 8)) == 1.0
        summary = server.ledger()["summary"]
    assert summary["faults"][kind] >= 1
    assert summary["sent_twice"] == []


@pytest.mark.parametrize("kind", [FaultKind.SERVER_ERROR, FaultKind.DROP, FaultKind.TIMEOUT])
@pytest.mark.parametrize("after", [False, True])
def test_an_action_without_an_answer_ends_the_episode(kind: FaultKind, after: bool) -> None:
    with broken((Operation.ACTION, 1, Fault(kind, after=after)), hang_s=3.0) as server:

        async def use(box: GBoxEnvironment) -> None:
            await box.reset(WIFI_ON, SEED)
            await box.step(actions.Tap(CENTRE))

        with pytest.raises(EnvironmentFailure, match="tap: "):
            on_box(server, use, call_timeout_s=1.0)
        ledger = server.ledger()
    assert ledger["summary"]["executed"] == int(after)
    assert ledger["summary"]["running"] == []


def test_questions_survive_faults() -> None:
    lost = [Fault(kind) for kind in (FaultKind.SERVER_ERROR, FaultKind.DROP, FaultKind.RATE_LIMIT)]
    faults = [(Operation.COMMAND, 2 + number, fault) for number, fault in enumerate(lost)]
    faults += [(Operation.SCREENSHOT, 1 + number, fault) for number, fault in enumerate(lost)]
    with broken(*faults, retry_after_s=0) as server:
        assert on_box(server, lambda box: play_expert(box, TASKS["toggle/wi-fi-on/w0"], 8)) == 1.0
        assert sum(server.ledger()["summary"]["faults"].values()) == 6


def test_a_box_on_which_something_was_broken_off_is_not_fit(gbox: LocalGBox) -> None:
    async def use(box: GBoxEnvironment) -> tuple[bool, bool]:
        await box.reset(WIFI_ON, SEED)
        fit = await box.is_fit()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await box.step(actions.Wait(5))
        return fit, await box.is_fit()

    assert on_box(gbox, use) == (True, False)


def test_a_box_that_has_ended_is_not_fit(gbox: LocalGBox) -> None:
    async def use(box: GBoxEnvironment) -> tuple[bool, bool]:
        fit = await box.is_fit()
        await box.close()
        await box.close()
        return fit, await box.is_fit()

    assert on_box(gbox, use) == (True, False)


def test_a_wrong_key_or_address_is_one_line(gbox: LocalGBox) -> None:
    async def main(**changes: Any) -> None:
        async with factory_on(gbox, **changes):
            pass

    with pytest.raises(WorldUnavailable, match="refuses the key") as caught:
        asyncio.run(main(api_key="wrong"))
    assert "wrong" not in str(caught.value).replace("missing or wrong", "")
    with pytest.raises(WorldUnavailable, match=r"base_url=http://127.0.0.1:1/.*no GBox answers"):
        asyncio.run(main(base_url="http://127.0.0.1:1/api/v1", attempts=1))
