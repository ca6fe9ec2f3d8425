"""All weights for a server: an adapter merged in, as files or through memory, while training goes on."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cua_agent.inference.vllm import weight_transfer, whole_weights
from cua_agent.inference.vllm.build import _merges, connect, serving_plan
from cua_agent.inference.vllm.engine import VllmEngine
from cua_agent.inference.vllm.errors import CanaryError, ServerMismatch
from cua_agent.inference.vllm.weight_transfer import reads_memory
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from tests.vllm_fakes import FakeVllm, served, server_info
from tests.vllm_rig import QUICK, base, change, checkpoint, generate, request
from trainers.run.checkpoint import save_weights

Build = Callable[..., VllmEngine]


@pytest.fixture(params=["adapter", "all weights"])
def policy(request: pytest.FixtureRequest) -> PolicyModel:
    return load_policy(checkpoint(), lora=LoraSpec(r=4) if request.param == "adapter" else None)


@pytest.fixture
def fake() -> FakeVllm:
    fake = FakeVllm(base())
    fake.info = server_info(lora=None)
    return fake


@pytest.fixture
def build(policy: PolicyModel) -> Iterator[Build]:
    engines: list[VllmEngine] = []

    def make(url: str) -> VllmEngine:
        plan = serving_plan(policy, max_length=512, max_images=4, max_staleness=0, merged=True)
        engines.append(VllmEngine(policy, [url], plan, save_weights, patience=QUICK))
        engines[-1].update_weights(0)
        return engines[-1]

    yield make
    for engine in engines:
        asyncio.run(engine.close())


@pytest.fixture
def memory(fake: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server reads this process's memory, as one on the same card would: a few weights at a time."""
    fake.info = server_info(lora=None, transfer="ipc")
    numbers = count()

    def handle(buffer: Tensor) -> str:
        name = f"handle {next(numbers)}"
        fake.memory[name] = buffer
        return name

    monkeypatch.setattr(weight_transfer, "_handle", handle)
    monkeypatch.setattr(weight_transfer, "BUFFER_BYTES", 2**16)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(whole_weights, "can_stay", lambda _: True)


class Unreadable(dict[str, Tensor]):
    """Memory on another card that the server cannot reach."""

    def __getitem__(self, name: str) -> Tensor:
        raise RuntimeError(f"invalid device context: {name}")


def test_a_version_is_what_the_trainer_computes(policy: PolicyModel, build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url)
        for version in (1, 2):
            change(policy)
            engine.update_weights(version)  # the canary compares
            (response,) = generate(engine, request())
            assert response.versions == [version, version]
    assert fake.log.count("reload") == 3
    assert fake.adapters == {}


def test_through_memory_nothing_is_written(policy: PolicyModel, memory: None, build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url)
        change(policy)
        engine.update_weights(1)
        (response,) = generate(engine, request())
        assert not list(engine.weights_dir.rglob("*.safetensors"))
    assert response.versions == [1, 1]
    assert fake.log.count("reload") == 1  # the first, when nobody knew what the server takes
    assert fake.log.count("part") > 2


def test_a_restarted_server_gets_the_version_that_was_published(
    policy: PolicyModel, memory: None, build: Build, fake: FakeVllm
) -> None:
    with served(fake.app()) as url:
        engine = build(url)
        change(policy)
        engine.update_weights(1)
        change(policy)  # training goes on
        fake.restart()
        (response,) = generate(engine, request())  # the canary compares
    assert response.versions == [1, 1]
    assert engine.counters["restores"] == 1


def test_weights_that_came_wrong_are_found(
    policy: PolicyModel, memory: None, build: Build, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(fake.app()) as url:
        engine = build(url)
        change(policy)
        monkeypatch.setattr(fake, "_replace", lambda _: None)
        with pytest.raises(CanaryError):
            engine.update_weights(1)
    assert engine.version == 0


def test_a_server_that_cannot_read_the_memory_gets_files(
    policy: PolicyModel, memory: None, build: Build, fake: FakeVllm, caplog: pytest.LogCaptureFixture
) -> None:
    fake.memory = Unreadable()
    with served(fake.app()) as url:
        engine = build(url)
        change(policy)
        engine.update_weights(1)
        (response,) = generate(engine, request())
    assert response.versions == [1, 1]
    assert fake.log.count("reload") == 2
    assert caplog.text.count("gets files") == 1


def test_a_server_elsewhere_gets_files(policy: PolicyModel, memory: None) -> None:
    info = server_info(transfer="ipc")
    assert reads_memory("http://127.0.0.1:8000", info)
    assert not reads_memory("http://10.0.0.1:8000", info)
    assert not reads_memory("http://127.0.0.1:8000", server_info(transfer="nccl"))
    assert not reads_memory("http://127.0.0.1:8000", server_info())


@pytest.mark.parametrize(
    ("sync", "lora", "merged"),
    [
        ("auto", None, True),
        ("auto", {"max_loras": 2}, False),
        ("merged", {"max_loras": 2}, True),
        ("adapter", None, False),
    ],
)
def test_auto_is_what_the_server_was_started_for(sync: str, lora: Any, merged: bool, fake: FakeVllm) -> None:
    fake.info = server_info(lora=lora)
    with served(fake.app()) as url:
        settings: Any = SimpleNamespace(sync=sync, servers=[url], server_timeout_s=20.0)
        assert _merges(settings) is merged


def test_nothing_is_merged_into_quantised_weights(fake: FakeVllm) -> None:
    policy = load_policy(checkpoint(), lora=LoraSpec(r=4))
    policy.model.register_parameter(
        "packed", torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    )
    with served(fake.app()) as url, pytest.raises(ServerMismatch, match="quantised weights") as caught:
        settings: Any = SimpleNamespace(sync="auto", servers=[url], server_timeout_s=20.0)
        connect(settings, policy, save_weights, max_length=512, max_images=4, max_staleness=0, run="run")
    assert "\n" not in str(caught.value)
