"""The ladder's live runs play the world that was recorded, also one of somebody else's."""

from pathlib import Path

import pytest

from trainers.components import build_components
from trainers.config import EnvConfig, TrainConfig
from trainers.config.compose import load_config
from trainers.parity.__main__ import SHORT, main
from trainers.parity.greedy import LIVE_CASES
from trainers.parity.ladder import climb, replay_on
from trainers.parity.plan import Plan
from trainers.parity.recording import write_config
from trainers.parity.report import failures
from trainers.parity.starts import make_start

PIECE = "lora/greedy"
WORLD = """
from pathlib import Path

from pydantic.dataclasses import dataclass

from cua_agent.envs.pocket.world import PocketWorld


@dataclass(frozen=True)
class World(PocketWorld):
    def open(self):
        (Path(__file__).parent / "opened").touch()
        return super().open()
"""


def test_live_runs_keep_the_recorded_world() -> None:
    env = EnvConfig("miniwob", ("click-button",), {"browser_path": "/somewhere"})
    assert all(case.config(TrainConfig(env=env), "full").env == env for case in LIVE_CASES)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("max_steps=3", "max_steps=3: the recording decides it; allowed: env=... and keys of env"),
        ("env.args.layuot=fixed", "env.args.layuot=fixed: unknown key; did you mean env.args.layout?"),
    ],
)
def test_a_ladder_takes_keys_of_the_world_alone(word: str, said: str, tmp_path: Path, capsys, recording: Path) -> None:
    assert main(["ladder", "--recording", str(recording), "--out", str(tmp_path / "out"), word]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    from tests.test_parity import episode
    from trainers.protocol import Batch
    from trainers.rollouts.trajectory_store import TrajectoryStore

    write_config(tmp_path / "recording", TrainConfig())
    TrajectoryStore(tmp_path / "recording" / "trajectories", keep=1).record(1, Batch([episode("e")], [1.0]))
    return tmp_path / "recording"


@pytest.mark.slow
def test_a_world_of_ones_own_is_played_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("areal")
    (tmp_path / "their_world.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    recorded = load_config(["backend=legacy", *SHORT, "env=their_world:World", "env.tasks=[brightness]"])
    plan = Plan(tmp_path, {PIECE: "start"})
    config = next(case for case in LIVE_CASES if case.name == "greedy").config(recorded, "lora")
    write_config(tmp_path / "pieces" / PIECE, config)
    make_start(tmp_path / "starts" / "start", config, build_components(config), None, 0.01)
    plan.save()
    for side in ("legacy", "phase3"):
        (tmp_path / "opened").unlink(missing_ok=True)
        replay_on(side, plan, lambda _: None)
        assert (tmp_path / "opened").exists()
    result = climb(plan, "theirs", ("legacy", "phase3"))
    assert failures(result) == [] and len(result.measurements) == 2
