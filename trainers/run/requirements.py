"""What a run needs from outside, asked before anything is loaded: packages, keys, logins, proxies."""

from __future__ import annotations

import os
from contextlib import closing, suppress

from cua_agent.envs.base import WorldUnavailable
from cua_agent.secrets import BadKey, check_key_variables
from trainers.config import ConfigError, TrainConfig
from trainers.rollouts.task_sampler import training_tasks
from trainers.run.metrics import check_trackers


def check_requirements(config: TrainConfig) -> None:
    """Raise `ConfigError` when a package, a key or a login that `config` needs is missing or unusable, or a server of
    another dtype."""
    from cua_agent.inference.vllm.errors import ServerMismatch

    check_access(config)
    try:
        if config.inference.name == "vllm":
            _check_servers(config)
    except ServerMismatch as error:
        raise ConfigError(str(error)) from error


def check_access(config: TrainConfig) -> None:
    """Raise `ConfigError` when a package, a key or a login that `config` needs is missing or unusable; nobody is
    asked."""
    try:
        check_key_variables()
        config.env.world.check()
        training_tasks(config.env)
    except (BadKey, WorldUnavailable) as error:
        raise ConfigError(str(error)) from error
    if os.environ.get("RANK", "0") == "0":  # the process that keeps the books
        check_trackers(config.logging)


def _check_servers(config: TrainConfig) -> None:
    """Ask those that answer for their dtype; one that is still starting is asked when it is met."""
    from cua_agent.inference.vllm import wire
    from cua_agent.inference.vllm.client import ControlClient
    from cua_agent.inference.vllm.errors import ServerFailure
    from cua_agent.inference.vllm.plan import check_dtype

    for url in config.inference.servers:
        with closing(ControlClient(url)) as client, suppress(ServerFailure):
            info = client.call(wire.Call("GET", wire.SERVER_INFO, query={"config_format": "json"}))
            check_dtype(url, info, config.model.dtype)
