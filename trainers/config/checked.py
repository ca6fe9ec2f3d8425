"""From a plain tree of keys to a `TrainConfig` that can be run."""

from __future__ import annotations

from trainers.config.combinations import check_combinations
from trainers.config.former_keys import renamed
from trainers.config.run import TrainConfig
from trainers.config.validation import build, check_model_path, check_resume_path


def from_mapping(tree: dict[str, object]) -> TrainConfig:
    """Build and validate a `TrainConfig` from a plain nested mapping; absent keys take their defaults.

    Raises `ConfigError` on an unknown key, an illegal value or combination, or a local model or checkpoint path that
    is not there.
    """
    config = build(TrainConfig, renamed(tree))
    check_model_path(config.model.path)
    check_resume_path(config.resume)
    check_combinations(config)
    return config
