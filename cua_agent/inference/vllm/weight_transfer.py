"""Weights from the trainer's GPU memory into a vLLM server of the same machine, without a file: CUDA IPC.

This is the trainer's half of vLLM's `ipc` backend in its packed form (vllm/distributed/weight_transfer/ipc_engine.py):
a buffer of the trainer is filled with weights, and the server, told where it lies, copies them out of it; then the next
ones. The trainer's environment needs no vLLM for it.
"""

from __future__ import annotations

import base64
import pickle
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.client import ControlClient
from cua_agent.inference.vllm.plan import TRANSFER_BACKEND
from cua_agent.proxies import is_local

BUFFER_BYTES = 2**28
_UUID_PREFIX = "GPU-"


def reads_memory(url: str, info: Mapping[str, Any]) -> bool:
    """Whether the server at `url`, which tells `info`, can read the memory of GPUs of this machine."""
    config = info["vllm_config"].get("weight_transfer_config") or {}
    return is_local(url) and config.get("backend") == TRANSFER_BACKEND


def transfer(client: ControlClient, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Overwrite the server's weights with all `weights` (by their names in a checkpoint), which lie on a GPU.

    The server must be paused. Raises `Unavailable` and `Refused`.
    """
    client.call(wire.begin_transfer())
    client.call(wire.start_transfer())
    for part in _parts(weights):
        client.call(wire.transfer(part))
    client.call(wire.finish_transfer())
    torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


def _parts(weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Any]]:
    """What to tell the server about each filling of a buffer; it must have answered before the next."""
    buffer = torch.empty(0, dtype=torch.uint8)
    handle, filled = "", 0
    part: list[tuple[str, Tensor]] = []
    for name, weight in weights:
        flat = weight.detach().contiguous().view(-1).view(torch.uint8)
        if part and filled + len(flat) > len(buffer):
            yield _told(part, handle)
            part, filled = [], 0
        if len(flat) > len(buffer):
            buffer = torch.empty(max(BUFFER_BYTES, len(flat)), dtype=torch.uint8, device=weight.device)
            handle = _handle(buffer)
        buffer[filled : filled + len(flat)].copy_(flat)
        part.append((name, weight))
        filled += len(flat)
    if part:
        yield _told(part, handle)


def _told(part: list[tuple[str, Tensor]], handle: str) -> dict[str, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {
        "names": [name for name, _ in part],
        "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in part],
        "shapes": [list(weight.shape) for _, weight in part],
        "tensor_sizes": [weight.numel() * weight.element_size() for _, weight in part],
        "ipc_handles_pickled": handle,
    }


def _handle(buffer: Tensor) -> str:
    """Where `buffer` lies, for a server on any card of this machine that can read it."""
    _, arguments = reduce_tensor(buffer)  # type: ignore[no-untyped-call]
    own = str(torch.cuda.get_device_properties(buffer.device).uuid)
    return base64.b64encode(pickle.dumps(dict.fromkeys([own, *_cards()], arguments))).decode("ascii")


def _cards() -> list[str]:
    """The names of all cards of this machine, also of those that this process may not use."""
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip().removeprefix(_UUID_PREFIX) for line in answer.splitlines()]
