"""The doctor on whole set-ups, with real servers, boxes and pages: nothing wrong with healthy ones, and what was
planted is found."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_shapes import shape_config
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.envs.local_gbox.server import LocalGBox, running
from cua_agent.envs.miniwob.browser import DEFAULT_BROWSER
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel
from cua_agent.models.sources import TINY_WEIGHTS
from tests.doctor_rig import GOOD, QUICK, HonestVllm, Report, doctor
from tests.local_gbox_rig import sdk
from tests.vllm_fakes import FakeVllm, served, server_info
from trainers.doctor.__main__ import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]

LORA = ("lora.enabled=true", "lora.r=8", *QUICK)


@pytest.fixture(scope="module")
def tiny() -> PolicyModel:
    return load_policy("tiny")


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    return lambda *words: doctor(capsys, f"output_dir={tmp_path}/outputs", *words)


@contextmanager
def vllm(fake: FakeVllm) -> Iterator[tuple[str, ...]]:
    """The keys that lead to a server."""
    with served(fake.app()) as url:
        yield ("inference=vllm", f"inference.servers=['{url}']", *LORA)


def assert_healthy(report: Report, *not_checked: str) -> None:
    assert report.of("error") == report.of("warning") == {}
    assert set(report.of("not checked")) == set(not_checked)
    assert report.status == 0


@pytest.mark.parametrize("backend", ["backend=legacy", "backend=areal"])
def test_the_built_in_defaults_are_healthy_and_nothing_is_left(ask, tmp_path: Path, backend: str) -> None:
    assert_healthy(ask(backend))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which(DEFAULT_BROWSER) is None, reason="no browser: make browser")
def test_miniwob_in_a_real_browser_is_healthy(ask) -> None:
    report = ask("env=miniwob", *QUICK)
    assert report.of("error") == {}
    assert report.rows["tasks"].status == "ok"
    assert report.rows["episode"].status in ("ok", "warning")  # the built-in model was not made for pages


def test_a_vllm_server_that_fits_is_healthy_and_keeps_no_adapter(ask, tiny: PolicyModel) -> None:
    fake = HonestVllm(tiny)
    with vllm(fake) as keys:
        assert_healthy(ask(*keys))
    assert fake.adapters == {}
    assert sum(entry.startswith("load ") for entry in fake.log) == 3  # as it is, changed, put back


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalGBox]:
    with running(LocalGBoxOptions(quota=4)) as server:
        monkeypatch.setenv("GBOX_API_KEY", server.api_key)
        yield server


def test_a_local_gbox_is_healthy_and_keeps_no_box(ask, boxes: LocalGBox) -> None:
    assert_healthy(ask("env=gbox_local", f"env.args.base_url={boxes.base_url}", *QUICK))
    assert boxes.ledger()["summary"]["running"] == []


def test_too_few_boxes_and_none_at_all_are_found(ask, boxes: LocalGBox) -> None:
    keys = ("env=gbox_local", f"env.args.base_url={boxes.base_url}", *QUICK)
    few = ask(*keys, "rollout.concurrency=6", "rollout.max_staleness=2")
    assert "4 of 6 could be started" in few.of("error")["environment"]
    assert few.rows["environment"].remedy == "set rollout.concurrency=4, or raise the quota"
    assert few.rows["episode"].status == "not checked"
    with sdk(boxes) as others:
        for _ in range(4):
            others(lambda client: client.v1.boxes.create_android())
        none = ask(*keys)
    assert "0 of 4 could be started (rollout.concurrency): create: 429 quota" in none.of("error")["environment"]


def test_where_boxes_cost_money_one_is_started(ask, boxes: LocalGBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.doctor.worlds.is_local", lambda _: False)
    keys = ("env=gbox_local", f"env.args.base_url={boxes.base_url}", *QUICK)
    assert_healthy(ask(*keys))
    assert len(boxes.ledger()["boxes"]) == 1
    with sdk(boxes) as others:
        for _ in range(4):
            others(lambda client: client.v1.boxes.create_android())
        assert "create: 429 quota" in ask(*keys).of("error")["environment"]


def test_a_missing_gbox_key_is_found(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GBOX_API_KEY", raising=False)
    report = ask("env=gbox", *QUICK)
    assert "GBOX_API_KEY" in report.of("error")["keys"] + report.rows["keys"].remedy
    assert report.rows["environment"].status == "not checked"


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (server_info(max_model_len=2048, images=16, lora=None), "--enable-lora"),
        (server_info(max_model_len=2048, images=16, lora={"max_lora_rank": 4, "max_loras": 4}), "--max-lora-rank 8"),
        (server_info(max_model_len=2048, images=16, dtype="torch.bfloat16"), "serves bfloat16"),
        (server_info(max_model_len=2048, images=2, lora=GOOD["vllm_config"]["lora_config"]), "--limit-mm-per-prompt"),
    ],
)
def test_a_server_with_other_flags_is_found(ask, tiny: PolicyModel, info: dict, said: str) -> None:
    fake = HonestVllm(tiny)
    fake.info = info
    with vllm(fake) as keys:
        report = ask(*keys)
    found = {name.partition(" http")[0]: what for name, what in report.of("error").items()}
    assert set(found) == {"server"}
    assert said in found["server"]
    assert report.rows["episode"].status == "not checked"


def test_a_server_that_drops_images_is_found(ask, tiny: PolicyModel) -> None:
    with vllm(HonestVllm(tiny, drops_images=True)) as keys:
        report = ask(*keys)
    assert "CanaryError" not in report.of("error")["canary"]
    assert "log-probabilities are" in report.of("error")["canary"]


def test_a_server_that_renumbers_tokens_is_found(ask, tiny: PolicyModel) -> None:
    with vllm(HonestVllm(tiny, retokenises=True)) as keys:
        report = ask(*keys)
    assert "token drift" in report.of("error")["token echo"]


def test_a_server_of_another_base_model_is_found(ask, tiny: PolicyModel) -> None:
    with vllm(HonestVllm(tiny, other_weights=True)) as keys:
        report = ask(*keys)
    assert "it has another base model" in report.of("error")["canary"]
    assert report.rows["episode"].status == "not checked"


def test_a_silent_server_is_found_soon(ask) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    report = ask("inference=vllm", f"inference.servers=['http://127.0.0.1:{port}']", *LORA)
    (row,) = (row for name, row in report.rows.items() if name.startswith("server "))
    assert row.status == "error" and "gives no answer" in row.what
    assert row.remedy == "start it: python -m cua_agent.inference.vllm serve"


def test_a_validator_that_cannot_be_asked_is_found(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: PocketEnvironment) -> float:
        raise LookupError("no such setting")

    monkeypatch.setattr(PocketEnvironment, "compute_reward", broken)
    report = ask(*QUICK)
    assert "LookupError: no such setting" in report.of("error")["tasks"]


def test_a_score_that_is_none_is_found(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: PocketEnvironment) -> float:
        return float("nan")

    monkeypatch.setattr(PocketEnvironment, "compute_reward", broken)
    assert "its validator says nan" in ask(*QUICK).of("error")["tasks"]


def test_any_servers_capabilities_are_told_without_anything_of_ours(capsys, tiny: PolicyModel) -> None:
    with served(HonestVllm(tiny).app()) as url:
        assert_healthy(doctor(capsys, f"server={url}"))


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"lora": None}, "adapters", "serves no adapters"),
        ({"lora": {"max_lora_rank": 8, "max_loras": 4}}, "adapters", "adapters up to rank 8, lora.r is 16"),
        ({"lora": {"max_lora_rank": 16, "max_loras": 2}}, "adapters", "2 adapters at a time"),
        ({"logprobs_mode": "raw_logprobs"}, "log-probabilities", "raw_logprobs"),
        ({"max_model_len": 1024}, "length", "1024 tokens"),
        ({"images": 1}, "images", "1 images a prompt"),
    ],
)
def test_what_any_server_lacks_is_told(capsys, tiny: PolicyModel, changes: dict, name: str, said: str) -> None:
    fake = HonestVllm(tiny)
    fake.info = server_info(
        **{"max_model_len": 2048, "images": 16, "lora": {"max_lora_rank": 16, "max_loras": 4}} | changes
    )
    with served(fake.app()) as url:
        report = doctor(capsys, f"server={url}")
    assert set(report.of("error")) == {name}
    assert said in report.of("error")[name]


def test_any_server_that_drops_images_or_renumbers_tokens_is_told(capsys, tiny: PolicyModel) -> None:
    with served(HonestVllm(tiny, drops_images=True, retokenises=True).app()) as url:
        report = doctor(capsys, f"server={url}")
    assert set(report.of("error")) == {"image echo", "token echo"}


def test_a_server_that_does_not_show_its_settings_is_asked_by_what_it_does(capsys, tiny: PolicyModel) -> None:
    fake = HonestVllm(tiny)
    fake.info = None
    with served(fake.app()) as url:
        report = doctor(capsys, f"server={url}")
    assert set(report.of("warning")) == {"settings"}
    assert report.rows["log-probabilities"].status == report.rows["token echo"].status == "ok"
    assert report.rows["adapters"].what.startswith("it takes adapters")


def test_nobody_at_the_address_is_one_error(capsys) -> None:
    report = doctor(capsys, "server=http://127.0.0.1:9")
    assert set(report.of("error")) == {"answer"}
    assert len(report.of("not checked")) == len(report.rows) - 1


def test_the_checklist_is_printed_with_a_result_for_each_point(capsys, tmp_path: Path) -> None:
    status = main([*QUICK, f"output_dir={tmp_path}", "--checklist"])
    rows = capsys.readouterr().out.partition("checklist:\n\n")[2].splitlines()
    numbered = [row for row in rows if not row.lstrip().startswith("->")]
    assert status == 0
    assert [
        int(row.removeprefix("not checked").split(maxsplit=2)[0 if row.startswith("not") else 1]) for row in numbered
    ] == [*range(1, 13)]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model of 32 thousand million parameters: all of its files but the weights."""
    directory = tmp_path / "large"
    directory.mkdir()
    for file in TINY_WEIGHTS.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, directory)
    (directory / "config.json").write_text(json.dumps(shape_config("32b")))
    return directory


def test_a_model_larger_than_memory_and_disk_is_found_and_not_loaded(ask, large: Path) -> None:
    report = ask(f"model.path={large}", "model.dtype=bfloat16", *QUICK)
    found = report.of("error")
    assert set(found) == {"memory", "disk"}
    assert "GiB needed" in found["memory"] and "5 checkpoints of 3" in found["disk"]
    assert report.rows["canary"].what == "waits for: memory"
    assert report.rows["checkpoint"].status == "not checked"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_error(ask) -> None:
    report = ask("loader.device=cuda", *QUICK)
    assert set(report.of("error")) == {"device"}
    assert report.rows["canary"].what == "waits for: device"


def test_every_error_has_a_remedy(ask, large: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = ask(
        *("env=gbox", "inference=vllm", "inference.servers=['http://127.0.0.1:9']", "loader.device=cuda:99"),
        *("rollout.greedy=true", f"output_dir={tmp_path}/file", *QUICK),
    )
    assert len(report.of("error")) >= 5
    assert all(row.remedy for row in report.rows.values() if row.status in ("error", "warning"))


def test_ctrl_c_ends_it_with_130_and_leaves_nothing(boxes: LocalGBox, tmp_path: Path) -> None:
    keys = ["env=gbox_local", f"env.args.base_url={boxes.base_url}", f"output_dir={tmp_path}/outputs", *QUICK]
    command = [sys.executable, "-m", "trainers.doctor", *keys]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.split()[1] == "tasks":  # a box is open, and the policy is about to be loaded
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130
    assert boxes.ledger()["summary"]["running"] == []
    assert list(tmp_path.iterdir()) == []
