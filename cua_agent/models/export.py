"""``python -m cua_agent.models.export checkpoint=... out=...``: a trained policy as a plain model directory.

An adapter is merged into its base model, so that what comes out needs neither peft nor this library: transformers,
vLLM and `model=<directory>` load it. What was written is loaded again and must compute what the policy computes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from cua_agent.error_text import first_line
from cua_agent.models.errors import ModelError
from cua_agent.secrets import masked_output

if TYPE_CHECKING:
    from torch import Tensor

    from cua_agent.models.policy import PolicyModel

DONE, FAILED, BAD_OPTIONS = 0, 1, 2
TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit, between models that should be the same in float32."""


class ExportError(ValueError):
    """Options or a checkpoint that cannot be exported; the message is one line."""


class ExportDiffers(RuntimeError):  # noqa: N818 (a state of the world, not a fault of the program)
    """What would be left is another model than the policy; the message is one line."""


@pydantic_dataclass(frozen=True)
class Options:
    """What can be set on the command line as key=value."""

    checkpoint: Path = Field(description="a checkpoint, an adapter or a run directory (its best checkpoint)")
    out: Path = Field(description="directory to write; must not exist")
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float32)$", description="of the weights: bfloat16, float32")


@dataclass(frozen=True)
class Exported:
    """What was written, and from which weights (`source`): `merged` tells whether there was an adapter to merge,
    `rounding` by how much the largest change of a logit through rounding the weights to their dtype is, as a share of
    the largest logit."""

    directory: Path
    source: Path
    merged: bool
    parameters: int
    rounding: float


def export(checkpoint: Path, out: Path, dtype: str = "bfloat16") -> Exported:
    """Write the policy of `checkpoint` to the new directory `out`.

    Merging is done in float32, and rounded once. The logits of a prompt, with a screenshot in it where the model reads
    images, are compared at each step: merged against adapted, and what was read back against what was written. Raises
    `ExportError` or `ModelError` for what cannot be exported, `ExportDiffers` when a comparison fails; `out` then
    does not exist.
    """
    if out.exists():
        raise ExportError(f"out={out}: exists already; allowed: a new directory")
    weights = find_weights(checkpoint)
    _check_unquantised(checkpoint, weights)
    unchecked = out.with_name(f".{out.name}.new")
    shutil.rmtree(unchecked, ignore_errors=True)
    unchecked.mkdir(parents=True)
    try:
        done = _write(weights, unchecked, dtype)
        unchecked.rename(out)
    finally:
        shutil.rmtree(unchecked, ignore_errors=True)
    return replace(done, directory=out)


def _write(weights: Path, out: Path, dtype: str) -> Exported:
    """Write the policy in `weights` to `out`, and check it there."""
    from cua_agent.models.loaders import load_policy
    from cua_agent.models.saving import save_description

    policy = load_policy(str(weights), dtype="float32")
    trained, merged = _logits(policy), policy.has_adapter
    if merged:
        policy = _merge(policy)
        _compare("merging the adapter", _logits(policy), trained)
    save_description(out, policy)
    model: Any = policy.model
    _round(model, dtype)
    model.save_pretrained(str(out))
    _round(model, "float32")
    rounded, parameters = _logits(policy), sum(parameter.numel() for parameter in model.parameters())
    del policy, model  # one model in memory at a time
    _compare("reading back what was written", _logits(load_policy(str(out), dtype="float32")), rounded)
    return Exported(out, weights, merged, parameters, _difference(rounded, trained))


def _merge(policy: PolicyModel) -> PolicyModel:
    """`policy` with its adapter merged into its weights.

    Where embedding and output head are one weight, an adapter on either makes two of it.
    """
    import torch

    from cua_agent.models.lora import tied_embeddings_expected

    base = policy.base_model
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if head.weight is embedding.weight:
        inner = getattr(head, "base_layer", head)
        inner.weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
    with tied_embeddings_expected():
        model: Any = policy.model.merge_and_unload()  # type: ignore[operator]
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if torch.equal(head.weight, embedding.weight):
        if model.config.tie_word_embeddings:
            head.weight = embedding.weight
    else:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    return replace(policy, model=model)


def _round(model: Any, dtype: str) -> None:
    """Cast the weights, and not the buffers, which no file holds."""
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


def _logits(policy: PolicyModel) -> Tensor:
    """Logits [L, vocabulary] of a fixed prompt, with a screenshot in it where the policy reads images."""
    import torch

    ids, images = policy.encode("Settings: turn Wi-Fi on."), []
    if policy.reads_images:
        images = [np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)]
        ids = ids[:2] + [policy.special.image_token_id] * policy.image_tokens(64, 96) + ids[2:]
    tokens = torch.tensor([ids])
    positions = torch.from_numpy(policy.positions(ids, images))[:, None]
    with torch.no_grad():
        states = policy.hidden_states(
            tokens, torch.ones_like(tokens), positions, policy.pixels(images) if images else (None, None)
        )
        logits: Tensor = policy.base_model.lm_head(states)[0]
    return logits


def _compare(step: str, ours: Tensor, wanted: Tensor) -> None:
    difference = _difference(ours, wanted)
    if not difference <= TOLERANCE:  # nor NaN
        raise ExportDiffers(
            f"{step} changed the model: its logits differ by up to {difference:.1e} of the largest, allowed "
            f"{TOLERANCE:.0e}; nothing was written"
        )


def _difference(ours: Tensor, wanted: Tensor) -> float:
    """Largest difference of a logit, as a share of the largest one."""
    return float((ours - wanted).abs().max() / wanted.abs().max())


def _check_unquantised(checkpoint: Path, weights: Path) -> None:
    """Raise `ExportError` for weights that are quantised: merging would round what was trained away."""
    from cua_agent.models.sources import find_model

    source = find_model(str(weights))
    if source.quantisation is None:
        return
    what = f"the base model {source.name!r} has" if source.adapter else "it has"
    raise ExportError(
        f"checkpoint={checkpoint}: {what} {source.quantisation} weights, which are not exact enough to merge or "
        "convert; allowed: weights that are not quantised; vLLM serves adapter and quantised base side by side"
    )


def find_weights(checkpoint: Path) -> Path:
    """The directory of weights that `checkpoint` means, of a run directory its best. Raises `ExportError` when there
    is none; never takes other weights instead."""
    directory = checkpoint.expanduser()
    best = directory / "checkpoints" / "best"
    for candidate in (directory, best):
        if _has_weights(candidate):
            return candidate
    others = sorted(str(path) for path in (directory / "checkpoints").glob("*") if _has_weights(path))
    if others:
        raise ExportError(f"checkpoint={checkpoint}: no weights in {best}; allowed: {', '.join(others)}")
    raise ExportError(f"checkpoint={checkpoint}: no weights there; allowed: a checkpoint, an adapter, a run directory")


def _has_weights(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("adapter_config.json", "config.json"))


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 done, 1 failed or another model, 2 what cannot be exported."""
    from safetensors import SafetensorError

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
    except (ExportDiffers, OSError, SafetensorError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return FAILED
    print(f"taken: {done.source}")
    how = "adapter merged into its base" if done.merged else "all weights"
    print(
        f"{done.directory}: {done.parameters:,} parameters, {how}; read back, it computes what was trained "
        f"({options.dtype} changes logits by up to {100 * done.rounding:.1g} % of the largest)"
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
