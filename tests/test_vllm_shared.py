"""Several runs on one vLLM server: nobody samples, unloads or changes what another run has loaded."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cua_agent.inference.vllm.__main__ import main
from cua_agent.inference.vllm.build import serving_plan
from cua_agent.inference.vllm.engine import VllmEngine
from cua_agent.inference.vllm.errors import ServerMismatch
from cua_agent.inference.vllm.ownership import WeightsDirectory, is_dead
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from tests.vllm_fakes import FakeVllm, served, server_info
from tests.vllm_rig import QUICK, base, change, checkpoint, generate, request
from trainers.run.checkpoint import save_weights

pytestmark = pytest.mark.slow

ROOMY = server_info(lora={"max_lora_rank": 8, "max_loras": 8})
Start = Callable[..., VllmEngine]


@pytest.fixture
def fake() -> FakeVllm:
    server = FakeVllm(load_policy(checkpoint()))
    server.info = ROOMY
    return server


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes engines that have published version 0; they are closed afterwards."""
    engines: list[VllmEngine] = []

    def make(url: str, policy: PolicyModel, run: str = "same") -> VllmEngine:
        plan = serving_plan(policy, max_length=512, max_images=4, max_staleness=0)
        engines.append(VllmEngine(policy, [url], plan, save_weights, patience=QUICK, run=run))
        engines[-1].update_weights(0)
        return engines[-1]

    yield make
    for engine in engines:
        engine.discard()


def adapted() -> PolicyModel:
    return load_policy(checkpoint(), lora=LoraSpec(r=4))


def test_two_runs_of_one_name_sample_their_own_adapters_and_both_end(start: Start, fake: FakeVllm) -> None:
    policies = [adapted(), adapted()]
    change(policies[1])
    with served(fake.app()) as url:
        engines = [start(url, policy) for policy in policies]
        names = [engine.weights_dir.name for engine in engines]

        async def step(engine: VllmEngine, version: int) -> None:
            responses = await asyncio.gather(*(engine.generate(request(f"c{i}", seed=i)) for i in range(4)))
            assert {v for response in responses for v in response.versions} == {version}

        async def both() -> None:
            for version in range(3):
                await asyncio.gather(*(step(engine, version) for engine in engines))
                for policy in policies:
                    change(policy)
                await asyncio.gather(*(asyncio.to_thread(engine.update_weights, version + 1) for engine in engines))

        asyncio.run(both())
        assert set(fake.adapters) == {f"{name}-v3" for name in names}
        engines[0].discard()
        assert set(fake.adapters) == {f"{names[1]}-v3"}
        generate(engines[1], request())
        engines[1].discard()
    assert fake.adapters == {}
    assert names[0] != names[1]
    assert [engine.counters["restores"] for engine in engines] == [0, 0]
    for name in names:
        assert sum(entry.startswith(f"sample {name}-") for entry in fake.log) == 12 + (name == names[1])


_HOLD = """
import sys
from pathlib import Path
from cua_agent.inference.vllm.ownership import WeightsDirectory
held = WeightsDirectory(Path(sys.argv[1]), "former", sys.argv[2:])
print(held.path, flush=True)
sys.stdin.read()
"""


@contextmanager
def former_run(parent: Path, *servers: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Another process that holds a weights directory, and how to kill it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(parent), *servers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def kill() -> None:
        process.kill()
        process.wait()

    assert process.stdout is not None
    try:
        yield Path(process.stdout.readline().strip()), kill
    finally:
        kill()


def test_what_a_killed_run_left_is_cleared_away_and_nothing_else(start: Start, fake: FakeVllm, tmp_path: Path) -> None:
    with former_run(tmp_path) as (alive, _), former_run(tmp_path) as (killed, kill):
        kill()
        fake.adapters = {"alive-v3": base(), "killed-v7": base(), "unknown": base()}
        fake.roots = {"alive-v3": f"{alive}/alive-v3", "killed-v7": f"{killed}/killed-v7", "unknown": "/elsewhere/v1"}
        with served(fake.app()) as url:
            engine = start(url, adapted())
            assert set(fake.adapters) == {"alive-v3", "unknown", f"{engine.weights_dir.name}-v0"}


def test_what_a_killed_run_exported_is_deleted_when_no_server_needs_it(fake: FakeVllm, tmp_path: Path) -> None:
    with (
        served(fake.app()) as url,
        former_run(tmp_path, url) as (killed, kill),
        former_run(tmp_path, url, "http://127.0.0.1:9") as (elsewhere, kill_other),
        former_run(tmp_path) as (unknown, kill_third),
        former_run(tmp_path, url) as (alive, _),
    ):
        kill(), kill_other(), kill_third()
        fake.adapters, fake.roots = {"killed-v7": base()}, {"killed-v7": f"{killed}/killed-v7"}
        policy = adapted()
        plan = serving_plan(policy, max_length=512, max_images=4, max_staleness=0)
        engine = VllmEngine(policy, [f"{url}/"], plan, save_weights, patience=QUICK, weights_dir=tmp_path)
        engine.update_weights(0)
        assert set(fake.adapters) == {f"{engine.weights_dir.name}-v0"}
        assert set(tmp_path.iterdir()) == {elsewhere, unknown, alive, engine.weights_dir}
        engine.discard()


def test_only_a_provably_dead_run_is_dead(tmp_path: Path) -> None:
    with former_run(tmp_path) as (path, kill):
        assert not is_dead(path / "v0")
        kill()
        assert is_dead(path / "v0")
    (path / "owner.lock").write_text("another-machine")
    assert not is_dead(path / "v0")
    (path / "owner.lock").unlink()
    assert not is_dead(path / "v0")
    mine = WeightsDirectory(tmp_path, "x" * 300)
    assert not is_dead(mine.path / "v0")
    mine.close()
    assert not mine.path.exists()


def test_too_few_slots_for_all_runs_is_one_line_that_names_what_is_loaded(
    start: Start, fake: FakeVllm, caplog: pytest.LogCaptureFixture
) -> None:
    fake.info = server_info()  # two slots, as many as one run needs
    with served(fake.app()) as url:
        first = start(url, adapted())
        with caplog.at_level(logging.WARNING):
            start(url, adapted())
        (line,) = [record.message for record in caplog.records if record.name.startswith("cua_agent")]
    assert "\n" not in line
    assert all(word in line for word in (url, "--max-loras 2", f"{first.weights_dir.name}-v0", "release"))


def test_a_server_that_takes_no_more_adapters_names_what_is_loaded(start: Start, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        first = start(url, adapted())
        fake.full = "No free lora slots"
        with pytest.raises(ServerMismatch) as caught:
            start(url, adapted())
    message = str(caught.value)
    assert "No free lora slots" in message
    assert f"loaded there: {first.weights_dir.name}-v0" in message
    assert "weights_dir" not in message


def test_full_weights_are_not_shared(start: Start, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        first = start(url, load_policy(checkpoint()))
        owner = first.weights_dir.name
        for policy in (load_policy(checkpoint()), adapted()):
            with pytest.raises(ServerMismatch, match=f"holds full weights of another run .{owner}-v0.*release {url}"):
                start(url, policy)
        (response,) = generate(first, request())
        assert response.versions == [0, 0]
        first.discard()
        assert fake.tag == "released"
        start(url, load_policy(checkpoint()))


def test_full_weights_are_not_loaded_under_the_adapters_of_others(start: Start, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        first = start(url, adapted())
        with pytest.raises(ServerMismatch, match=f"serves adapters of other runs .{first.weights_dir.name}-v0"):
            start(url, load_policy(checkpoint()))
    assert fake.tag == "default"


@pytest.mark.parametrize("full", [True, False])
def test_weights_that_another_run_loads_later_end_the_run(
    full: bool, start: Start, fake: FakeVllm, tmp_path: Path
) -> None:
    with served(fake.app()) as url, former_run(tmp_path) as (other, kill):
        policy = load_policy(checkpoint()) if full else adapted()
        engine = start(url, policy)
        fake.tag = f"{other}/{other.name}-v0"
        for use in (lambda: generate(engine, request()), lambda: engine.update_weights(1)):
            with pytest.raises(ServerMismatch, match=f"full weights of another run .{other.name}-v0"):
                use()
        kill()
        engine.update_weights(1)
        (response,) = generate(engine, request())
        assert response.versions == [1, 1]


def test_the_release_command_takes_one_run_off_a_server(
    start: Start, fake: FakeVllm, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(fake.app()) as url:
        kept, gone = start(url, adapted()), start(url, adapted())
        assert main(["release", url, gone.weights_dir.name]) == 0
        assert capsys.readouterr().out == f"released {gone.weights_dir.name}-v0\n"
        assert set(fake.adapters) == {f"{kept.weights_dir.name}-v0"}
        assert main(["release", url, gone.weights_dir.name]) == 0
        assert "holds nothing of" in capsys.readouterr().out
        fake.tag = f"/somewhere/{gone.weights_dir.name}/{gone.weights_dir.name}-v4"
        assert main(["release", url, gone.weights_dir.name]) == 0
        assert fake.tag == "released"
    assert main(["release", url, "run"]) == 1
    assert main(["release", url]) == 2
