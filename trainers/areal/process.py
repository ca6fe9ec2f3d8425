"""What AReaL wants of a process before it is imported, and what has to be mended in it afterwards."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import socket
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from types import ModuleType
from typing import Any

from cua_agent.installation import hint
from cua_agent.proxies import LOCAL_HOSTS, bypass_proxies
from cua_agent.scratch import process_scratch, temporary_files_in
from trainers.areal.loopback import meeting_place, stay_on_this_machine
from trainers.config import ConfigError

EXTRA = "backend=areal needs the package areal: " + hint(
    checkout="make setup", installed="pip install 'cua-grpo[areal]'"
)

_LOGGERS = logging.Logger.manager  # as it is before AReaL is imported

_HARMLESS = (
    "Transformer Engine and Apex are not installed",
    "'set_vital' is deprecated",
    "Slicing a flattened dim from root mesh",
)


def prepare_process(run_directory: Path, device: str = "cpu", *, controller: bool = False) -> None:
    """Make this process one rank of AReaL's SPMD mode (the only one, unless a launcher said otherwise), or the
    controller of its single-controller mode. It trains on `device` (cpu, cuda or cuda:N).

    Raises `ConfigError` when areal is not installed.
    """
    if importlib.util.find_spec("areal") is None:
        raise ConfigError(EXTRA)
    os.environ["AREAL_SPMD_MODE"] = "0" if controller else "1"
    defaults = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHDYNAMO_DISABLE": "1",  # compiling the first log-prob call takes minutes on a CPU
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if os.environ["WORLD_SIZE"] == "1":  # AReaL takes the GPU of the local rank
        os.environ["LOCAL_RANK"] = device.partition(":")[2] or "0"
    alone = "TORCHELASTIC_RUN_ID" not in os.environ
    if alone:  # no launcher: a port of its own, also for a child of such a process
        os.environ["MASTER_PORT"] = str(_free_port())
    _import_wandb()
    bypass_proxies([*LOCAL_HOSTS, *_own_addresses()])  # AReaL's processes speak HTTP with each other
    quiet()
    use_platform(device)
    if alone and not controller and os.environ["WORLD_SIZE"] == "1":
        stay_on_this_machine(meeting_place(run_directory))
    _resolve_names_in(run_directory / "areal" / "names")
    no_async_saver()
    draw_own_ports()


def _import_wandb() -> None:
    """AReaL imports it in any case, and that makes temporary directories, which a killed process would leave."""
    with suppress(ImportError), temporary_files_in(process_scratch()):
        importlib.import_module("wandb")


def use_platform(device: str) -> None:
    """AReaL takes any GPU that it finds: keep it on the CPU when that is where the model is."""
    if device == "cpu":
        from areal.infra import platforms

        platforms.current_platform._platform, platforms.current_platform._initialized = platforms.CpuPlatform(), True


def _own_addresses() -> list[str]:
    """What AReaL calls this machine; none where it has no network."""
    from areal.utils.network import gethostip

    try:
        return [gethostip()]
    except RuntimeError:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def quiet() -> None:
    """AReaL logs every micro-batch; what matters reaches the user as progress and errors."""
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    import areal.utils.logging as areal_logging
    from transformers.utils import logging as transformers_logging

    _keep_the_loggers(areal_logging)
    get_logger = areal_logging.getLogger
    for settings in areal_logging.log_config["loggers"].values():
        settings["level"] = logging.ERROR

    def get_quiet_logger(name: str | None = None, type_: Any = None, level: int = 0) -> logging.Logger:  # noqa: ARG001
        # AReaL gives every logger its first level back whenever it makes another one.
        logger: logging.Logger = get_logger(name, type_, logging.ERROR)
        return logger

    areal_logging.getLogger = get_quiet_logger
    hush()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def hush() -> None:
    """Only errors from the modules of AReaL that are imported already."""
    for name, module in list(sys.modules.items()):
        logger = getattr(module, "logger", None) if name.startswith("areal.") else None
        if isinstance(logger, logging.Logger):
            logger.setLevel(logging.ERROR)


def _keep_the_loggers(areal_logging: ModuleType) -> None:
    """AReaL's `getLogger` puts a new logging tree in place each time, and then no handler hears a new logger."""
    logging.Logger.root, logging.Logger.manager = _LOGGERS.root, _LOGGERS
    kept = {"RootLogger": lambda _level: _LOGGERS.root, "Manager": lambda _root: _LOGGERS}
    vars(areal_logging).update(kept)
    areal_logging.log_config["disable_existing_loggers"] = False


def _resolve_names_in(directory: Path) -> None:
    """AReaL's name service in the run's own directory: another run, or a restart, finds no stale entries."""
    from areal.api.cli_args import NameResolveConfig
    from areal.utils import name_resolve

    name_resolve.reconfigure(NameResolveConfig(type="nfs", nfs_record_root=str(directory)))


class _NoTracker:
    """Stands for a tracker's package; does nothing, whatever it is told to."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def no_trackers() -> None:
    """AReaL starts every tracker, be it disabled: it would take over the one run that a process has at wandb or
    trackio, which is `trainers.run.metrics`'s, and Ctrl-C (areal/utils/stats_logger.py)."""
    from areal.utils import stats_logger

    vars(stats_logger).update(dict.fromkeys(("wandb", "swanlab", "trackio"), _NoTracker()))


def no_async_saver() -> None:
    """The check for asynchronous saving imports an engine that needs triton, in every mode (areal/utils/saver.py)."""
    from areal.utils.saver import Saver

    Saver._should_use_async = lambda *_: False


def draw_own_ports() -> None:
    """AReaL draws the ports of workers from `random`, which its trainer seeds: runs of one seed that start at the same
    time on one machine would be dealt the same ports (areal/utils/network.py)."""
    from areal.utils import network

    vars(network)["random"] = SystemRandom()
