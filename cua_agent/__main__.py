"""``python -m cua_agent task=... env=...``: play one episode and write it down as an HTML page."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from cua_agent.envs.guard import TIMEOUT_S
from cua_agent.envs.registry import BUILT_IN, OPTIONS, make_world, open_world, options_of
from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED, INTERRUPTED
from cua_agent.options import ConfigError, fields_of
from cua_agent.secrets import masked_output
from cua_agent.tasks import CUATask, seed_for

if TYPE_CHECKING:
    from cua_agent.agent import AgentConfig, Episode
    from cua_agent.envs.world import World

logger = logging.getLogger("cua_agent")


class OptionError(ValueError):
    """Options that cannot be run; the message is one line naming key, value and what is allowed."""


@pydantic_dataclass(frozen=True)
class Options:
    """Everything that can be set on the command line as key=value."""

    task: str = Field("", description="id of the task (see --list)")
    env: str = Field("pocket", description="pocket, miniwob, gbox, a package's world, or package.module:factory")
    model: str = Field("tiny", description="tiny, smollm2, a local directory, or a hub id")
    seed: int = Field(seed_for("eval", 0), ge=0, description="start state of the world, and sampling")
    out: str = Field("outputs/trace.html", min_length=1, description="file to write")
    grounding: Literal["target", "coordinates"] | None = Field(
        None, description="how places are given; default: coordinates, for tiny and without eyes target"
    )
    coordinates: Literal["relative", "absolute"] | None = Field(
        None, description="how positions are written: 0 to 1000, or pixels; default: by model family"
    )
    thinking: bool | None = Field(None, description="let the model think, or not; default: by its chat template")
    observation: Literal["screenshot", "text"] | None = Field(
        None, description="what of a screen is shown; default: text for a model without eyes"
    )
    prompt: Literal["brief", "full"] | None = Field(
        None, description="tools in the prompt; default: brief for tiny, else full"
    )
    context: Literal["full", "last_k", "folded"] = Field(
        "full", description="screenshots shown: all, the last_k newest, or up to last_k, dropped together"
    )
    last_k: int = Field(3, ge=1, description="most screenshots shown with context=last_k or folded")
    max_turns: int = Field(30, ge=1, description="upper bound over the task's own")
    max_new_tokens: int | None = Field(None, ge=1, description="of one turn; default: 48 for tiny, else 512")
    max_length: int | None = Field(None, ge=1, description="tokens of an episode; default: 2048 for tiny, else 32768")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="of sampling")
    greedy: bool = Field(False, description="take the most likely token instead of sampling")
    device: str = Field("cpu", description="torch device of the model")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the model's weights")
    args: dict[str, Any] = Field(default_factory=dict, description="options of the world, each as a key of its own")

    @property
    def world(self) -> World:
        """The world. Raises `ConfigError`."""
        return make_world(self.env, self.args)


_DEFAULTS: dict[str, FieldInfo] = {
    key: field
    for key, field in Options.__pydantic_fields__.items()  # type: ignore[attr-defined]
    if key != "args"
}


def parse_options(overrides: Sequence[str]) -> Options:
    """Options from key=value overrides; a key that is none of these is one of the world's options, which may also be
    written as in training, `env.args.<name>=value`. Raises `OptionError`."""
    pairs = [override.partition("=") for override in overrides]
    values: dict[str, Any] = {key: value for key, equals, value in pairs if equals and key in _DEFAULTS}
    try:
        kinds = dict(fields_of(options_of(values.get("env", "pocket"))))
    except ConfigError as error:
        raise OptionError(str(error)) from error
    args: dict[str, Any] = {}
    for key, equals, value in pairs:
        name = key.removeprefix(f"{OPTIONS}.")
        if equals and key not in _DEFAULTS and (name in kinds or name != key):
            _put(args, name, value if kinds.get(name) is str else _plain(value))
        elif not equals or key not in _DEFAULTS:
            raise OptionError(
                f"{f'{key}{equals}{value}'[:80]!r} is not key=value with one of the keys {', '.join(_DEFAULTS)}, "
                f"{', '.join(kinds)}"
            )
    if "purpose" in kinds:
        args.setdefault("purpose", "episode")
    try:
        options = Options(**values, args=args)
        _ = options.world
    except ValidationError as errors:
        first = errors.errors()[0]
        raise OptionError(f"{first['loc'][0]}={str(first['input'])[:80]}: {first['msg']}") from None
    except ConfigError as error:
        raise OptionError(str(error)) from error
    return options


def _option_names(world: str) -> list[str]:
    return [name for name, kind in fields_of(options_of(world)) if not is_dataclass(kind)]


def _put(args: dict[str, Any], name: str, value: Any) -> None:
    *sections, leaf = name.split(".")
    for section in sections:
        args = args.setdefault(section, {})
    args[leaf] = value


def _plain(text: str) -> Any:
    """What `text` is as JSON (a number, a truth value, null, a list); any other text as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def all_tasks(options: Options) -> dict[str, CUATask]:
    """Every task of the world by id, held-out ones included."""
    world = options.world
    tasks = [*world.training_tasks(), *world.eval_tasks("seeds"), *world.eval_tasks("templates")]
    return {task.id: task for task in tasks}


def find_task(options: Options) -> CUATask:
    """The task called `options.task`. Raises `OptionError` naming the nearest ones."""
    tasks, task_id, env = all_tasks(options), options.task, options.env
    if task_id in tasks:
        return tasks[task_id]
    near = difflib.get_close_matches(task_id, tasks, n=3, cutoff=0.3) or list(tasks)[:3]
    raise OptionError(
        f"task={task_id!r} is not a task of env={env}; for example {', '.join(near)}; "
        f"all of them: python -m cua_agent --list env={env}"
    )


def agent_config(options: Options, *, reads_images: bool = True) -> AgentConfig:
    """How the agent plays; what is not set depends on the model: the built-in one or not, with eyes or not."""
    from cua_agent.agent import AgentConfig

    tiny = options.model == "tiny"
    return AgentConfig(
        observation=options.observation or ("screenshot" if reads_images else "text"),
        grounding=options.grounding or ("target" if tiny or not reads_images else "coordinates"),
        prompt=options.prompt or ("brief" if tiny else "full"),
        context=options.context,
        last_k=options.last_k,
        max_turns=options.max_turns,
        max_new_tokens=options.max_new_tokens or (48 if tiny else 512),
        temperature=options.temperature,
        greedy=options.greedy,
        max_length=options.max_length or (2048 if tiny else 32768),
        keep_screenshots=True,
    )


async def play(options: Options, task: CUATask) -> Episode:
    """Load the model, open the world and play one episode. Raises `OptionError`."""
    from cua_agent.agent import ContextTooShort, NoDescription, StandaloneGBoxCUAAgent
    from cua_agent.envs.base import WorldUnavailable
    from cua_agent.inference.local import LocalEngine
    from cua_agent.models.families import check_coordinates
    from cua_agent.models.loaders import load_policy
    from cua_agent.models.sources import find_model

    try:
        source = find_model(options.model)
        config = agent_config(options, reads_images=source.reads_images)
        check_coordinates(
            options.model,
            source.family,
            grounding=config.grounding,
            observation=config.observation,
            coordinates=options.coordinates,
        )
        policy = load_policy(
            options.model,
            dtype=options.dtype,
            device=options.device,
            coordinates=options.coordinates,
            thinking=options.thinking,
        )
    except ValueError as error:
        raise OptionError(str(error).splitlines()[0]) from error
    engine = LocalEngine(policy, max_batch=1)
    try:
        async with open_world(options.world, TIMEOUT_S) as new_environment:
            environment = await new_environment()
            try:
                agent = StandaloneGBoxCUAAgent(policy, engine, environment, config)
                return await agent.play(task, options.seed, group_id="trace", episode_id="trace")
            finally:
                await environment.close()
    except (ContextTooShort, NoDescription, WorldUnavailable) as error:
        raise OptionError(str(error)) from error
    finally:
        await engine.close()


def _check_world(options: Options) -> None:
    """Before anything heavy is loaded. Raises `OptionError`."""
    from cua_agent.envs.base import WorldUnavailable

    try:
        options.world.check()
    except WorldUnavailable as error:
        raise OptionError(str(error)) from error


def _check_writable(out: Path) -> None:
    """Before the episode is played, so that it is not lost. Raises `OptionError`."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
        if out.exists():
            with out.open("a"):
                pass
    except OSError as error:
        raise OptionError(f"out={out}: cannot be written ({error.strerror}); name a file") from None


def run(options: Options) -> int:
    """Play the episode that `options` describe, write its page and say where it is; returns the exit status."""
    from cua_agent.trace import write_trace

    task = find_task(options)
    _check_world(options)
    out = Path(options.out)
    _check_writable(out)
    episode = asyncio.run(play(options, task))
    write_trace(out, episode, {"env": options.env, "model": options.model})
    print(f"{episode.outcome}, reward {episode.reward:g}, {len(episode.turns)} turns: {episode.goal}")
    print(f"trace: {out}")
    return FAILED if episode.failure else DONE


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 failed, 2 bad configuration, 130 interrupted."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options = parse_options(parsed.overrides)
        if parsed.list:
            for task in all_tasks(options).values():
                print(f"{task.id:40} {task.description}")
            return DONE
        return run(options)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        logger.exception("the episode could not be played")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    keys = "\n".join(f"  {f'{key}={_shown(f.default)}':46} {f.description}" for key, f in _DEFAULTS.items())
    options = "\n".join(f"  env={name:12} {', '.join(f'{key}=' for key in _option_names(name))}" for name in BUILT_IN)
    parser = argparse.ArgumentParser(
        prog="python -m cua_agent",
        description="Play one episode and write it down as an HTML page.",
        epilog=f"keys and their defaults:\n{keys}\n\nand the options of the world:\n{options}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example task=<id> env=miniwob")
    parser.add_argument("--list", action="store_true", help="list the tasks of env and stop")
    return parser


def _shown(default: object) -> str:
    return "" if default in (None, "") else str(default).lower() if isinstance(default, bool) else str(default)


if __name__ == "__main__":
    sys.exit(main())
