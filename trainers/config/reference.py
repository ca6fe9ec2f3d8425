"""The configuration's reference: what `train.py --help` and `docs/configuration.md` say about each key."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from cua_agent.envs.registry import BUILT_IN, all_options, options_of
from trainers.config import TrainConfig
from trainers.config.compose import choices, load_config
from trainers.config.presets import GROUPS
from trainers.config.saved import ARGS
from trainers.config.validation import leaves

COMMON_KEYS = (
    "max_steps",
    "max_minutes",
    "seed",
    "output_dir",
    "run_name",
    "resume",
    "rollout.group_size",
    "rollout.groups_per_step",
    "rollout.max_turns",
    "rollout.concurrency",
    "rollout.max_staleness",
    "rollout.temperature",
    "optim.learning_rate",
    "loss.kl_coefficient",
    "loss.clip_epsilon",
    "lora.enabled",
    "lora.r",
    "lora.alpha",
    "model.path",
    "env.args.latency.kind",
    "env.args.latency.mean_s",
    "env.tasks",
    "eval.every_steps",
    "eval.episodes",
    "eval.target_success",
    "checkpoint.every_steps",
    "checkpoint.every_minutes",
    "logging.wandb",
)
"""What users type most; the full list is in the docs."""

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_TYPE_NAMES = {bool: "true, false", int: "integer", float: "number", str: "text"}


@dataclass(frozen=True)
class Key:
    """One key: dotted name, allowed values and default in words, one line of help."""

    name: str
    allowed: str
    default: str
    help: str


@dataclass(frozen=True)
class Section:
    """A dataclass of the tree: dotted name ("" for the top level), what it is, its own keys."""

    name: str
    help: str
    keys: tuple[Key, ...]


def sections() -> list[Section]:
    """The sections of the configuration, depth first, top level first."""
    return list(_sections(TrainConfig, "", used_defaults()))


def world_sections() -> list[Section]:
    """The options of the built-in worlds, which are keys below `env.args`."""
    found = []
    for name in BUILT_IN:
        values = all_options(name, {})
        whole = {ARGS + key: value for key, value in values.items()}  # of options that are mappings themselves
        defaults = {key: value_text(value) for key, value in {**whole, **dict(leaves(values, ARGS))}.items()}
        sections = _sections(options_of(name), ARGS.rstrip("."), defaults)
        found += [replace(section, name=f"{section.name}` of `env={name}") for section in sections]
    return found


def used_defaults() -> dict[str, str]:
    """What each key is in a run that sets nothing, presets included; where backends differ, the default one's value and
    then the others'."""
    default, *others = sorted(choices("backend"), key=lambda name: name != TrainConfig().backend)
    values = {name: dict(leaves(asdict(load_config([f"backend={name}"])))) for name in (default, *others)}
    texts = {}
    for key, value in values[default].items():
        differing = [f"{name}: {value_text(values[name][key])}" for name in others if values[name][key] != value]
        texts[key] = ", ".join([value_text(value), *(differing if key != "backend" else [])])
    return texts


def _sections(kind: type, name: str, defaults: Mapping[str, str]) -> Iterator[Section]:
    infos: dict[str, FieldInfo] = kind.__pydantic_fields__  # type: ignore[attr-defined]
    prefix = f"{name}." if name else ""
    own = [
        Key(
            prefix + field,
            _describe(info.annotation, info.metadata),
            defaults.get(prefix + field, "{}"),
            info.description or "",
        )
        for field, info in infos.items()
        if not dataclasses.is_dataclass(info.annotation)
    ]
    yield Section(name, (kind.__doc__ or "").strip(), tuple(own))
    for field, info in infos.items():
        if isinstance(info.annotation, type) and dataclasses.is_dataclass(info.annotation):
            yield from _sections(info.annotation, prefix + field, defaults)


def help_text(command: str) -> str:
    """What `--help` prints; `command` is what training is called with."""
    keys = {key.name: key for section in (*world_sections(), *sections()) for key in section.keys}
    lines = [
        "Train a computer-use agent with multi-turn GRPO.",
        "",
        f"  {command} [key=value ...]",
        f"  {command} experiment=quick              a look in a minute or two",
        f"  {command} experiment=pocket seed=1      the simulated phone",
        f"  {command} env=miniwob max_steps=20      real web pages in Chromium",
        f"  {command} resume=outputs/<run>          go on where a run stopped",
        "",
        "Presets:",
        *map(_preset_line, GROUPS),
        "  model        also any directory or hub id: model=Qwen/Qwen3-VL-4B-Instruct",
        "",
        "Keys typed most (default in brackets; all of them: docs/configuration.md):",
        *(f"  {name:<27} {keys[name].help} [{keys[name].default}]" for name in COMMON_KEYS),
        "",
        "Options: --help",
        "  --config                    print the composed configuration and stop",
        "  --config-dir <directory>    presets of your own, as <directory>/experiment/mine.yaml",
        "  -m seed=1,2 max_steps=5,9   a run for every combination of values",
        "Exit status: 0 done, 2 bad configuration, 130 interrupted, 1 anything else",
    ]
    return "\n".join(lines)


def _preset_line(group: str) -> str:
    """The presets of a group, on as many lines as they need."""
    indent = " " * 15
    return textwrap.fill(" | ".join(choices(group)), 118, initial_indent=f"  {group:<12} ", subsequent_indent=indent)


def markdown() -> str:
    """The content of `docs/configuration.md` below its introduction."""
    parts = []
    for section in (*sections(), *world_sections()):
        title = f"`{section.name}`" if section.name else "Top level"
        rows = [
            f"| `{key.name}` | `{_cell(key.default)}` | {_cell(key.allowed)} | {_cell(key.help)} |"
            for key in section.keys
        ]
        parts.append(
            f"## {title}\n\n{section.help}\n\n| key | default | allowed | meaning |\n| --- | --- | --- | --- |\n"
            + "\n".join(rows)
            + "\n"
        )
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def value_text(default: object) -> str:
    """A default as it is typed on the command line."""
    if isinstance(default, str):
        return default
    if isinstance(default, list | tuple):
        return f"[{','.join(map(value_text, default))}]"
    if isinstance(default, dict):
        return f"{{{','.join(f'{key}:{value_text(value)}' for key, value in default.items())}}}"
    return json.dumps(default)


def _describe(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        fields = [item for item in arguments[1:] if isinstance(item, FieldInfo)]
        return _describe(arguments[0], [*metadata, *(bound for field in fields for bound in field.metadata)])
    if origin is dict:
        return "mapping"
    if origin is Literal:
        return ", ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _describe(part, metadata) for part in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_describe(arguments[0])}"
        return f"[{', '.join(_describe(part) for part in arguments)}]"
    return ", ".join([_TYPE_NAMES[annotation], *_constraints(metadata)])


def _constraints(metadata: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    for item in metadata:
        for name, sign in _BOUNDS.items():
            bound = getattr(item, name, None)
            if bound is not None:
                yield f"{sign} {bound}"
        pattern = getattr(item, "pattern", None)
        if pattern is not None:
            yield f"matching `{pattern}`"
