"""Presets of published recipes: they compose, AReaL's trainer takes them, and they train."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.legacy_rig import Watcher
from trainers.api import load_config, make_trainer
from trainers.config import TrainConfig

NAMES = ("dapo", "dart", "mobilegym")
SMALL = [
    "threads=1", "max_steps=1", "rollout.groups_per_step=2", "rollout.group_size=4", "rollout.max_refills=1",
    "rollout.max_turns=4", "eval.baseline=false", "eval.episodes=2", "eval.every_steps=0", "logging.tensorboard=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def configs() -> dict[str, TrainConfig]:
    return {name: load_config([f"experiment={name}"]) for name in NAMES}


def test_the_presets_are_what_was_published(configs: dict[str, TrainConfig]) -> None:
    for config in configs.values():
        loss = config.loss
        assert (loss.clip_epsilon, loss.clip_epsilon_high, loss.normalisation) == (0.2, 0.28, "token_mean")
        assert loss.kl_coefficient == 0.0
    dapo, dart, mobilegym = configs.values()
    assert dapo.rollout.max_refills > 1 and dapo.reward.overlong_cost > 0
    assert dapo.reward.overlong_after + dapo.reward.overlong_turns <= dapo.rollout.max_turns
    assert dart.loss.decoupled and dart.loss.behaviour_action == "clamp" and dart.loss.dual_clip == 10.0
    assert int(dart.replay.share * dart.rollout.group_size) == 1
    assert mobilegym.reward.partial > 0 and mobilegym.reward.side_effect_cost > 0


def test_the_trainer_of_phase_3_takes_them(configs: dict[str, TrainConfig]) -> None:
    pytest.importorskip("areal")
    from trainers.areal.train.phase3_trainer import check_supported

    for config in configs.values():
        check_supported(replace(config, backend="areal", phase=3))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_a_step(name: str, tmp_path: Path) -> None:
    config = load_config([f"experiment={name}", "backend=legacy", f"output_dir={tmp_path}", *SMALL])
    watcher = Watcher()
    with closing(make_trainer(config, watcher)) as trainer:
        assert trainer.train().steps == 1
    assert watcher.steps[0].episodes >= 8
