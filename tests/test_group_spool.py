"""What was played before a kill is not played again, and only what may be trained on is."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cua_agent.scratch import held
from tests.legacy_rig import CONFIG, TASKS, MakeRig
from tests.toy_world import trajectory
from trainers.config import EvalConfig, TrainConfig
from trainers.config.compose import load_config
from trainers.config.run import CheckpointConfig
from trainers.protocol import EpisodeSpec, Group, GroupSpec, TrainerState
from trainers.rollouts.group_spool import SPOOL, GroupSpool, TakenUp
from trainers.rollouts.task_sampler import TaskSampler
from trainers.run.directory import create_run_directory, named_after
from trainers.run.resuming import begun_again
from trainers.run.taking_up import spool_of, take_up

KNOWN = {task.id: task for task in TASKS}


def spec(index: int) -> GroupSpec:
    return TaskSampler(TASKS, seed=0).at(index)


def group(index: int, versions: Sequence[int] = (0, 0)) -> Group:
    """Two episodes whose tokens were sampled by `versions`."""
    of = spec(index)
    rows = []
    for member in range(2):
        name = f"{of.group_id}-{member}"
        row = trajectory(float(member), group_id=of.group_id, episode_id=name, ids=range(2 + len(versions)))
        mask = np.array([0, 0] + [1] * len(versions), np.int32)
        of_row = {"task_id": of.task.id, "seed": of.seed, "versions": np.array([-1, -1, *versions], np.int32)}
        rows.append([replace(row, loss_mask=mask, **of_row)])
    return Group(of, rows)


def names(spool: GroupSpool) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in spool.directory.glob("*"))


def test_a_group_comes_back_as_it_was(tmp_path: Path) -> None:
    spool = GroupSpool(tmp_path / SPOOL, keep=4)
    spool.put(group(3))
    back = spool.take(spec(3), KNOWN)
    assert back is not None and back.spec == spec(3)
    assert [[row.episode_id for row in episode] for episode in back.episodes] == [["g000003-0"], ["g000003-1"]]
    assert [row.reward for row in back.rows] == [0.0, 1.0]
    assert spool.take(spec(4), KNOWN) is None


def test_a_group_of_another_seed_or_an_unknown_task_or_a_damaged_one_is_played_again(tmp_path: Path) -> None:
    spool = GroupSpool(tmp_path / SPOOL, keep=4)
    spool.put(group(3))
    assert spool.take(replace(spec(3), seed=7), KNOWN) is None
    assert spool.take(spec(3), {}) is None
    (tmp_path / SPOOL / "g000003.safetensors").write_bytes(b"torn")
    assert spool.take(spec(3), KNOWN) is None


def test_a_group_keeps_the_task_that_was_drawn_for_it(tmp_path: Path) -> None:
    """By difficulty, what is drawn depends on what was seen before the draw."""
    spool = GroupSpool(tmp_path / SPOOL, keep=4)
    spool.put(group(3))
    [other] = [task for task in TASKS if task != spec(3).task]
    back = spool.take(replace(spec(3), task=other), KNOWN)
    assert back is not None and back.spec == spec(3)


def test_what_was_trained_on_is_kept_until_a_checkpoint_covers_it_and_not_taken_twice(tmp_path: Path) -> None:
    spool = GroupSpool(tmp_path / SPOOL, keep=4)
    for index in range(3):
        spool.put(group(index))
    spool.trained(1, ["g000000", "g000009"])
    spool.trained(2, ["g000001"])
    assert names(spool) == ["g000000.step000001", "g000001.step000002", "g000002"]
    assert spool.take(spec(0), KNOWN) is None
    spool.covered(1)
    assert names(spool) == ["g000001.step000002", "g000002"]


def test_no_more_than_so_many_are_kept_and_none_when_there_is_no_room(tmp_path: Path) -> None:
    spool = GroupSpool(tmp_path / SPOOL, keep=2)
    for index in range(3):
        spool.put(group(index))
    assert names(spool) == ["g000000", "g000001"]
    (tmp_path / "file").touch()
    broken = GroupSpool(tmp_path / "file" / SPOOL, keep=2)
    broken.put(group(0))
    assert broken.keep == 0


def test_only_what_a_checkpoint_can_train_on_is_taken_up(tmp_path: Path) -> None:
    former, spool = GroupSpool(tmp_path / "former", keep=9), GroupSpool(tmp_path / "new", keep=9)
    versions = {0: (4, 4), 1: (5, 5), 2: (5, 6), 3: (3, 5), 4: (5, 5), 5: (4, 5)}
    for index, of_tokens in versions.items():
        former.put(group(index, of_tokens))
    former.trained(5, ["g000000"])  # the checkpoint knows it
    former.trained(6, ["g000001"])  # lost with the step that trained on it
    taken = spool.take_up([former.directory, tmp_path / "none"], step=5, version=5, bound=1)
    assert taken == TakenUp(usable=3, lost=1, late=1)
    assert names(spool) == ["g000001", "g000004", "g000005"]
    assert str(taken) == (
        "3 finished groups are not played again; 1 dropped: sampled with weights that are lost; "
        "1 dropped: too old for rollout.max_staleness"
    )
    assert not former.directory.exists()


# A synchronous run.


class KilledError(Exception):
    """Stands for a kill: nothing is saved after it."""


@pytest.mark.parametrize(("keep", "played_again"), [(64, 3), (0, 7)])
def test_a_run_that_goes_on_plays_what_was_not_finished(make_rig: MakeRig, keep: int, played_again: int) -> None:
    config = replace(
        CONFIG,
        max_steps=1,
        rollout=replace(CONFIG.rollout, groups_per_step=7, max_refills=0, concurrency=1),
        eval=EvalConfig(baseline=False, every_steps=0, episodes=2),
        checkpoint=CheckpointConfig(keep_groups=keep),
    )

    def hook(episode: EpisodeSpec) -> None:
        if episode.episode_id == "g000004-1":
            while len(list((first.directory / SPOOL).glob("g*.safetensors"))) < min(keep, 4):
                time.sleep(0.01)  # groups are written by a thread
            raise KilledError

    def go_on(former: Path) -> TrainConfig:
        directory = former.parent / "run1"
        made = create_run_directory(
            replace(config, run_name="run1", output_dir=str(former.parent)),
            resumed={"resumed_from": str(former), "resumed_step": 0},
        )
        assert made == directory
        return config

    first = make_rig(config, hook=hook)
    create_run_directory(replace(config, run_name="made", output_dir=str(first.directory.parent)))
    for file in (first.directory.parent / "made").iterdir():
        file.rename(first.directory / file.name)
    with held(first.directory), pytest.raises(KilledError):
        first.trainer.train()
    second = make_rig(go_on(first.directory))
    second.trainer.train()
    trained = [episode for episode in second.runner.played if episode.group_id.startswith("g")]
    assert len({episode.group_id for episode in trained}) == played_again
    assert [line for line in second.watcher.messages if "not played again" in line] == (
        ["4 finished groups are not played again"] if keep else []
    )
    [row] = second.rows()
    assert row["groups_kept"] + row["groups_filtered"] == 7
    assert not (second.directory / SPOOL).exists() and not (first.directory / SPOOL).exists()


@pytest.mark.parametrize(("override", "taken"), [("env.args.prewarm=3", True), ("env.args.scale=0.5", False)])
def test_groups_of_boxes_with_another_label_are_taken_up(tmp_path: Path, override: str, taken: bool) -> None:
    typed = ["backend=legacy", "env=gbox_local", "run_name=r", f"output_dir={tmp_path}"]
    config = load_config(typed)
    former = create_run_directory(config)
    GroupSpool(former / SPOOL, keep=4).put(group(0))
    with held(former):
        pass
    later = load_config([*typed, override])
    directory = create_run_directory(later, resumed=begun_again(former))
    later = named_after(later, directory)
    take_up(later, directory, spool_of(later, directory), TrainerState())
    assert names(GroupSpool(directory / SPOOL, keep=4)) == (["g000000"] if taken else [])
    assert bool(names(GroupSpool(former / SPOOL, keep=4))) != taken


# An asynchronous one.


@pytest.mark.slow
def test_groups_of_the_spool_are_ready_at_once_and_the_rest_is_played(tmp_path: Path) -> None:
    pytest.importorskip("areal")
    from tests.stream_rig import Fate, configuration, number, opened

    config = configuration(staleness=1, groups=2, refills=1, concurrency=4)
    spool = GroupSpool(tmp_path / SPOOL, keep=9)
    for index in (4, 6):
        spool.put(group(index, (3, 3)))
    with opened(config, [Fate()], tmp_path, version=3, position=4, spool=spool) as stream:
        first = stream.collect()
        kept = [number(each.spec.group_id) for each in first.kept]
        stream.publish()
        second = [number(each.spec.group_id) for each in stream.collect().kept]
        played = set(stream.stream._results.starts()) | {
            int(path.stem[1:]) for path in spool.directory.glob("*.safetensors")
        }
    assert kept == [4, 6]  # the others play meanwhile, each as long as it takes
    assert len(second) == 2 and set(second) <= {5, 7, 8, 9} & played
