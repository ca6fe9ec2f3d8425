"""Typed configuration: what Hydra's merged tree becomes before anything heavy is loaded.

The defaults, allowed values and one-line help of every key live in this package and nowhere else: `conf/` holds only
what differs from them, and `docs/configuration.md` and `train.py --help` are made from them.
"""

from trainers.config.areal import ArealConfig
from trainers.config.checked import from_mapping
from trainers.config.environment import EnvConfig
from trainers.config.learning import AdvantageConfig, LossConfig, OptimConfig, RewardConfig, RolloutConfig
from trainers.config.playing import ReplayConfig, SamplingConfig
from trainers.config.policy import InferenceConfig, LoaderConfig, LoraConfig, ModelConfig
from trainers.config.run import CheckpointConfig, EvalConfig, LoggingConfig, TrainConfig
from trainers.config.validation import ConfigError

__all__ = [
    "AdvantageConfig",
    "ArealConfig",
    "CheckpointConfig",
    "ConfigError",
    "EnvConfig",
    "EvalConfig",
    "InferenceConfig",
    "LoaderConfig",
    "LoggingConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "ReplayConfig",
    "RewardConfig",
    "RolloutConfig",
    "SamplingConfig",
    "TrainConfig",
    "from_mapping",
]
