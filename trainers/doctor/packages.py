"""Installed packages against those that this library was tested with."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from cua_agent.installation import ROOT, hint
from trainers.doctor.context import Context
from trainers.doctor.finding import Finding, error, ok, warning, worst

DISTRIBUTION = "cua-grpo"
TESTED = ROOT / "requirements" / "cpu.txt"
_SHOWN = ("torch", "transformers", "peft", "areal")


def versions(context: Context) -> Finding:
    """Every package that this run uses: an error outside of the range that is known to work, a warning where another
    version was tested."""
    wanted = list(requirements_of(extras_for(context)))
    tested = tested_versions(TESTED)
    problems = [problem for wish in wanted if (problem := _compare(wish, tested)) is not None]
    seen = ", ".join(f"{name} {found}" for name in _SHOWN if (found := installed(name)) is not None)
    return worst([*problems, ok(f"Python {platform.python_version()}, {seen}; {len(wanted)} packages as tested")])


def extras_for(context: Context) -> set[str]:
    """The extras of the package that the configuration needs."""
    config = context.config
    needed = {
        "areal": config.backend == "areal",
        "unsloth": config.loader.name == "unsloth",
        "smollm2": config.model.path == "smollm2",
        **{
            world: world in config.env.names
            for world in ("miniwob", "gbox", "gymnasium", "openenv", "android", "browsergym")
        },
    }
    return {extra for extra, is_needed in needed.items() if is_needed}


def requirements_of(extras: Iterable[str]) -> Iterator[Requirement]:
    """What the installed distribution requires, with `extras`; nothing where it is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        requirement = Requirement(line)
        names = ("", *extras)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": name}) for name in names):
            yield requirement


def tested_versions(file: Path) -> dict[str, str]:
    """Versions by canonical name from a list of `name==version`; empty where there is no such file."""
    if not file.is_file():
        return {}
    pins = (line.split("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {_canonical(name): version for name, version in pins}


def installed(name: str) -> str | None:
    """The version that is installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _compare(wish: Requirement, tested: dict[str, str]) -> Finding | None:
    found, pin = installed(wish.name), tested.get(_canonical(wish.name))
    install = f"pip install '{wish.name}{f'=={pin}' if pin else wish.specifier}'"
    remedy = hint(checkout=f"make setup, or {install}" if pin else install, installed=install)
    if found is None:
        return error(f"{wish.name} is not installed", remedy)
    if not wish.specifier.contains(found, prereleases=True):
        return error(f"{wish.name} {found} is installed, {wish.specifier} is needed", remedy)
    if pin is not None and Version(found).public != Version(pin).public:
        return warning(f"{wish.name} {found} is installed, {pin} was tested", remedy)
    return None


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def areal_configuration(context: Context) -> Finding:
    """Whether AReaL takes the configuration in its own terms."""
    config = context.config
    if config.backend != "areal":
        return ok("backend=legacy uses nothing of AReaL")
    if importlib.util.find_spec("areal") is None:
        from trainers.areal.process import EXTRA

        return error("areal is not installed", EXTRA)
    from trainers.areal.process import quiet

    quiet()
    from trainers.areal.config.translation import trainer_config

    theirs = trainer_config(config, Path("areal"))
    rollout = theirs.rollout
    return ok(
        f"phase {config.phase}: {rollout.consumer_batch_size} groups a batch, {rollout.max_concurrent_rollouts} in "
        f"flight, staleness {rollout.max_head_offpolicyness}; its YAML: python -m trainers.areal.export"
    )
