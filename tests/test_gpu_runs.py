"""The list of ways to train on GPUs: every combination is in it; what it calls refused is, before anything loads."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_runs import (
    DTYPES,
    ENGINES,
    LEARNERS,
    STEPS,
    WEIGHTS,
    Run,
    Servers,
    every_run,
    trained,
    verdict,
    write_table,
)
from trainers.config import ConfigError
from trainers.config.compose import load_config
from trainers.distributed.torchrun import check_processes

pytestmark = pytest.mark.slow

RUNS = {run.name: run for run in every_run()}
REFUSED = [run for run in RUNS.values() if run.refused]
RAN = [run for run in RUNS.values() if not run.refused]


def refusal(run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said before anything is loaded, on a machine with two GPUs of which the run sees its own; "" if it would
    start. Servers are not asked."""
    pytest.importorskip("areal")
    from trainers.areal.cluster.schedulers import check_machine

    seen = 2 if run.cards is None else len(run.cards.split(","))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    try:
        config = load_config(run.overrides([f"http://s{n}" for n in range(run.processes)] if run.servers else []))
        if run.processes > 1:
            check_processes(config, run.processes)
        check_machine(config)
    except ConfigError as error:
        return str(error)
    return ""


def test_every_combination_is_there() -> None:
    kinds = [", ".join(kind) for kind in product(ENGINES, WEIGHTS, DTYPES)]
    wanted = [f"one process, {learner}, {kind}" for learner in LEARNERS for kind in kinds]
    wanted += [f"two processes, {learner}, {kind}" for learner in ("phase 2", "phase 3") for kind in kinds]
    wanted += [f"scheduler={name}, phase 3, {kind}" for name in ("local", "ray") for kind in kinds]
    assert set(wanted) <= RUNS.keys()
    assert len({run.slug for run in RUNS.values()}) == len(RUNS) == len(list(every_run()))


@pytest.mark.parametrize("run", RAN, ids=lambda run: run.name)
def test_what_should_run_is_not_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(run, monkeypatch) == ""


@pytest.mark.parametrize("run", [run for run in REFUSED if not run.servers], ids=lambda run: run.name)
def test_what_does_not_exist_is_refused_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = refusal(run, monkeypatch)
    assert run.refused in words and "\n" not in words


def test_float32_adapters_meet_servers_in_bfloat16() -> None:
    refused = {run.name.split(", ", 2)[2] for run in REFUSED if run.servers}
    assert refused == {"vllm, lora, float32"} and all(run.servers == "lora" for run in REFUSED if run.servers)


@pytest.mark.parametrize(
    ("refused", "status", "steps", "said", "found"),
    [
        ("", 0, STEPS, ["fine"], "ran"),
        ("", 0, STEPS - 1, ["fine"], "failed"),
        ("", 1, STEPS, ["error: late"], "failed"),
        ("", None, 1, ["step 1"], "failed"),
        ("no such", 2, 0, ["error: no such way"], "refused"),
        ("no such", 1, 0, ["error: no such way", "ChildFailedError: exit code 2"], "refused"),
        ("no such", 1, 0, ["error: another"], "failed"),
        ("no such", 0, STEPS, ["fine"], "failed"),
    ],
)
def test_a_run_ran_was_refused_or_failed(
    refused: str, status: int | None, steps: int, said: list[str], found: str
) -> None:
    result = verdict(Run("a run", [], refused=refused), status, steps, said)
    assert result["status"] == found
    if found == "failed":
        assert said[-1] in result["tail"] and f"{steps} steps" in result["why"]
        assert status is not None or "time is up" in result["why"]


def test_steps_of_an_earlier_try_do_not_count(tmp_path: Path) -> None:
    run = Run("a run", ["no.such=key"])
    earlier = tmp_path / "runs" / run.slug
    earlier.mkdir(parents=True)
    (earlier / "metrics.jsonl").write_text('{"step_s": 1.0}\n' * STEPS)
    result = trained(run, [], tmp_path, limit=300)
    assert (result["status"], result["steps"]) == ("failed", 0) and "no.such" in result["why"]


def test_one_run_at_a_time_has_a_server() -> None:
    servers = Servers({"lora": ["a", "b"], "full": []})
    pair, single = Run("pair", [], "lora", processes=2), Run("single", [], "lora")
    with servers.taken(pair) as two:
        assert sorted(two) == ["a", "b"]
    with servers.taken(single) as one, servers.taken(single) as other:
        assert {*one, *other} == {"a", "b"}
    with servers.taken(Run("none", [])) as none:
        assert none == []
    assert servers.enough_for(pair) and not servers.enough_for(Run("full", [], "full"))


def test_the_table_holds_what_ran_so_far(tmp_path: Path) -> None:
    from benchmarks.gpu_runs import line

    run = next(iter(RUNS.values()))
    result = {"name": run.name, "status": "failed", "why": "exit status 1, 0 steps: error: x", "step_s": 1.25}
    assert line(result) == f"{run.name} | failed: exit status 1, 0 steps: error: x | 1.25 |  |  |  | "
    (tmp_path / f"{run.slug}.json").write_text('{"name": "one", "status": "ran", "step_s": 2.0}')
    write_table(tmp_path)
    assert (tmp_path / "table.md").read_text().splitlines()[2:] == ["| one | ran | 2 |  |  |  |  |"]
