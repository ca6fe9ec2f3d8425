"""The command line of a vLLM server that this library can train with, and the process that runs it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from cua_agent.inference.vllm.errors import ServerMismatch
from cua_agent.inference.vllm.key_check import KEY_VARIABLE, MIDDLEWARE
from cua_agent.inference.vllm.plan import TRANSFER_BACKEND, rank_limit, slots_for
from cua_agent.inference.vllm.worker import EXTENSION
from cua_agent.installation import ROOT, hint
from cua_agent.proxies import is_loopback
from cua_agent.secrets import BadKey, read_key

SERVED_NAME = "policy"
CPU_VENV = Path(".venv-vllm/bin/python")
_VLLM = "pip install 'cua-grpo[vllm]'"
INSTALL_HINT = hint(checkout=f"make vllm (CPU), or {_VLLM} (GPU)", installed=_VLLM)
_TINY = ROOT / "cua_agent" / "models" / "tiny_weights"
_CPU_BATCH = 8192
_GRACE_S = 30.0
_SECRET_FLAGS = {"--api-key": KEY_VARIABLE, "--hf-token": "HF_TOKEN"}
_POLL_S = 0.5


class ServeError(ValueError):
    """Options that cannot be served; the message is one line."""


@pydantic_dataclass(frozen=True)
class ServeOptions:
    """Everything that can be set on the command line as key=value; what is None depends on model and machine."""

    model: str = Field("tiny", min_length=1, description="tiny, a directory (an adapter's, too), or a hub id")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=1, lt=65536, description="port to listen on")
    device: Literal["cpu", "cuda"] | None = Field(None, description="default: cuda where there is an NVIDIA GPU")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="the trainer's model.dtype; default: float32 for tiny on a CPU, else bfloat16"
    )
    lora: bool = Field(True, description="serve adapters; false: full weights are trained")
    memory_transfer: bool = Field(
        False, description="lora=false on a GPU: take weights out of a trainer's memory on this machine, not from files"
    )
    lora_rank: int = Field(16, ge=1, description="the trainer's lora.r, or more")
    max_staleness: int = Field(2, ge=0, description="the trainer's rollout.max_staleness, or more")
    max_length: int | None = Field(
        None, ge=64, description="the trainer's model.max_length; default: 2048 for tiny, else 16384"
    )
    max_images: int = Field(16, ge=1, description="most screenshots of a conversation")
    max_batch: int = Field(64, ge=1, description="sequences decoded together")
    gpus: int = Field(1, ge=1, description="GPUs that share the model (tensor parallel)")
    gpu_memory: float = Field(0.9, gt=0, le=1, description="part of the GPU's memory that is used")
    cpu_cache_gb: int = Field(1, ge=1, description="KV cache of a server on a CPU, in GiB")
    python: str | None = Field(None, description="interpreter with vLLM; default: .venv-vllm's, else this one")
    restarts: int = Field(3, ge=0, description="how often a server that died is started again")
    dry_run: bool = Field(False, description="print the command only")


OPTIONS: dict[str, FieldInfo] = ServeOptions.__pydantic_fields__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ServerCommand:
    """A process to start: `environment` is added to ours."""

    arguments: list[str]
    environment: dict[str, str]
    url: str

    def __str__(self) -> str:
        """As one would type it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.arguments)])


def parse_options(overrides: Sequence[str]) -> tuple[ServeOptions, list[str]]:
    """Options from key=value, and what follows `--`: flags for vLLM as they are. Raises `ServeError`."""
    own, _, extra = _split(overrides)
    for flag in (word.partition("=")[0] for word in extra):
        if flag in _SECRET_FLAGS:
            raise ServeError(f"{flag}: a key on a command line is seen by everybody; set {_SECRET_FLAGS[flag]} instead")
        if flag in ("--host", "--port"):
            raise ServeError(f"{flag} after --: write {flag.removeprefix('--')}=... before it")
    values: dict[str, Any] = {}
    for override in own:
        key, equals, value = override.partition("=")
        if not equals or key not in OPTIONS:
            raise ServeError(f"{override[:80]!r} is not key=value with one of the keys {', '.join(OPTIONS)}")
        values[key] = value
    try:
        return ServeOptions(**values), extra
    except ValidationError as errors:
        error = errors.errors()[0]
        raise ServeError(f"{error['loc'][0]}={str(error['input'])[:80]}: {error['msg']}") from None


def _split(words: Sequence[str]) -> tuple[list[str], str, list[str]]:
    at = list(words).index("--") if "--" in words else len(words)
    return list(words[:at]), "--", list(words[at + 1 :])


def server_command(options: ServeOptions, extra: Sequence[str] = ()) -> ServerCommand:
    """The command that serves what `options` say. Raises `ServeError` when there is no model or no vLLM."""
    device = options.device or ("cuda" if shutil.which("nvidia-smi") else "cpu")
    tiny = options.model == "tiny"
    dtype = options.dtype or ("float32" if tiny and device == "cpu" else "bfloat16")
    if device == "cuda" and options.lora and dtype == "float32":
        raise ServeError(
            "dtype=float32 with lora=true on a GPU: vLLM's LoRA kernels take bfloat16 there; set dtype=bfloat16 here "
            "and model.dtype=bfloat16 in the trainer, or serve full weights with lora=false"
        )
    if options.memory_transfer and (options.lora or device == "cpu"):
        raise ServeError("memory_transfer=true: for all weights on a GPU; allowed with it: lora=false device=cuda")
    max_length = options.max_length or (2048 if tiny else 16384)
    flags = [
        *("--model", base_model(options.model)),
        *("--served-model-name", SERVED_NAME),
        *("--host", options.host, "--port", str(options.port)),
        *("--dtype", dtype),
        *("--max-model-len", str(max_length)),
        *("--max-num-seqs", str(options.max_batch)),
        *("--limit-mm-per-prompt", json.dumps({"image": options.max_images, "video": 0})),
        *("--logprobs-mode", "processed_logprobs"),
        *("--generation-config", "vllm"),
        "--enable-scale-out",
        "--disable-uvicorn-access-log",
        *_lora_flags(options),
        *_device_flags(options, device, max_length),
        *_key_flags(options.host),
        *extra,
    ]
    python = _python(options)
    return ServerCommand(
        [python, "-m", "vllm.entrypoints.openai.api_server", *flags],
        _environment(options, device),
        f"http://{options.host}:{options.port}",
    )


def base_model(model: str) -> str:
    """The directory or hub id to serve: the built-in weights, or the base of an adapter. Raises `ServeError`."""
    if model == "tiny":
        return str(_TINY)
    directory = Path(model).expanduser()
    if (adapter := directory / "adapter_config.json").is_file():
        return base_model(str(json.loads(adapter.read_text())["base_model_name_or_path"]))
    if directory.is_dir() and not (directory / "config.json").is_file():
        raise ServeError(f"model={model}: the directory has no config.json")
    if not directory.is_dir() and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise ServeError(f"model={model}: no such directory; allowed: tiny, a directory, or a hub id")
    return str(directory.absolute()) if directory.is_dir() else model


def _key_flags(host: str) -> list[str]:
    """With a key, the endpoints that change weights ask for it, too. Raises `ServeError` when there is none and other
    machines reach the server."""
    try:
        key = read_key(KEY_VARIABLE)
    except BadKey as error:
        raise ServeError(str(error)) from None
    if key is not None:
        return ["--middleware", MIDDLEWARE]
    if is_loopback(host):
        return []
    raise ServeError(
        f"host={host}: other machines could change the weights there; set the variable {KEY_VARIABLE}, here and for "
        "the trainer, or host=127.0.0.1"
    )


def _lora_flags(options: ServeOptions) -> list[str]:
    if not options.lora:
        return []
    try:
        rank = rank_limit(options.lora_rank)
    except ServerMismatch as error:
        raise ServeError(str(error).replace("lora.r", "lora_rank")) from None
    return [
        "--enable-lora",
        *("--max-loras", str(slots_for(options.max_staleness))),
        *("--max-lora-rank", str(rank)),
    ]


def _device_flags(options: ServeOptions, device: str, max_length: int) -> list[str]:
    if device == "cpu":
        # A prompt that is computed in parts kills vLLM's engine on a CPU when its request has a seed.
        whole_prompts = ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(max_length, _CPU_BATCH))]
        return ["--enforce-eager", *whole_prompts, "--worker-extension-cls", EXTENSION]
    config = json.dumps({"backend": TRANSFER_BACKEND})
    transfer = ["--weight-transfer-config", config] if options.memory_transfer else []
    return [
        *("--tensor-parallel-size", str(options.gpus)),
        *("--gpu-memory-utilization", f"{options.gpu_memory:g}"),
        *transfer,
    ]


def _environment(options: ServeOptions, device: str) -> dict[str, str]:
    """Dev mode opens the endpoints for weights, caches and configuration: `_key_flags` guards them."""
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if options.lora:
        settings["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if options.memory_transfer:
        settings["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # where weights lie comes pickled
    if device == "cpu":
        settings["VLLM_CPU_KVCACHE_SPACE"] = str(options.cpu_cache_gb)
    if device == "cpu" or os.environ.get(KEY_VARIABLE):  # this library has to be found there, for what it adds
        former = os.environ.get("PYTHONPATH")
        settings["PYTHONPATH"] = f"{ROOT}{os.pathsep}{former}" if former else str(ROOT)
    if Path(base_model(options.model)).is_dir():
        settings["HF_HUB_OFFLINE"] = "1"
    return settings


def _python(options: ServeOptions) -> str:
    """An interpreter that has vLLM. Raises `ServeError`."""
    if options.python is not None:
        return options.python
    for directory in (Path.cwd(), ROOT):
        if (directory / CPU_VENV).is_file():
            return str(directory / CPU_VENV)
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:  # a mere directory of that name has no origin
        raise ServeError(f"vLLM is not installed: {INSTALL_HINT}")
    return sys.executable


def run(command: ServerCommand, restarts: int = 0) -> int:
    """Run the server and return its exit status (0 when SIGINT or SIGTERM, which are passed on, ended it).

    A server that was ready and died is started again up to `restarts` times.
    """
    while True:
        outcome = _run_once(command)
        if outcome.stopped or not outcome.was_ready or not restarts:
            return outcome.status
        restarts -= 1
        print(f"the server died with status {outcome.status} and is started again", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Outcome:
    status: int
    stopped: bool
    was_ready: bool


def _run_once(command: ServerCommand) -> _Outcome:
    stopped_by: list[int] = []
    # A session of its own: Ctrl-C in a terminal reaches the server once, through us.
    process = subprocess.Popen(command.arguments, env={**os.environ, **command.environment}, start_new_session=True)

    def pass_on(number: int, _: object) -> None:
        stopped_by.append(number)
        process.send_signal(number)

    former = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ready = _announce_ready(process, command.url)
        while process.poll() is None and not stopped_by:
            time.sleep(_POLL_S)
        status = _end(process) if stopped_by else process.returncode
        return _Outcome(status, bool(stopped_by), ready)
    finally:
        _kill_group(process)
        for number, handler in former.items():
            signal.signal(number, handler)


def _announce_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Poll the server's health until it is there, or the process is not: False."""
    import httpx

    started = time.monotonic()
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2.0, trust_env=False).is_success:  # no proxy: it runs here
                print(f"ready after {time.monotonic() - started:.0f} s: {url}", flush=True)
                return True
        except httpx.TransportError:
            pass
        time.sleep(_POLL_S)
    return False


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a server that was told to stop; 0 when it did so by itself."""
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        print(f"the server did not stop within {_GRACE_S:g} s and is killed", file=sys.stderr)
        return 1
    return 0


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the server stays behind: neither a process that hangs nor its workers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
