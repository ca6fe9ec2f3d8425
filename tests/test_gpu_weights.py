"""On a GPU: another process reads the trainer's weights where they lie."""

import json
import subprocess
import sys

import pytest
import torch

from cua_agent.inference.vllm.weight_transfer import _parts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

READER = """
import base64, json, pickle, sys
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

for line in sys.stdin:
    part = json.loads(line)
    handles = pickle.loads(base64.b64decode(part["ipc_handles_pickled"]))
    own = str(torch.cuda.get_device_properties(0).uuid)
    buffer = rebuild_cuda_tensor(*handles[own])
    values = buffer[: sum(part["tensor_sizes"])].split(part["tensor_sizes"])
    for name, dtype, shape, value in zip(part["names"], part["dtype_names"], part["shapes"], values):
        print(json.dumps([name, value.clone().view(getattr(torch, dtype)).view(shape).float().cpu().tolist()]))
    del buffer, values, value
    print("read", flush=True)
"""


def test_another_process_reads_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cua_agent.inference.vllm.weight_transfer.BUFFER_BYTES", 64)
    weights = [
        ("a", torch.arange(6.0, device="cuda").view(2, 3)),
        ("b", torch.arange(20.0, device="cuda", dtype=torch.bfloat16)),
        ("c", torch.full((3,), 7.0, device="cuda")),
    ]
    reader = subprocess.Popen([sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdin is not None
    assert reader.stdout is not None
    seen = {}
    for part in _parts(weights):
        print(json.dumps(part), file=reader.stdin, flush=True)
        for line in iter(reader.stdout.readline, "read\n"):
            assert line
            name, values = json.loads(line)
            seen[name] = values
    reader.stdin.close()
    assert reader.wait(60) == 0
    assert seen == {name: weight.float().tolist() for name, weight in weights}
