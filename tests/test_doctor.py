"""The doctor's parts: what each check makes of what it finds."""

import json
import socket
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cua_agent.models.memory import GIB, ModelShape, TrainingMemory
from trainers.config import TrainConfig
from trainers.config.compose import choices, load_config
from trainers.doctor import packages, ports, storage, worlds
from trainers.doctor.__main__ import main
from trainers.doctor.checklist import POINTS, checked
from trainers.doctor.checks import run_checks
from trainers.doctor.context import Context
from trainers.doctor.devices import devices, judge_memory
from trainers.doctor.examination import Result, examine
from trainers.doctor.finding import Check, Finding, Status, error, not_checked, ok, refused, warning, worst
from trainers.doctor.origin import resume
from trainers.doctor.plan import groups_in_flight, problems
from trainers.doctor.report import Table, to_json, verdict
from trainers.protocol import TrainerState
from trainers.run.checkpoint_files import CheckpointError

SHAPE = ModelShape(
    parameters=1000, vision=200, largest_tensor=0, largest_block=0, head=0, rest=0, adapter_per_rank=10,
    layers=0, width=0, query_width=0, key_width=0, inner_width=0, vocabulary=0,
)  # fmt: skip


def look(check, *overrides: str) -> Finding:
    with Context(load_config(overrides)) as context:
        return check(context)


def raising(problem: Exception):
    def check(_: Context) -> Finding:
        raise problem

    return check


def test_what_a_check_raises_is_a_row_and_what_needs_it_is_left_out() -> None:
    checks = [
        Check("a", "", raising(CheckpointError("checkpoint x is damaged; take another"))),
        Check("b", "", raising(KeyError("k"))),
        Check("c", "", lambda _: ok("never"), needs=("a",)),
        Check("d", "", lambda _: ok("never"), needs=("c",)),
        Check("e", "", lambda _: ok("fine")),
    ]
    seen: list[str] = []
    with Context(TrainConfig()) as context:
        results = examine(checks, context, lambda result: seen.append(result.check.name))
    assert seen == ["a", "b", "c", "d", "e"]
    assert [result.finding for result in results] == [
        error("checkpoint x is damaged", "take another"),
        error("KeyError: 'k'", "docs/troubleshooting.md"),
        not_checked("waits for: a"),
        not_checked("waits for: c"),
        ok("fine"),
    ]


def test_several_findings_are_the_worst_of_them() -> None:
    assert worst([ok("fine"), ok("well")]) == ok("fine; well")
    assert worst([warning("w", "do"), ok("fine"), error("e", "do")]) == Finding(Status.ERROR, "w; e", "do")
    assert refused("only\n a line", "rest") == error("only a line", "rest")
    assert refused("no key: set A; or B", "rest") == error("no key: set A", "or B")
    assert refused("a dtype: set x=1, or y: 2", "rest") == error("a dtype", "set x=1, or y: 2")


def test_rows_can_be_pasted_and_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-abcdefgh12345678")
    shown = StringIO()
    table = Table(Console(file=shown, width=40), ["disk", "episode"])
    table.row("disk", error("x" * 60 + " sk-abcdefgh12345678", "python train.py " + "key=value " * 20))
    table.row("episode", ok("played"), "everything")
    first, second, third = shown.getvalue().splitlines()
    assert third == "ok           episode  played (for everything)"
    assert first == f"error        disk     {'x' * 60} ***"
    assert second.split("-> ")[1] == "python train.py " + "key=value " * 20
    rows = json.loads(to_json([Result(Check("disk", "checkpoints", raising(OSError())), error("key=", "set it"))]))
    assert rows["ready"] is False
    assert rows["checks"][0] == {
        "check": "disk", "serves": "checkpoints", "status": "error", "what": "key=", "remedy": "set it",
    }  # fmt: skip
    assert verdict([ok(""), error("", ""), ok("")]) == "2 ok, 1 error: not ready"


def test_a_bad_configuration_is_status_2_before_anything_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout.group_size=1"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: rollout.group_size=1")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs packages of other versions, in front of the real ones."""

    def install(name: str, version: str) -> None:
        about = tmp_path / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


def test_a_package_that_is_not_the_tested_one_is_found(site) -> None:
    assert look(packages.versions).status is Status.OK
    site("pillow", "12.9.0")
    assert look(packages.versions).what == "pillow 12.9.0 is installed, 12.3.0 was tested"
    site("transformers", "4.57.0")
    found = look(packages.versions)
    assert found.status is Status.ERROR
    assert "transformers 4.57.0 is installed, <5.4,>=5.3 is needed" in found.what
    assert "make setup, or pip install 'transformers==5.3.0'" in found.remedy


def test_what_only_another_configuration_needs_is_not_asked_for() -> None:
    def names(*overrides: str) -> set[str]:
        with Context(load_config(overrides)) as context:
            return {wish.name for wish in packages.requirements_of(packages.extras_for(context))}

    assert "playwright" in names("env=miniwob") - names()
    assert "areal" in names() - names("backend=legacy")
    assert not {"pytest", "unsloth", "gbox-sdk"} & names()


def test_a_device_that_is_not_there_is_found() -> None:
    import torch

    found = look(devices, "loader.device=cuda:99")
    assert found.status is Status.ERROR and "loader.device=" in found.remedy
    if not torch.cuda.is_available():
        assert look(devices).status is Status.OK


MEMORY = TrainingMemory(
    weights=40 * GIB, gathered=0, trained=20 * GIB, reference=0, activations=10 * GIB, logits=5 * GIB,
    sampling_copy=0, process=GIB, host=8 * GIB,
)  # fmt: skip


@pytest.mark.parametrize(
    ("free", "status"), [(60, Status.ERROR), (70, Status.ERROR), (75, Status.WARNING), (90, Status.OK)]
)
def test_memory_by_hand(free: int, status: Status) -> None:
    """70 GiB, 5 % that the allocator cannot hand out and 1 GiB of the process: 74.5; and 10 GiB of keys and values."""
    assert judge_memory(MEMORY, 10 * GIB, free * GIB, on_cpu=False, cards=1).status is status


def test_the_bytes_of_checkpoints_by_hand() -> None:
    lora = load_config(["lora.enabled=true", "lora.r=4"])
    assert storage.checkpoint_bytes(SHAPE, lora) == 12 * 4 * 10 + 20_000_000
    full = load_config(["model.freeze_vision=true"])
    assert storage.checkpoint_bytes(SHAPE, full) == 4 * 1000 + 8 * 800 + 20_000_000
    none = ["checkpoint.every_steps=0", "checkpoint.every_minutes=0"]
    assert storage.checkpoints_kept(load_config(none)) == 3  # best, last, and the one being written
    assert storage.checkpoints_kept(load_config([])) == 5  # and checkpoint.keep=2 by time
    assert storage.checkpoints_kept(load_config(["checkpoint.every_steps=5", "checkpoint.keep=4"])) == 7


def test_an_output_directory_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    assert look(storage.output_directory, f"output_dir={tmp_path}/new/outputs").status is Status.OK
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for place in (f"{tmp_path}/file", f"{tmp_path}/file/outputs", "/proc/outputs"):
        assert look(storage.output_directory, f"output_dir={place}").status is Status.ERROR


def test_a_port_that_something_else_holds_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        found = look(ports.ports, "inference=vllm", f"inference.servers=['http://127.0.0.1:{port}']")
        assert found.status is Status.ERROR
        assert found.what == f"port {port} is taken by something that is no vLLM"
        boxes = look(ports.ports, "env=gbox_local", f"env.args.base_url=http://127.0.0.1:{port}/api/v1")
        assert boxes.what == f"port {port} is taken by something that is no GBox"
    assert look(ports.ports, "inference=vllm", f"inference.servers=['http://127.0.0.1:{port}']").status is Status.OK


def numbers(*overrides: str, tasks: int = 5) -> list[str]:
    return [finding.what for finding in problems(load_config(overrides), tasks)]


@pytest.mark.slow
def test_numbers_that_do_not_go_together_are_found() -> None:
    small = ("rollout.group_size=4", "rollout.groups_per_step=2")
    assert groups_in_flight(load_config([*small, "rollout.max_staleness=2"])) == 6
    (idle,) = numbers(*small, "rollout.max_staleness=1", "rollout.concurrency=17", "inference.max_batch=17")
    assert idle == "rollout.concurrency=17: at most 16 episodes are ever under way (4 groups of 4)"
    assert numbers(*small, "rollout.max_staleness=1", "rollout.concurrency=16") == []
    (long,) = numbers("rollout.concurrency=3")
    assert long == "rollout.concurrency=3: the 64 episodes of a step are played in 22 laps"
    (narrow,) = numbers("inference.max_batch=8")
    assert narrow.startswith("inference.max_batch leaves room for 8 of the 64 episodes")
    assert numbers("inference=vllm", "inference.max_in_flight=32", "inference.servers=['http://a','http://b']") == []
    assert any("no group has a signal" in said for said in numbers("rollout.greedy=true"))
    assert any("stays at 0" in said for said in numbers("backend=legacy", "rollout.max_staleness=2"))
    assert any("has no tasks" in said for said in numbers(tasks=0))


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_the_presets_make_sense(experiment: str) -> None:
    assert [said for said in numbers(f"experiment={experiment}") if "concurrency" not in said] == []


def test_a_damaged_checkpoint_is_found(tmp_path: Path) -> None:
    from trainers.run.checkpoint_files import STATE, write_checkpoint

    def fill(directory: Path) -> None:
        from dataclasses import asdict

        (directory / STATE).write_text(json.dumps(asdict(TrainerState(step=3))))
        (directory / "model.safetensors").write_bytes(b"weights")

    write_checkpoint(tmp_path / "run" / "checkpoints" / "step_3", fill)
    whole = tmp_path / "run" / "checkpoints" / "step_3"
    assert look(resume, f"resume={whole}") == ok(f"{whole}, step 3: whole, and of this policy")
    (whole / "model.safetensors").write_bytes(b"weight")
    for place in (whole, tmp_path / "run"):
        with pytest.raises(ValueError, match=r"damaged|neither a checkpoint"):
            look(resume, f"resume={place}")


def test_the_checklist_has_the_twelve_points_of_the_guide_and_a_result_for_each() -> None:
    config = TrainConfig()
    results = [Result(check, ok(check.name)) for check in run_checks(config)]
    points = list(checked(config, results))
    assert len(points) == len(POINTS) == 12
    assert {name for point in POINTS for name in point.checks} <= {result.check.name for result in results}
    assert dict(points)["Replace the training loop (GRPOTrainer)"].status is Status.OK
    legacy = replace(config, backend="legacy")
    assert dict(checked(legacy, results))["Replace rollout collection (asynchronous)"].status is Status.WARNING


@pytest.mark.parametrize(
    ("model", "remedy"), [("tiny", "model=tiny reads the screens of env=pocket"), ("/a/model", "model.prompt=full")]
)
def test_an_episode_of_each_world_is_played_and_one_without_a_readable_call_says_what_helps_this_model(
    model: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = SimpleNamespace(action=None, generate_s=1.0, env_s=0.0)

    def play(_: object, task: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(
            failure=None, task=task, outcome="out_of_turns", reward=0.0, turns=[turn], trajectories=[]
        )

    monkeypatch.setattr("trainers.doctor.sampling.logprob_gap", lambda *_: 1.0)
    monkeypatch.setattr(worlds, "training_tasks", lambda _: [SimpleNamespace(id=f"{n}::t") for n in ("a", "a", "b")])
    monkeypatch.setattr(worlds, "_play", play)
    config = SimpleNamespace(model=SimpleNamespace(path=model), env=None)
    context = SimpleNamespace(config=config, policy=None, wait_for=lambda played: played)
    found = worlds.episode(context)  # type: ignore[arg-type]
    assert found.status is Status.WARNING and remedy in found.remedy
    assert [part.partition(":")[0] for part in found.what.split("; ")[::2]] == ["a", "b"]
    assert found.what.count("none of 1 turns was a call") == 2
