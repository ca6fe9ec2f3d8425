"""Training on vLLM servers in a process of its own, while they hang, answer slowly, answer rubbish and come back."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from cua_agent.models.loaders import load_policy
from tests.doctor_rig import HonestVllm
from tests.test_vllm_faults import RUBBISH, Unreliable
from tests.vllm_fakes import served

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICK = ["experiment=quick", "lora.enabled=true", "lora.r=4", "inference=vllm", "max_steps=99", "threads=1"]
SMALL = [
    "rollout.group_size=2",
    "rollout.groups_per_step=2",
    "rollout.concurrency=2",
    "eval.baseline=false",
    "eval.episodes=2",
]
SLOW_S = 0.3


class Slow(Unreliable):
    """Every answer takes its time."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(SLOW_S)
        await super().__call__(scope, receive, send)


def wait_until(condition: Callable[[], bool], log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("backend", ["legacy", "areal"])
def test_a_run_outlives_servers_that_hang_are_slow_or_talk_rubbish(backend: str, tmp_path: Path) -> None:
    fakes = [HonestVllm(load_policy("tiny")), HonestVllm(load_policy("tiny"))]
    slow, hanging = Slow(fakes[0].app()), Unreliable(fakes[1].app())
    slow.spoilt = deque([RUBBISH["html"], RUBBISH["too few log-probs"], None])
    log = tmp_path / "log"
    with served(slow) as first, served(hanging) as second, log.open("w") as output:  # type: ignore[arg-type]
        servers = [f"inference.servers=['{first}','{second}']", "inference.request_timeout_s=20"]
        command = [sys.executable, str(ROOT / "train.py"), f"backend={backend}", *QUICK, *SMALL, *servers]
        process = subprocess.Popen(
            [*command, f"output_dir={tmp_path}", "run_name=run"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
        try:
            wait_until(lambda: any(line.startswith("sample ") for line in fakes[1].log), log, process)
            hanging.hangs = True
            wait_until(lambda: f"{second} gives no answer" in log.read_text(), log, process)
            hanging.hangs = False
            wait_until(lambda: f"{second} answers again, after " in log.read_text(), log, process)
            wait_until((tmp_path / "run" / "metrics.jsonl").exists, log, process)
            process.send_signal(signal.SIGINT)
            assert process.wait(300) == 130, log.read_text()
        finally:
            process.kill()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and rows
    assert not slow.spoilt
    assert "Traceback" not in log.read_text()
    assert fakes[0].adapters == fakes[1].adapters == {}
