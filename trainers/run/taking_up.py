"""What a killed run had played and not trained on: which of it a run that goes on may use."""

from __future__ import annotations

from pathlib import Path

from cua_agent.scratch import is_abandoned
from trainers.config import ConfigError, TrainConfig
from trainers.config.saved import practical_keys, read_saved, settings_of
from trainers.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainers.protocol import TrainerState
from trainers.rollouts.group_spool import SPOOL, GroupSpool
from trainers.run.lineage import lineage_of

_PLAYED = ("env.", "model.", "reward.", "rollout.", "sampling.turns", "lora.", "seed")
"""Keys, and beginnings of keys, on which it depends how a group was played."""
_NOT_PLAYED = ("rollout.concurrency", "rollout.groups_per_step", "rollout.max_refills", "rollout.max_staleness")


def spool_of(config: TrainConfig, directory: Path, process_group: ProcessGroup = SINGLE_PROCESS) -> GroupSpool:
    """The spool of the run in `directory`; it keeps nothing where several processes play."""
    alone = process_group.size == 1 and config.scheduler.name == "none"
    return GroupSpool(directory / SPOOL, config.checkpoint.keep_groups if alone else 0)


def take_up(config: TrainConfig, directory: Path, spool: GroupSpool, state: TrainerState) -> str | None:
    """Take over what the dead runs before this one had played, and say what became of it."""
    if spool.keep == 0:
        return None
    former = [part.directory for part in lineage_of(directory).parts[:-1] if is_abandoned(part.directory)]
    usable = [each / SPOOL for each in former if (each / SPOOL).is_dir() and _played_alike(config, each)]
    bound = 0 if config.backend == "legacy" else config.rollout.max_staleness
    taken = spool.take_up(usable, step=state.step, version=state.policy_version, bound=bound)
    return str(taken) if taken else None


def _played_alike(config: TrainConfig, former: Path) -> bool:
    try:
        saved = read_saved(former).settings
    except ConfigError:
        return False
    present = settings_of(config)
    practical = practical_keys(config)  # the label `run` of boxes, for one, which differs in every part of a lineage
    keys = [key for key in present if key.startswith(_PLAYED) and not key.startswith(_NOT_PLAYED)]
    keys = [key for key in keys if key not in practical]
    return all(saved.get(key) == present[key] for key in keys)
