"""Episodes that runs recorded, as examples to imitate: their texts and screens, read by any model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cua_agent.agent import AgentConfig
from cua_agent.cloning.example import Example
from cua_agent.conversation import Codec
from cua_agent.trajectory import Outcome
from trainers.clone.retelling import Said, retold
from trainers.config import ConfigError
from trainers.config.validation import shown
from trainers.episodes.files import EPISODES, SCREENS, STEPS
from trainers.run.files import read_rows
from trainers.run.lineage import is_run_directory, lineage_of


def recorded_examples(
    runs: Sequence[str], codec: Codec, agent: AgentConfig, categories: Sequence[str]
) -> list[Example]:
    """The successful training episodes of `runs` and of what they were resumed from, in `categories` (none: all).

    Those with masked texts or without all their screens are left out. Raises `ConfigError` when none is left.
    """
    found: list[Example] = []
    for run in runs:
        directory = Path(run).expanduser()
        if not is_run_directory(directory):
            raise ConfigError(f"source={shown(run, 120)}: allowed: oracle, or a run directory of train.py")
        for part in lineage_of(directory).parts:
            for row in _rows(part.directory / EPISODES):
                if _imitable(row) and (not categories or row["category"] in categories):
                    found += _example(row, part.directory / EPISODES / SCREENS, codec, agent)
    if not found:
        raise ConfigError(
            f"source={shown(list(runs), 120)}: no success of a training episode with its screens; allowed: runs with "
            "logging.record_groups and logging.screenshots_mb above 0"
        )
    return found


def _rows(directory: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(directory.glob("*.jsonl")):
        if file.name != STEPS:
            yield from (row for row in read_rows(file) if isinstance(row, dict))


def _imitable(row: dict[str, Any]) -> bool:
    """Whether it is a success of training whose texts are whole; held-out episodes stay held out."""
    turns = row.get("turns") or []
    whole = all(turn.get("tokens") and turn.get("screen") and not turn["truncated"] for turn in turns)
    return row.get("outcome") == Outcome.SUCCESS and not row["evaluation"] and bool(turns) and whole


def _example(row: dict[str, Any], screens: Path, codec: Codec, agent: AgentConfig) -> list[Example]:
    """The episode as this model would have seen and said it; none where a screen is gone."""
    files = [screens / turn["screen"] for turn in row["turns"]]
    if not all(file.is_file() for file in files):
        return []
    turns = [
        Said(Image.open(file), turn["text"], turn["result"], turn["action"])
        for file, turn in zip(files, row["turns"], strict=True)
    ]
    return retold(row["goal"], turns, codec, agent)
