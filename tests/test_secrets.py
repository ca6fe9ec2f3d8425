"""No key is ever shown: keys are planted everywhere, and every output is searched for them."""

from __future__ import annotations

import io
import json
import logging
import os
import string
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.exit_status import BAD_CONFIGURATION, FAILED
from cua_agent.inference.vllm.__main__ import main as vllm_main
from cua_agent.inference.vllm.client import ControlClient
from cua_agent.inference.vllm.errors import ServerFailure
from cua_agent.inference.vllm.wire import Call
from cua_agent.secrets import KEY_VARIABLES, MASK, BadKey, mask_text, masked_output, read_key
from tests.refusals import refusal
from tests.vllm_fakes import served
from trainers.command.train import main
from trainers.config.compose import load_config
from trainers.config.from_env import main as from_env_main

KEYS = st.text(string.ascii_letters + string.digits + "-_.~+/", min_size=8, max_size=60).filter(
    lambda key: key.strip("-_.") and not key.startswith("*")
)
PLANTED = {
    "GBOX_API_KEY": "planted-gbox-4711",
    "VLLM_API_KEY": "planted-vllm-4711",
    "WANDB_API_KEY": "planted-wandb-4711-0123456789012345678901",
    "HF_TOKEN": "hf_plantedHF4711plantedHF4711",
    "MY_KEY": "planted-mine-4711",
    "HTTPS_PROXY": "http://me:planted-proxy-4711@127.0.0.1:9",
    "GBOX_CLIENT_BASE_URL": "http://me:planted-url-4711@127.0.0.1:9/api/v1",
}
SECRETS = [value.rpartition("@")[0].rpartition(":")[2] if "@" in value else value for value in PLANTED.values()]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def assert_clean(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text


@given(KEYS, st.sampled_from(["", "\n", " ", "\r\n", "\t\n "]))
def test_white_space_around_a_key_is_no_part_of_it(key: str, space: str) -> None:
    read = read_key("VLLM_API_KEY", {"VLLM_API_KEY": f"{space}{key}{space}"})
    assert read is not None
    assert read.get_secret_value() == key
    assert key not in f"{read} {read!r}"


@given(KEYS, st.sampled_from(["\n", " ", "\x00", "\x7f", "ü", "\u2028"]), KEYS)
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(first: str, inside: str, last: str) -> None:
    with pytest.raises(BadKey) as caught:
        read_key("VLLM_API_KEY", {"VLLM_API_KEY": f"{first}{inside}{last}"})
    message = str(caught.value)
    assert message.startswith("VLLM_API_KEY: ")
    assert "\n" not in message
    assert first not in message and last not in message


def test_no_key_is_no_key() -> None:
    assert read_key("VLLM_API_KEY", {}) is None
    assert read_key("VLLM_API_KEY", {"VLLM_API_KEY": " \n"}) is None


CONTEXTS = [
    "{}",
    "x{}y",
    "Illegal header value b'Bearer {}\\n'",
    "{{'authorization': 'Bearer {}'}}",
    "train.py env.args.api_key={} seed=1",
    "line\n{}\nline",
    '{{"a": ["{}"]}}',
    "https://host/path?token={}&b=1",
]


@given(KEYS, st.sampled_from(["VLLM_API_KEY", "my_token", "DB_PASSWORD", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"]))
def test_a_secret_of_the_environment_is_masked_wherever_it_stands(key: str, variable: str) -> None:
    for context in CONTEXTS:
        assert key not in mask_text(context.format(key), {variable: f"{key}\n"})


@given(KEYS.filter(lambda key: "/" not in key))
def test_a_password_of_an_address_is_masked_with_and_without_its_address(password: str) -> None:
    proxy = f"http://me:{password}@proxy.example:3128"
    for text in (f"asked through {proxy}", f"password {password} refused", f"['{proxy}/']"):
        assert password not in mask_text(text, {"HTTPS_PROXY": proxy})
    assert password not in mask_text(f"asked through {proxy}", {})


@given(KEYS)
def test_a_value_beside_a_key_word_is_masked_whoever_knows_it(key: str) -> None:
    for text in (f"api_key={key}", f"x.password='{key}'", f'"api_key": "{key}"', f"Authorization: Bearer {key}"):
        assert key not in mask_text(text, {})


@pytest.mark.parametrize(
    "text",
    [
        "rollout.max_new_tokens=48 model.max_length=2048",
        "the tokenizer has no <|im_end|> token: not a chat model of the Qwen family",
        "env.args.api_key='${oc.env:MY_KEY}'",
        "token drift: the server's prompt has 12 tokens, ours 13",
        "http://127.0.0.1:8000 gives no answer",
        "set WANDB_API_KEY, run `wandb login`",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert mask_text(text, {}) == text


def test_what_a_command_prints_is_masked(planted: None, capsys: pytest.CaptureFixture[str]) -> None:
    @masked_output()
    def command() -> None:
        print("a", PLANTED["MY_KEY"], flush=True)
        sys.stderr.writelines([PLANTED["GBOX_API_KEY"], "\n"])
        logging.getLogger("some.package").warning("header %s", PLANTED["VLLM_API_KEY"])
        try:
            raise RuntimeError(PLANTED["HTTPS_PROXY"])
        except RuntimeError:
            traceback.print_exc()

    command()
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err)
    assert MASK in printed.out and "RuntimeError" in printed.err
    assert sys.stdout.write.__self__ is sys.stdout  # type: ignore[attr-defined]


def test_an_error_that_ends_the_process_is_masked(planted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    with masked_output():
        pass
    monkeypatch.setattr("sys.stderr", io.StringIO())
    error = RuntimeError(f"key {PLANTED['MY_KEY']}")
    sys.excepthook(RuntimeError, error, None)
    assert sys.stderr.getvalue() == f"RuntimeError: key {MASK}\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "override",
    [
        "env.args.api_key=planted-plain",
        "env.args.api_key=planted-plain{",
        "env.args={api_key: planted-plain}",
        "env.args.api_key='${oc.env:MY_KEY,planted-plain}'",
        "env.args.apikey=planted-plain",
        "VLLM_API_KEY=planted-plain",
        "inference.servers=[http://me:planted-plain@127.0.0.1:8000]",
        "env.args.base_url=http://me:planted-plain@host",
        "env.args.base_url=ftp://me:planted-plain@host",
        "max_steps=planted-mine-4711",
    ],
)
def test_a_refusal_does_not_repeat_a_secret(override: str, planted: None) -> None:
    message = refusal(override)
    assert "planted-plain" not in message
    assert_clean(message)


def test_a_configuration_holds_no_key(planted: None) -> None:
    config = load_config(["env=gbox", "env.args.api_key='${oc.env:MY_KEY}'"])
    assert_clean(json.dumps(asdict(config)) + repr(config))
    assert config.env.args["api_key"] == "${oc.env:MY_KEY}"


def test_what_workers_are_handed_holds_no_key(planted: None, tmp_path: Path) -> None:
    pytest.importorskip("areal")
    from trainers.areal.cluster.worker_specs import controller_config

    words = ["backend=areal", "scheduler=local", "env=gbox", "env.args.api_key='${oc.env:MY_KEY}'"]
    config = load_config(words)
    native = controller_config(config, tmp_path)
    assert_clean(repr(asdict(native)))
    assert "${oc.env:MY_KEY}" in native.actor.run


def test_an_export_for_areal_holds_no_key(planted: None, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("areal")
    from trainers.areal.export import main as export_main

    assert export_main(["env=gbox", "env.args.api_key='${oc.env:MY_KEY}'"]) == 0
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err)


def test_the_configuration_is_shown_without_keys(planted: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "env=gbox", "env.args.api_key='${oc.env:MY_KEY}'", "logging.project=planted-mine-4711"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err)
    assert "api_key: ${oc.env:MY_KEY}" in printed.out
    assert f"project: '{MASK}'" in printed.out


def test_an_old_env_file_is_converted_without_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{name}={value}" for name, value in PLANTED.items()]
    half = "planted-second-line-4711"  # of a key that was pasted with a newline
    (tmp_path / ".env").write_text("\n".join([*lines, half, f"OUTPUT_DIR=/runs/{PLANTED['MY_KEY']}"]))
    from_env_main([str(tmp_path / ".env")])
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err)
    assert half not in printed.out + printed.err


@pytest.mark.parametrize("variable", KEY_VARIABLES)
def test_a_broken_key_is_status_2_in_one_line_before_anything_is_loaded(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "planted-first\nplanted-second")
    assert main([f"output_dir={tmp_path}", "inference=vllm"]) == BAD_CONFIGURATION
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {variable}: white space")
    assert "planted" not in line
    assert not any(tmp_path.iterdir())


@pytest.fixture
def broken_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that fails with everything a library could quote, locals and causes included."""

    def fail(*_: object) -> None:
        headers = {"authorization": f"Bearer {PLANTED['VLLM_API_KEY']}", "x-api-key": PLANTED["GBOX_API_KEY"]}
        try:
            raise httpx.LocalProtocolError(f"Illegal header value b'Bearer {PLANTED['VLLM_API_KEY']}\\n'")
        except httpx.TransportError as cause:
            raise RuntimeError(f"{headers} {dict(os.environ)}") from cause

    monkeypatch.setattr("trainers.command.train._train", fail)


def test_a_failure_leaves_no_key_behind(
    planted: None, broken_training: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"output_dir={tmp_path}", "run_name=r", f"logging.project={PLANTED['MY_KEY']}"]) == FAILED
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"error.log", "config.yaml", "run.json"} <= {path.name for path in files}
    for path in files:
        assert_clean(path.read_text())
    assert "LocalProtocolError" in (tmp_path / "r" / "error.log").read_text()


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that refuses everything and quotes the key that it was shown."""
    app = FastAPI()

    @app.post("/pause")
    async def refuse(request: Request) -> JSONResponse:
        return JSONResponse({"detail": f"no such key: {request.headers['authorization']}"}, 401)

    with served(app) as url:
        yield url


def test_the_key_is_shown_to_the_server_and_to_nobody_else(
    echo: str, monkeypatch: pytest.MonkeyPatch, planted: None
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", f"{PLANTED['VLLM_API_KEY']}\n")
    client = ControlClient(echo)
    with pytest.raises(ServerFailure, match="no such key: Bearer") as caught:
        client.call(Call("POST", "/pause"))
    assert_clean("".join(traceback.format_exception(caught.value)))
    client.close()


@pytest.mark.parametrize("flag", [["--api-key", "planted-plain"], ["--hf-token=planted-plain"]])
def test_a_server_is_not_started_with_a_key_on_its_command_line(
    flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert vllm_main(["serve", "model=tiny", "dry_run=true", "python=python", "--", *flag]) == BAD_CONFIGURATION
    printed = capsys.readouterr()
    assert "instead" in printed.err
    assert "planted-plain" not in printed.out + printed.err


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["/dev/full", "pipe"])
def test_output_that_nobody_can_read_any_more_ends_nothing(gone: str) -> None:
    talks = (
        "from cua_agent.secrets import masked_output\nwith masked_output():\n    for _ in range(9999): print('x' * 99)"
    )
    if gone == "pipe":
        reader, target = os.pipe()
        os.close(reader)
    else:
        target = os.open(gone, os.O_WRONLY)
    done = subprocess.run([sys.executable, "-c", talks], stdout=target, stderr=subprocess.PIPE, text=True)
    os.close(target)
    assert (done.returncode, done.stderr) == (0, "")
