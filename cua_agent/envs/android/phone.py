"""One phone over adb: shell commands, screenshots, snapshots; whatever breaks is `EnvironmentFailure` in one line."""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from adbutils import AdbClient, AdbError, adb_path
from PIL import Image

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.error_text import first_line

T = TypeVar("T")

_SERVER_S = 3.0
_POLL_S = 0.5
_BROKEN = (AdbError, OSError, EOFError, ValueError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Output:
    """What a shell command printed, and how it ended."""

    stdout: str
    stderr: str
    exit_code: int


@dataclass(frozen=True)
class AdbServer:
    """Where the adb server is that knows the phones. Its calls block, and raise `EnvironmentFailure`."""

    host: str
    port: int

    def states(self) -> dict[str, str]:
        """The state of every phone by its serial: `device` when it is ready, else `offline`, `unauthorized`, ..."""
        try:
            self.reach()
            listed = AdbClient(self.host, self.port, socket_timeout=_SERVER_S).list()
        except _BROKEN as error:
            raise EnvironmentFailure(f"the adb server at {self.host}:{self.port}: {first_line(error)}") from error
        return {info.serial: info.state for info in listed}

    def reach(self) -> None:
        """Raise `EnvironmentFailure` when there is no server; adbutils would start one, of its own port and making."""
        try:
            socket.create_connection((self.host, self.port), timeout=_SERVER_S).close()
        except OSError as error:
            raise EnvironmentFailure(
                f"no adb server answers at {self.host}:{self.port} ({error.strerror or error}); adb start-server"
            ) from error


class Phone:
    """The phone `serial`: one call after the other, in a thread of its own. The connection may be silent for at most
    `timeout_s`. `on_close` is called when the phone is let go of and nothing is under way on it any more."""

    def __init__(self, server: AdbServer, serial: str, timeout_s: float, on_close: Callable[[], None]) -> None:
        self.serial = serial
        self._server = server
        self._device = AdbClient(server.host, server.port, socket_timeout=timeout_s).device(serial)
        self._timeout_s = timeout_s
        self._on_close = on_close
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, f"adb {serial}")

    async def run(self, command: str) -> Output:
        """Run a line of the phone's shell."""
        stdout, stderr, exit_code = await self._call(command.split(" ")[0], lambda: self._shell(command))
        return Output(stdout.decode(errors="replace"), stderr.decode(errors="replace"), exit_code)

    async def probe(self, command: str) -> str:
        """What a command prints; the probe of the validators."""
        return (await self.run(command)).stdout

    async def screenshot(self) -> Image.Image:
        """The screen, RGB, in pixels of the display."""

        def take() -> Image.Image:
            try:
                return Image.open(io.BytesIO(self._shell("screencap -p")[0])).convert("RGB")
            except SyntaxError as error:  # PIL's word for a broken PNG
                raise ValueError(f"a broken screenshot: {error}") from error

        return await self._call("screenshot", take)

    async def load_snapshot(self, name: str) -> None:
        """Bring an emulator of this machine into a saved state, and wait until it answers again."""
        command = [adb_path(), "-s", self.serial, "emu", "avd", "snapshot", "load", name]

        def load() -> str:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self._timeout_s, check=False)
            return done.stderr or "no answer" if done.returncode else done.stdout.partition("KO")[2]

        if problem := await self._call("snapshot", load):
            raise EnvironmentFailure(f"{self.serial}: snapshot {name!r}: {' '.join(problem.strip(': ').split())[:160]}")
        deadline = time.monotonic() + self._timeout_s
        while not await self._has_booted(deadline):
            await asyncio.sleep(_POLL_S)

    async def _has_booted(self, deadline: float) -> bool:
        try:
            if (await self.probe("getprop sys.boot_completed")).strip() == "1":
                return True
        except EnvironmentFailure:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise EnvironmentFailure(f"{self.serial}: not ready within {self._timeout_s:g} s")
        return False

    async def close(self) -> None:
        """Let go of the phone; safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.submit(self._on_close)
            thread.shutdown(wait=False)

    def _shell(self, command: str) -> tuple[bytes, bytes, int]:
        self._server.reach()
        done = self._device.shell2(command, timeout=self._timeout_s, encoding=None, v2=True)
        stdout = done.stdout or (b"" if done.stderr else done.output)  # without shell v2 all of it is `output`
        return stdout, done.stderr, done.returncode

    async def _call(self, what: str, call: Callable[[], T]) -> T:
        if self._thread is None:
            raise EnvironmentFailure(f"{self.serial}: {what}: the phone was let go of")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except (*_BROKEN, EnvironmentFailure) as error:
            raise EnvironmentFailure(f"{self.serial}: {what}: {first_line(error)}") from error
