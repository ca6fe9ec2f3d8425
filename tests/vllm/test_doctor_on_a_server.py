"""The doctor finds nothing wrong with a real server, and with one that lacks what a run wants it says what."""

from pathlib import Path

import pytest

from tests.doctor_rig import QUICK, doctor
from tests.vllm.conftest import Server

FITS = ("lora.enabled=true", "lora.r=8", "rollout.max_staleness=1")


def test_a_real_server_is_healthy_for_a_run(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    keys = ("inference=vllm", f"inference.servers=['{server.url}']", f"output_dir={tmp_path}", *FITS, *QUICK)
    report = doctor(capsys, *keys)
    assert report.of("error") == report.of("warning") == report.of("not checked") == {}
    assert server.adapters() == set()


def test_a_real_server_is_healthy_alone_and_its_rank_is_told(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    report = doctor(capsys, f"server={server.url}", *FITS)
    assert report.of("error") == report.of("warning") == report.of("not checked") == {}
    larger = doctor(capsys, f"server={server.url}", "lora.r=16", "rollout.max_staleness=1")
    assert larger.of("error") == {"adapters": "adapters up to rank 8, lora.r is 16"}
