"""An adb server that speaks the real protocol, with simulated phones behind it.

The phones are those of `pocket`. Their shell is a real one (`/bin/sh`), so that quoting, pipes and `&&` mean what they
mean on a phone; Android's programs (`input`, `settings`, `screencap`, ...) are scripts on its PATH that ask this
process. Frames as in AOSP's packages/modules/adb: OVERVIEW.TXT, SERVICES.TXT, SYNC.TXT, shell_protocol.h.
"""

import base64
import io
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any
from xml.sax.saxutils import quoteattr

from cua_agent.actions import Action, Button, Drag, LongPress, Point, PressButton, PressKey, Swipe, Tap, TypeText
from cua_agent.envs.local_gbox.android import BadArgument, change
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.gestures import apply_action
from cua_agent.envs.pocket.screens import HEIGHT, WIDTH, elements
from cua_agent.envs.pocket.shell import run_command
from cua_agent.envs.pocket.state import PhoneState, make_state
from cua_agent.envs.pocket.validators import BATTERY, FOCUS, INTENT, NOTIFICATIONS, PAGE_TITLE

STATES = {
    "offline": "device offline",
    "unauthorized": "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\nTry 'adb kill-server'",
}
_PROGRAMS = (
    *("am", "cmd", "content", "dumpsys", "getprop", "ime", "input", "pm", "screencap"),
    *("settings", "svc", "uiautomator", "wm"),
)
_SCRIPT = """#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/$PHONE_PORT
printf '%d\\n' $(($# + 2)) >&3
printf '%s\\0' "$PHONE_SERIAL" "${0##*/}" "$@" >&3
IFS= read -r code <&3
if [ "$code" = 0 ]; then cat <&3; else cat <&3 >&2; fi
exit $code
"""
_PIPED = (FOCUS, BATTERY, NOTIFICATIONS, INTENT, PAGE_TITLE)
_BUTTONS = {"KEYCODE_BACK": Button.BACK, "KEYCODE_HOME": Button.HOME}
_FILES = "/data/local/tmp"


@dataclass
class FakePhone:
    """A phone of 128 x 224 pixels times `scale`; `ran` are the programs that were called, `shell_lines` what came over
    adb. `state` of the connection; `delay_s` before a shell answers, `cut` what is left of a screenshot's bytes."""

    serial: str
    phone: PhoneState = field(default_factory=lambda: make_state(0, "fixed"))
    scale: int = 1
    state: str = "device"
    delay_s: float = 0.0
    cut: int | None = None
    has_adb_keyboard: bool = False
    ran: list[list[str]] = field(default_factory=list)
    shell_lines: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    everything_is_selected: bool = False
    input_method: str = "com.android.inputmethod.latin/.LatinIME"

    def call(self, argv: list[str], folder: Path) -> tuple[int, bytes]:
        """Exit code and output of one of Android's programs."""
        with self.lock:
            self.ran.append(argv)
            try:
                return 0, self._call(argv, folder)
            except BadArgument as error:
                return 1, f"{error}\n".encode()

    def _call(self, argv: list[str], folder: Path) -> bytes:
        match argv:
            case ["screencap", "-p"]:
                png = io.BytesIO()
                draw(self.phone, self.scale).save(png, "PNG")
                return png.getvalue()[: self.cut]
            case ["uiautomator", "dump", path]:
                Path(path).write_text(self._views(), encoding="utf-8")
            case ["input", *words]:
                self._input(words)
            case ["pm", "clear", "com.android.chrome"]:
                return b"Success\n"
            case ["pm", "clear", _]:
                raise BadArgument("Failed")
            case ["ime", "enable" | "set" as verb, name]:
                return self._ime(verb, name)
            case ["am", "broadcast", "-a", "ADB_INPUT_B64", "--es", "msg", text]:
                if self.input_method.startswith("com.android.adbkeyboard/"):
                    self._type(base64.b64decode(text).decode())
                return b"Broadcasting: Intent { act=ADB_INPUT_B64 }\nBroadcast completed: result=0\n"
            case ["getprop", "sys.boot_completed"]:
                return b"1\n"
            case ["dumpsys", *words] if not change(self.phone, argv):
                lines = [run_command(self.phone, piped) for piped in _PIPED if piped.startswith(" ".join(argv) + " |")]
                return "\n".join([f"DUMP OF SERVICE {words[0]}:", *lines, ""]).encode()
            case ["settings", "get", *_] | ["content", *_]:
                return f"{run_command(self.phone, ' '.join(argv))}\n".encode()
            case _ if argv[0] != "dumpsys" and not change(self.phone, argv):
                raise BadArgument(f"unknown command: {' '.join(argv)}")
        return b""

    def _input(self, words: list[str]) -> None:
        match words:
            case ["tap", x, y]:
                self._act(Tap(self._point(x, y)))
            case ["swipe", x, y, to_x, to_y, ms] if (x, y) == (to_x, to_y):
                self._act(LongPress(self._point(x, y), int(ms) / 1000))
            case ["swipe", x, y, to_x, to_y, _]:
                self._act(Swipe(self._point(x, y), self._point(to_x, to_y)))
            case ["draganddrop", x, y, to_x, to_y, _]:
                self._act(Drag(self._point(x, y), self._point(to_x, to_y)))
            case ["text", text] if text.isascii():
                self._type(text.replace("%s", " "))
            case ["text", _]:
                raise BadArgument("java.lang.NullPointerException: Attempt to get length of null array")
            case ["keycombination", "KEYCODE_CTRL_LEFT", "KEYCODE_A"]:
                self.everything_is_selected = True
            case ["keyevent", "KEYCODE_DEL"] if self.everything_is_selected:
                self._type("")
            case ["keyevent", "KEYCODE_DEL"]:
                self._act(PressKey("backspace"))
            case ["keyevent", "KEYCODE_ENTER"]:
                self._act(PressKey("enter"))
            case ["keyevent", key] if key in _BUTTONS:
                self._act(PressButton(_BUTTONS[key]))
            case ["keyevent", "KEYCODE_WAKEUP"]:
                pass
            case _:
                raise BadArgument(f"Error: Unknown command: {' '.join(words)}")

    def _type(self, text: str) -> None:
        """Append to the field that has the focus; in the place of all of it when it is selected."""
        kept = "" if self.everything_is_selected else self.phone.draft.get(self.phone.focus or "", "")
        self.everything_is_selected = False
        self._act(TypeText(kept + text))

    def _act(self, action: Action) -> None:
        apply_action(self.phone, action)

    def _ime(self, verb: str, name: str) -> bytes:
        if not self.has_adb_keyboard:
            raise BadArgument(f"Unknown input method {name} cannot be enabled for user #0")
        if verb == "set":
            self.input_method = name
        return f"Input method {name}: {'selected' if verb == 'set' else 'now enabled'} for user #0\n".encode()

    def _point(self, x: str, y: str) -> Point:
        return Point.at_pixel(int(x) // self.scale, int(y) // self.scale, WIDTH, HEIGHT)

    def _views(self) -> str:
        nodes = []
        for element in elements(self.phone):
            left, top, right, bottom = (edge * self.scale for edge in element.box)
            nodes.append(f'<node text={quoteattr(element.name)} bounds="[{left},{top}][{right},{bottom}]" />')
        return f"<?xml version='1.0' encoding='UTF-8'?><hierarchy rotation=\"0\">{''.join(nodes)}</hierarchy>"


class FakeAdb:
    """The server; stop and start again as often as wanted, on the same port."""

    def __init__(self, folder: Path, *phones: FakePhone) -> None:
        self.folder = folder
        self.phones = {phone.serial: phone for phone in phones}
        (folder / "bin").mkdir(parents=True)
        (folder / "files").mkdir()
        script = folder / "bin" / "ask"
        script.write_text(_SCRIPT)
        script.chmod(0o755)
        for program in _PROGRAMS:
            (folder / "bin" / program).symlink_to(script)
        self._programs = _serve(self, _Program)
        self.adb: Any = _serve(self, _Adb)
        self.port: int = self.adb.server_address[1]

    def stop(self) -> None:
        """As `adb kill-server`: nobody listens any more, and what was under way is cut off."""
        self.adb.shutdown()
        self.adb.server_close()
        for connection in list(self.adb.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._programs.shutdown()
        self._programs.server_close()

    def run(self, phone: FakePhone, line: str) -> tuple[bytes, bytes, int]:
        """A line of the phone's shell."""
        phone.shell_lines.append(line)
        time.sleep(phone.delay_s)
        done = subprocess.run(
            ["/bin/sh", "-c", line.replace(_FILES, str(self.folder / "files"))],
            env={
                "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
                "PHONE_SERIAL": phone.serial,
                "PHONE_PORT": str(self._programs.server_address[1]),
                "LC_ALL": "C.UTF-8",
            },
            cwd=self.folder / "files",
            capture_output=True,
            check=False,
        )
        return done.stdout, done.stderr, done.returncode


class _Server(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64
    fake: FakeAdb
    connections: set[socket.socket]


def _serve(fake: FakeAdb, handler: type[StreamRequestHandler]) -> _Server:
    server = _Server(("127.0.0.1", 0), handler)
    server.fake, server.connections = fake, set()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Program(StreamRequestHandler):
    """One of Android's programs: its arguments in, its exit code and output back."""

    server: Any

    def handle(self) -> None:
        words = []
        for _ in range(int(self.rfile.readline())):
            word = b""
            while (byte := self.rfile.read(1)) != b"\0":
                word += byte
            words.append(word.decode())
        fake: FakeAdb = self.server.fake
        code, output = fake.phones[words[0]].call(words[1:], fake.folder / "files")
        self.wfile.write(f"{code}\n".encode() + output)


class _RefusedError(Exception):
    pass


class _Adb(StreamRequestHandler):
    """One connection of an adb client."""

    server: Any

    def handle(self) -> None:
        self.server.connections.add(self.connection)
        with suppress(OSError):
            try:
                phone: FakePhone | None = None
                while (service := self._request()) is not None:
                    phone = self._answer(service, phone)
                    if phone is None:
                        return
            except _RefusedError as reason:
                self.wfile.write(b"FAIL" + _block(str(reason).encode()))
            finally:
                self.server.connections.discard(self.connection)

    def _request(self) -> str | None:
        length = self.rfile.read(4)
        return self.rfile.read(int(length, 16)).decode() if len(length) == 4 else None

    def _answer(self, service: str, phone: FakePhone | None) -> FakePhone | None:
        """Serve one request; the phone that further ones on this connection go to, or None at its end."""
        fake: FakeAdb = self.server.fake
        name, _, rest = service.partition(":")
        if phone is not None:
            self._on_phone(fake, phone, name, rest)
        elif name == "host-serial":
            serial, _, question = rest.rpartition(":")
            answers = {"features": "shell_v2,cmd", "get-state": "device"}
            self._ready(fake, serial)
            self._okay(answers[question].encode())
        elif rest.startswith(("tport:serial:", "transport:")):
            found = self._ready(fake, rest.rpartition("serial:" if "serial:" in rest else "transport:")[2])
            self.wfile.write(b"OKAY" + (struct.pack("<Q", 1) if rest.startswith("tport") else b""))
            return found
        elif rest == "version":
            self._okay(b"0029")
        elif rest.startswith("devices"):
            self._okay("".join(f"{each.serial}\t{each.state}\n" for each in fake.phones.values()).encode())
        elif rest in ("features", "host-features"):
            self._okay(b"shell_v2,cmd")
        else:
            raise _RefusedError(f"unknown host service {service!r}")
        return None

    def _on_phone(self, fake: FakeAdb, phone: FakePhone, name: str, line: str) -> None:
        kind, *flags = name.split(",")
        if kind == "sync":
            self.wfile.write(b"OKAY")
            return self._sync(fake.folder / "files")
        if kind not in ("shell", "exec"):
            raise _RefusedError("closed")
        self.wfile.write(b"OKAY")
        stdout, stderr, code = fake.run(phone, line)
        if "v2" not in flags:
            self.wfile.write(stdout + stderr)
            return None
        for packet, content in ((1, stdout), (2, stderr), (3, bytes([code]))):
            self.wfile.write(struct.pack("<BI", packet, len(content)) + content)
        return None

    def _sync(self, files: Path) -> None:
        """Stat and receive of the file protocol, version 1."""
        while len(header := self.rfile.read(8)) == 8 and header[:4] != b"QUIT":
            path = files / os.path.relpath(self.rfile.read(struct.unpack("<I", header[4:])[0]).decode(), _FILES)
            content = path.read_bytes() if path.is_file() else None
            if header[:4] == b"STAT":
                mode = 0 if content is None else 0o100644
                self.wfile.write(b"STAT" + struct.pack("<III", mode, len(content or b""), 1))
            elif content is None:
                self.wfile.write(b"FAIL" + struct.pack("<I", 9) + b"not found")
            else:
                done = b"DONE" + struct.pack("<I", 0)
                self.wfile.write(b"DATA" + struct.pack("<I", len(content)) + content + done)

    def _ready(self, fake: FakeAdb, serial: str) -> FakePhone:
        phone = fake.phones.get(serial)
        if phone is None:
            raise _RefusedError(f"device '{serial}' not found")
        if phone.state != "device":
            raise _RefusedError(STATES[phone.state])
        return phone

    def _okay(self, content: bytes) -> None:
        self.wfile.write(b"OKAY" + _block(content))


def _block(content: bytes) -> bytes:
    return f"{len(content):04x}".encode() + content


@contextmanager
def fake_adb(folder: Path, *phones: FakePhone) -> Iterator[FakeAdb]:
    """A server with phones, for the time of the block."""
    server = FakeAdb(folder, *phones)
    try:
        yield server
    finally:
        server.close()
