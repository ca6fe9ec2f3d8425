"""What the benchmarks of rollouts make of their measurements."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def measured(module: Any, **figures: float) -> Any:
    zero = dict.fromkeys(module.Measured.__dataclass_fields__, 0)
    return module.Measured(**{**zero, **figures})


def test_ratio_and_bounds_by_hand() -> None:
    import gpu_async

    runs = {
        "phase 3": measured(gpu_async, step_s=2.0),
        "legacy, slow": measured(gpu_async, step_s=40.0, waited_s=36.0, env_utilisation=0.25, episodes=32),
        "phase 3, slow": measured(gpu_async, step_s=10.0, env_utilisation=0.9),
    }
    assert gpu_async.against_bounds(runs, concurrency=64) == {
        "ratio": 4.0,
        "bound_ratio": 40 / 9,
        "episode_s": 18.0,  # a quarter of 64 environments for 36 s, 32 episodes
        "bound_environments_s": 9.0,
        "bound_processor_s": 2.0,
    }


def test_growth_of_memory_leaves_out_the_beginning(tmp_path: Path) -> None:
    import gpu_learning

    (tmp_path / "metrics.jsonl").write_text(
        "\n".join(
            json.dumps({"step_s": s, "train_s": 1.0, "sync_s": 0.1, "logprob_gap": None, "staleness_max": 2})
            for s in (3.0, 1.0, 2.0)
        )
    )
    (tmp_path / "eval.jsonl").write_text(json.dumps({"split": "seeds", "step": 0, "success_rate": 0.5}))
    memory = [{"host": host, "gpu": 5.0} for host in (1.0, 4.0, 6.0, 6.5)]
    figures = gpu_learning.report(tmp_path, memory)
    assert figures["host memory grew by, GiB"] == 2.5
    assert figures["gpu memory grew by, GiB"] == 0.0
    assert figures["step_s, median"] == 2.0
    assert figures["success"] == [[0, "seeds", 0.5]]


def test_the_gpu_waits_where_nothing_had_been_asked_for() -> None:
    import gpu_time

    def event(category: str, start: float, length: float, correlation: int, name: str) -> dict[str, Any]:
        args = {"correlation": correlation}
        return {"cat": category, "ts": start, "dur": length, "args": args, "name": name}

    events = [
        event("kernel", 100, 50, 1, "a"),
        event("kernel", 160, 40, 2, "b"),  # asked for at 20: the GPU's own pause of 10
        event("gpu_memcpy", 180, 30, 3, "beside"),  # overlaps with b
        event("kernel", 300, 100, 4, "c"),  # asked for at 295, when nothing had run since 210
        event("cuda_runtime", 0, 5, 1, "launch"),
        event("cuda_runtime", 15, 5, 2, "launch"),
        event("cuda_runtime", 170, 5, 3, "launch"),
        event("cuda_driver", 290, 5, 4, "launch"),
        {"cat": "cpu_op", "ts": 200, "dur": 80, "name": "collate"},
        {"ph": "M", "name": "process_name"},
    ]
    found = gpu_time.gpu_time(events)
    assert (found.running_s, found.queued_s) == (200e-6, 10e-6)
    assert found.waits == [gpu_time.Wait(210, 90, "beside", "c")]
    [summary, line] = gpu_time.longest_waits(found, events, 5)
    assert summary.startswith("1 waits, 0.1 ms") and line.endswith("collate 0.07")
