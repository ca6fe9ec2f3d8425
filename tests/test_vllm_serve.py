"""The server's command line, and how its process is handled."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from cua_agent.inference.vllm.__main__ import main
from cua_agent.inference.vllm.key_check import KeyCheck
from cua_agent.inference.vllm.serve import (
    ServeError,
    ServeOptions,
    ServerCommand,
    base_model,
    parse_options,
    run,
    server_command,
)
from cua_agent.models.sources import TINY_WEIGHTS

PYTHON = "python-with-vllm"


def flags(command: ServerCommand) -> dict[str, str | None]:
    """Flag and value (None: a switch)."""
    words = command.arguments[3:]
    following = [*words[1:], "--"]
    return {
        word: None if value.startswith("--") else value
        for word, value in zip(words, following, strict=True)
        if word.startswith("--")
    }


def test_the_built_in_model_on_a_cpu() -> None:
    command = server_command(ServeOptions(device="cpu", python=PYTHON, lora_rank=9, max_staleness=3, port=8100))
    found = flags(command)
    assert command.arguments[:3] == [PYTHON, "-m", "vllm.entrypoints.openai.api_server"]
    assert command.url == "http://127.0.0.1:8100"
    assert found["--model"] == str(TINY_WEIGHTS)
    assert found["--dtype"] == "float32"
    assert found["--max-loras"] == "5"
    assert found["--max-lora-rank"] == "16"
    assert found["--logprobs-mode"] == "processed_logprobs"
    assert json.loads(found["--limit-mm-per-prompt"] or "") == {"image": 16, "video": 0}
    assert {"--enable-lora", "--enable-scale-out", "--enforce-eager", "--no-enable-chunked-prefill"} <= set(found)
    assert command.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert command.environment["VLLM_SERVER_DEV_MODE"] == "1"


def test_a_hub_model_on_gpus() -> None:
    options = ServeOptions(model="Qwen/Qwen3-VL-4B-Instruct", device="cuda", python=PYTHON, gpus=2, lora=False)
    command = server_command(options, ["--enable-expert-parallel"])
    found = flags(command)
    assert found["--model"] == "Qwen/Qwen3-VL-4B-Instruct"
    assert found["--dtype"] == "bfloat16"
    assert found["--max-model-len"] == "16384"
    assert found["--tensor-parallel-size"] == "2"
    assert found["--enable-expert-parallel"] is None
    assert not {"--enable-lora", "--enforce-eager", "--worker-extension-cls", "--weight-transfer-config"} & set(found)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in command.environment
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in command.environment


def test_a_server_that_reads_the_trainers_memory() -> None:
    options = ServeOptions(device="cuda", python=PYTHON, lora=False, memory_transfer=True)
    command = server_command(options)
    assert json.loads(flags(command)["--weight-transfer-config"] or "") == {"backend": "ipc"}
    assert command.environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    for wrong in ({"lora": True, "device": "cuda"}, {"lora": False, "device": "cpu"}):
        with pytest.raises(ServeError, match="memory_transfer=true"):
            server_command(ServeOptions(python=PYTHON, memory_transfer=True, **wrong))


def test_the_built_in_model_on_a_gpu_has_the_dtype_of_lora_kernels() -> None:
    assert flags(server_command(ServeOptions(device="cuda", python=PYTHON)))["--dtype"] == "bfloat16"
    with pytest.raises(ServeError, match=r"^dtype=float32 with lora=true on a GPU: .*lora=false$"):
        server_command(ServeOptions(device="cuda", python=PYTHON, dtype="float32"))
    full = server_command(ServeOptions(device="cuda", python=PYTHON, dtype="float32", lora=False))
    assert flags(full)["--dtype"] == "float32"


def test_the_printed_command_can_be_typed() -> None:
    command = ServerCommand(["py", "-m", "x", "--json", '{"a": 1}'], {"A": "b c"}, "http://h:1")
    assert str(command) == """A='b c' py -m x --json '{"a": 1}'"""


def test_an_adapter_is_served_by_its_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')
    assert base_model(str(tmp_path)) == str(TINY_WEIGHTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modle=tiny"], "'modle=tiny' is not key=value with one of the keys model, host"),
        (["port=0"], "port=0: Input should be greater than or equal to 1"),
        (["lora_rank=600", "python=p"], "lora_rank=600: vLLM serves adapters of rank up to 512"),
        (["model=./nowhere", "python=p"], "model=./nowhere: no such directory"),
    ],
)
def test_options_that_cannot_be_served(words: list[str], message: str) -> None:
    with pytest.raises(ServeError, match="^" + message):
        server_command(*parse_options(words))


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"no config\.json"):
        base_model(str(tmp_path))


def test_flags_for_vllm_are_passed_on() -> None:
    options, extra = parse_options(["port=9000", "--", "--kv-cache-dtype", "fp8"])
    assert (options.port, extra) == (9000, ["--kv-cache-dtype", "fp8"])


def test_the_command_prints_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "dry_run=true", f"python={PYTHON}", "device=cpu"]) == 0
    assert f"{PYTHON} -m vllm.entrypoints.openai.api_server --model" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "max_staleness" in capsys.readouterr().out
    assert main(["stop"]) == 2
    assert main(["serve", "port=x"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


SERVER = """
import http.server, signal, sys, time
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy)
server.serve_forever()
"""


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.slow
def test_signals_are_passed_on_and_nothing_stays_behind(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    command = ServerCommand([sys.executable, "-c", SERVER, str(port)], {}, f"http://127.0.0.1:{port}")
    program = (
        "import sys; from cua_agent.inference.vllm.serve import ServerCommand, run;"
        f"sys.exit(run(ServerCommand({command.arguments!r}, {{}}, {command.url!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "ready after" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    with pytest.raises(OSError, match="refused"):
        __import__("socket").create_connection(("127.0.0.1", port), timeout=1)


DYING = """
import http.server, os, sys
log = open(sys.argv[2], "a"); log.write("start "); log.close()
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers(); self.wfile.flush()
        os._exit(7)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


def test_a_server_that_died_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port, log = free_port(), tmp_path / "starts"
    command = ServerCommand([sys.executable, "-c", DYING, str(port), str(log)], {}, f"http://127.0.0.1:{port}")
    assert run(command, restarts=2) == 7
    assert log.read_text().split() == ["start"] * 3
    assert capsys.readouterr().err.count("died with status 7 and is started again") == 2


def test_a_server_that_dies_ends_the_command_with_its_status() -> None:
    command = ServerCommand([sys.executable, "-c", "raise SystemExit(3)"], {}, f"http://127.0.0.1:{free_port()}")
    assert threading.current_thread() is threading.main_thread()
    assert run(command, restarts=2) == 3  # it was never ready: another start would end the same way


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "gpu-box"])
def test_an_address_that_others_reach_needs_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ServeOptions(device="cpu", python=PYTHON, host=host)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(ServeError, match=rf"^host={host}: other machines .* set the variable VLLM_API_KEY, .*127"):
        server_command(options)
    monkeypatch.setenv("VLLM_API_KEY", "key-of-ours")
    command = server_command(options)
    assert flags(command)["--middleware"] == "cua_agent.inference.vllm.key_check.KeyCheck"
    assert "key-of-ours" not in str(command)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_this_machine_alone_needs_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert "--middleware" not in flags(server_command(ServeOptions(device="cpu", python=PYTHON, host=host)))


@pytest.mark.parametrize("flag", ["--host", "--host=0.0.0.0", "--port"])
def test_the_address_is_not_changed_behind_the_check(flag: str) -> None:
    with pytest.raises(ServeError, match=r"^--(host|port) after --: write (host|port)=\.\.\. before it$"):
        parse_options(["model=tiny", "--", flag, "0.0.0.0"])


def test_with_a_key_every_endpoint_but_the_health_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM guards /v1 and /inference by itself; weights are changed elsewhere."""
    monkeypatch.setenv("VLLM_API_KEY", "key-of-ours")
    app = KeyCheck(PlainTextResponse("done"))  # type: ignore[arg-type]

    async def ask(path: str, key: str | None) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:  # type: ignore[arg-type]
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return (await client.post(path, headers=headers)).status_code

    for path in ("/collective_rpc", "/pause", "/update_weight_version", "/v1/load_lora_adapter", "/server_info"):
        assert [asyncio.run(ask(path, key)) for key in (None, "another", "key-of-ours")] == [401, 401, 200]
    assert asyncio.run(ask("/health", None)) == 200
