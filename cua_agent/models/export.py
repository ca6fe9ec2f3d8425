"""``python -m cua_agent.models.export checkpoint=... out=...``: a trained policy as a plain model directory.

An adapter is merged into its base model, so that what comes out needs neither peft nor this library: transformers,
vLLM and `model=<directory>` load it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from cua_agent.models.errors import ModelError

DONE, BAD_OPTIONS = 0, 2


class ExportError(ValueError):
    """Options or a checkpoint that cannot be exported; the message is one line."""


@pydantic_dataclass(frozen=True)
class Options:
    """What can be set on the command line as key=value."""

    checkpoint: Path = Field(description="a checkpoint, an adapter or a run directory (its best checkpoint)")
    out: Path = Field(description="directory to write; must not exist")
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float32)$", description="of the weights: bfloat16, float32")


@dataclass(frozen=True)
class Exported:
    """What was written: `merged` tells whether there was an adapter to merge."""

    directory: Path
    merged: bool
    parameters: int


def export(checkpoint: Path, out: Path, dtype: str = "bfloat16") -> Exported:
    """Write the policy of `checkpoint` to the new directory `out`. Raises `ExportError` or `ModelError`.

    Merging is done in float32, and rounded once.
    """
    import torch

    from cua_agent.models.loaders import load_policy

    if out.exists():
        raise ExportError(f"out={out}: exists already; allowed: a new directory")
    policy = load_policy(str(find_weights(checkpoint)), dtype="float32")
    merged = policy.has_adapter
    model: Any = policy.model
    if merged:
        model = model.merge_and_unload()
    model.to(getattr(torch, dtype)).save_pretrained(str(out))
    policy.tokenizer.save_pretrained(str(out))
    if policy.reads_images:
        policy.image_processor.save_pretrained(str(out))
    return Exported(out, merged, sum(parameter.numel() for parameter in model.parameters()))


def find_weights(checkpoint: Path) -> Path:
    """The directory of weights that `checkpoint` means. Raises `ExportError` when there is none."""
    directory = checkpoint.expanduser()
    for candidate in (directory, directory / "checkpoints" / "best", directory / "checkpoints" / "last"):
        if any((candidate / name).is_file() for name in ("adapter_config.json", "config.json")):
            return candidate
    raise ExportError(f"checkpoint={checkpoint}: no weights there; allowed: a checkpoint, an adapter, a run directory")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 done, 2 what cannot be exported."""
    keys = {name: info.description for name, info in Options.__pydantic_fields__.items()}  # type: ignore[attr-defined]
    parser = argparse.ArgumentParser(prog="python -m cua_agent.models.export", description=__doc__)
    help_text = "; ".join(f"{name}: {text}" for name, text in keys.items())
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=help_text)
    pairs = dict(override.partition("=")[::2] for override in parser.parse_args(arguments).overrides)
    try:
        if unknown := set(pairs) - set(keys):
            raise ExportError(f"{min(unknown)}: no such key; allowed: {', '.join(keys)}")
        options = Options(**pairs)  # type: ignore[arg-type]
        done = export(options.checkpoint, options.out, options.dtype)
    except ValidationError as errors:
        error = errors.errors()[0]
        print(f"error: {error['loc'][0]}: {error['msg']}; keys: {', '.join(keys)}", file=sys.stderr)
        return BAD_OPTIONS
    except (ExportError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_OPTIONS
    how = "adapter merged into its base" if done.merged else "all weights"
    print(f"{done.directory}: {done.parameters:,} parameters, {how}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
