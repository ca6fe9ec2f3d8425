"""Actions, texts, episodes and resets on phones over adb, against a server that speaks the protocol of the real one
and has simulated phones."""

import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from adbutils import AdbClient, adb_path
from hypothesis import given
from hypothesis import strategies as st

from cua_agent import actions
from cua_agent.actions import Button, Direction, Point, ReportTaskComplete
from cua_agent.envs.android.commands import ADB_KEYBOARD, NotPossible, command_of
from cua_agent.envs.android.start import ANDROID_FAMILIES
from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.pocket.oracle import Expert
from cua_agent.envs.pocket.screens import open_screen
from cua_agent.options import ConfigError
from cua_agent.tasks import seed_for
from tests.android_rig import SEED, TASKS, WIFI_ON, on_phone
from tests.fake_adb import FakeAdb, FakePhone, fake_adb
from tests.gbox_rig import grounded
from trainers.config.compose import load_config

SIZE = (1080, 2400)


@pytest.fixture
def phone() -> FakePhone:
    return FakePhone("phone-1", scale=2)


@pytest.fixture
def server(phone: FakePhone, tmp_path: Path) -> Iterator[FakeAdb]:
    with fake_adb(tmp_path / "adb", phone) as server:
        yield server


def test_the_fake_server_is_one_to_the_real_adb_program_and_to_adbutils(tmp_path: Path) -> None:
    phone = FakePhone("phone-1", scale=2)
    with fake_adb(tmp_path / "adb", phone, FakePhone("phone-2", state="offline")) as server:

        def adb(*words: str) -> subprocess.CompletedProcess[bytes]:
            command = [adb_path(), "-P", str(server.port), *words]
            return subprocess.run(command, capture_output=True, timeout=60, check=False)

        assert adb("devices").stdout.decode().split()[-4:] == ["phone-1", "device", "phone-2", "offline"]
        shell = adb("-s", "phone-1", "shell", "echo 'two  blanks'; settings get global wifi_on; echo no >&2; exit 7")
        wifi = str(int(phone.phone.toggles["Wi-Fi"]))
        assert (shell.stdout.decode().split("\n"), shell.stderr) == (["two  blanks", wifi, ""], b"no\n")
        assert shell.returncode == 7
        png = adb("-s", "phone-1", "exec-out", "screencap", "-p").stdout
        assert png.startswith(b"\x89PNG") and png.endswith(b"IEND\xaeB`\x82")
        adb("-s", "phone-1", "shell", "uiautomator dump /data/local/tmp/views.xml")
        assert adb("-s", "phone-1", "pull", "/data/local/tmp/views.xml", str(tmp_path)).returncode == 0
        assert (tmp_path / "views.xml").read_text().startswith("<?xml")
        refused = adb("-s", "phone-2", "shell", "true")
        assert refused.returncode == 1 and b"device offline" in refused.stderr
        device = AdbClient("127.0.0.1", server.port).device("phone-1")
        assert device.screenshot().size == (256, 448)
        assert 'text="Home"' in device.dump_hierarchy()


AT, END = Point(100, 200), Point(900, 999)


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (actions.Tap(AT), "input tap 107 479"),
        (actions.DoubleTap(AT), "input tap 107 479 && input tap 107 479"),
        (actions.LongPress(AT, 1.5), "input swipe 107 479 107 479 1500"),
        (actions.Swipe(AT, END), "input swipe 107 479 971 2395 300"),
        (actions.Drag(AT, END), "input draganddrop 107 479 971 2395 1000"),
        (actions.Scroll(Direction.DOWN), "input swipe 539 1798 539 598 500"),  # the finger goes up
        (actions.Scroll(Direction.UP, AT), "input swipe 107 0 107 1079 500"),  # kept on the screen
        (actions.Scroll(Direction.RIGHT), "input swipe 809 1198 269 1198 500"),
        (actions.PressKey("Enter"), "input keyevent KEYCODE_ENTER"),
        (actions.PressKey("ctrl+A"), "input keycombination KEYCODE_CTRL_LEFT KEYCODE_A"),
        (actions.PressKey("Up"), "input keyevent KEYCODE_DPAD_UP"),
        (actions.PressButton(Button.APP_SWITCH), "input keyevent KEYCODE_APP_SWITCH"),
        (actions.Wait(1.0), ""),
        (ReportTaskComplete("done"), ""),
    ],
)
def test_what_an_action_is_to_the_shell(action: Any, line: str) -> None:
    assert command_of(action, SIZE, adb_keyboard=False) == line


def test_a_key_that_a_phone_does_not_have_is_answered_with_those_that_it_has() -> None:
    with pytest.raises(NotPossible, match=r"unknown key 'Hyper'; allowed: .*enter.*f1 to f12, characters"):
        command_of(actions.PressKey("Hyper"), SIZE, adb_keyboard=False)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60) | st.sampled_from(["%s", "%%s %s%"]))
def test_the_phone_gets_every_text_as_it_is(text: str) -> None:
    line = command_of(actions.TypeText(text), SIZE, adb_keyboard=False)
    words = shlex.split(line)
    typed = [words[at + 2] for at, word in enumerate(words) if word == "input" and words[at + 1] == "text"]
    assert "".join(each.replace("%s", " ") for each in typed) == text


NASTY = ['it\'s "5" $HOME `id` \\ ; rm -rf & | > < * ~ # ! (x)', "100%sure %s %%s", "  two  blanks ", "-n", "a\\nb"]


@pytest.mark.parametrize("text", [*NASTY, "Grüße, 你好, 😀 it's $x"])
def test_a_text_of_any_kind_reaches_the_field_and_replaces_what_was_there(
    text: str, server: FakeAdb, phone: FakePhone
) -> None:
    phone.has_adb_keyboard = True

    async def play(environment: Any) -> str:
        await environment.reset(WIFI_ON, SEED)
        phone.phone.dialog, phone.phone.dialog_in = None, None
        open_screen("Browser", phone.phone)
        bar = await environment.locate("address BAR")
        await environment.step(actions.TypeText("before", bar))
        assert phone.phone.draft["Address bar"] == "before"
        assert (await environment.step(actions.TypeText(text))).error is None
        return phone.phone.draft["Address bar"]

    assert on_phone(server, play, adb_keyboard=True) == text
    assert phone.input_method == ADB_KEYBOARD


def test_what_cannot_be_typed_is_told_to_the_agent_and_is_not_typed(server: FakeAdb, phone: FakePhone) -> None:
    async def play(environment: Any) -> Any:
        await environment.reset(WIFI_ON, SEED)
        before = len(phone.ran)
        result = await environment.step(actions.TypeText("Grüße"))
        assert [argv[0] for argv in phone.ran[before:]] == ["screencap"]
        return result

    result = on_phone(server, play)
    assert result.error == "nothing was typed: this phone's keyboard has the characters of ASCII only"
    assert result.observation.text == result.error
    with pytest.raises(EnvironmentFailure, match=r"phone-1: ime enable .* Unknown input method"):
        on_phone(server, play, adb_keyboard=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ANDROID_FAMILIES)
def test_an_episode_is_played_and_scored(family: str, server: FakeAdb, phone: FakePhone) -> None:
    """The expert reads the simulated phone's state and names elements; all that it does goes over adb."""
    tasks = [task for task in TASKS.values() if task.category == family]

    async def play(environment: Any) -> list[float]:
        scores = []
        for seed, task in enumerate(tasks[:2]):
            seen = await environment.reset(task, seed_for("train", seed))
            assert seen.screenshot.size == (256, 448) and seen.screenshot.mode == "RGB" and seen.text == ""
            expert = Expert(task.validation, await task.validation.snapshot(environment._world.phone.probe))
            for _ in range(2 * task.max_steps):
                action = expert.action(phone.phone)
                if isinstance(action, ReportTaskComplete):
                    break
                assert (await environment.step(await grounded(environment, action))).error is None
            scores.append(await environment.compute_reward())
        return scores

    assert set(on_phone(server, play)) == {1.0}


def test_a_goal_that_does_not_hold_scores_nothing(server: FakeAdb, phone: FakePhone) -> None:
    async def play(environment: Any) -> float:
        await environment.reset(WIFI_ON, SEED)
        phone.phone.toggles["Wi-Fi"] = False
        score: float = await environment.compute_reward()
        return score

    assert on_phone(server, play) == 0.0


def test_what_is_not_on_the_screen_is_not_found(server: FakeAdb, phone: FakePhone) -> None:
    async def play(environment: Any) -> list[Any]:
        await environment.reset(WIFI_ON, SEED)
        phone.phone.dialog = None
        return [await environment.locate(name) for name in ("home", "No such thing")]

    found, missing = on_phone(server, play)
    assert (found.to_pixels(256, 448), missing) == ((128, 416), None)


def test_apps_lose_their_data_before_every_episode(server: FakeAdb, phone: FakePhone) -> None:
    async def play(environment: Any) -> None:
        await environment.reset(WIFI_ON, SEED)

    on_phone(server, play, clear=("com.android.chrome",))
    assert ["pm", "clear", "com.android.chrome"] in phone.ran
    with pytest.raises(EnvironmentFailure, match=r"phone-1: pm clear com\.nobody\.home: Failed"):
        on_phone(server, play, clear=("com.nobody.home",))


@contextmanager
def emulator_console(answer: str) -> Iterator[tuple[int, list[str]]]:
    """An emulator's console, as `adb emu` talks to it: a banner, then one answer for every line."""
    heard: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"Android Console: type 'help' for a list of commands\r\nOK\r\n")
                while "quit" not in heard:
                    heard.extend(connection.recv(1000).decode().splitlines())
                connection.sendall(f"{answer}\r\n".encode())

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], heard


@pytest.mark.slow
def test_an_emulator_starts_from_its_snapshot(tmp_path: Path) -> None:
    async def play(environment: Any) -> None:
        await environment.reset(WIFI_ON, SEED)

    for answer, place in (("OK", "good"), ("KO: no such snapshot", "bad")):
        with emulator_console(answer) as (port, heard):
            phone = FakePhone(f"emulator-{port}")
            with fake_adb(tmp_path / place, phone) as server:
                if answer == "OK":
                    on_phone(server, play, snapshot="clean")
                    assert phone.ran[0] == ["getprop", "sys.boot_completed"]
                else:
                    with pytest.raises(EnvironmentFailure, match=r"emulator-\d+: snapshot 'clean': no such snapshot"):
                        on_phone(server, play, snapshot="clean")
            assert heard == ["avd snapshot load clean", "quit"]


def test_a_snapshot_of_a_phone_that_is_no_emulator_is_refused() -> None:
    keys = ["env=android", "env.args.snapshot=clean", "env.args.serials=[emulator-5554,R58]"]
    with pytest.raises(ConfigError, match=r"^env\.args: snapshot=clean with serials=R58; allowed: emulator-<port>$"):
        load_config(keys)


def test_the_tasks_are_those_that_gbox_trains_on_real_phones() -> None:
    gbox, android = load_config(["env=gbox"]).env, load_config(["env=android"]).env
    assert android.tasks == gbox.tasks
    assert android.world.training_tasks() == gbox.world.training_tasks()
