"""One real vLLM server with the built-in model for all tests of this folder, started by our own command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
START_LIMIT_S = 500.0  # half a minute on a quiet machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = not PYTHON.is_file()
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
            if missing:
                item.add_marker(pytest.mark.skip(reason="no .venv-vllm: make vllm"))


class Server:
    """`python -m cua_agent.inference.vllm serve` as a process of its own."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log

    def start(self) -> None:
        options = [f"port={self.port}", "lora_rank=8", "max_staleness=1", "max_batch=32"]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cua_agent.inference.vllm", "serve", "model=tiny", *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
            )

    def wait(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while "\nready after " not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, self._log.read_text()[-3000:]
            time.sleep(0.5)

    def stop(self) -> int:
        """Ask it to stop; its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def restart(self) -> threading.Thread:
        """Stop it now, and start it again in a thread."""
        assert self.stop() == 0
        self._log.write_text("")
        thread = threading.Thread(target=self.start)
        thread.start()
        return thread

    def reload(self, directory: Path) -> None:
        """Other full weights behind everybody's back."""
        body = {"method": "reload_policy", "kwargs": {"weights_path": str(directory)}}
        httpx.post(f"{self.url}/collective_rpc", json=body, timeout=60).raise_for_status()
        for cache in ("prefix", "encoder", "mm"):
            httpx.post(f"{self.url}/reset_{cache}_cache", timeout=60).raise_for_status()

    def drop_images(self) -> None:
        """Forget all images that were sent, as if others had needed the room."""
        httpx.post(f"{self.url}/reset_mm_cache", timeout=60).raise_for_status()

    def adapters(self) -> set[str]:
        models = httpx.get(f"{self.url}/v1/models").json()["data"]
        return {model["id"] for model in models if model["parent"]}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("vllm") / "server.log")
    started.start()
    try:
        started.wait()
    except BaseException:  # too slow to start: it must not stay behind
        started.stop()
        raise
    yield started
    assert started.stop() == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{started.url}/health")
