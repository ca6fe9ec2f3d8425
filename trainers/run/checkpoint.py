"""Checkpoints: one directory format for every backend, complete or refused.

    adapter_model.safetensors, adapter_config.json      LoRA, as PEFT writes them
    or model.safetensors, config.json                   full weights, as transformers writes them
    tokenizer and image processor files                 so that `load_policy(directory)` works
    optimizer.pt                                        state by parameter *name*, and the scheduler's
    rng.pt                                              python, numpy and torch generators
    trainer_state.json                                  `TrainerState`
    manifest.json                                       sha256 of every other file; written last

A directory is written beside its final place, flushed to disk and renamed, so that an interrupted write leaves nothing
that could be mistaken for a checkpoint. Nothing is unpickled: tensors load with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cua_agent.models.lora import ADAPTER_WEIGHTS
from cua_agent.models.policy import PolicyModel
from trainers.protocol import TrainerState

MANIFEST = "manifest.json"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line naming it and the reason."""


@dataclass(frozen=True)
class Optimisation:
    """An optimiser, its schedule, and the trained parameters by name.

    Where parameters are sharded, `gather` makes a tensor whole and `scatter` shards one like a parameter; all processes
    that hold shards save together, and the one that `writes` leaves files behind.
    """

    optimizer: Optimizer
    scheduler: LRScheduler
    parameters: Mapping[str, nn.Parameter]
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
    scatter: Callable[[Tensor, nn.Parameter], Tensor] = lambda tensor, _: tensor
    writes: bool = True


def save_checkpoint(path: Path, *, policy: PolicyModel, optimisation: Optimisation, state: TrainerState) -> None:
    """Write the checkpoint directory `path`, atomically; a checkpoint already there is replaced."""
    optimizer_state = _named_optimizer_state(optimisation)
    if not optimisation.writes:
        return
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_weights(temporary, policy)
        torch.save(
            {"optimizer": optimizer_state, "scheduler": optimisation.scheduler.state_dict()},
            temporary / "optimizer.pt",
        )
        torch.save(_rng_state(), temporary / "rng.pt")
        (temporary / "trainer_state.json").write_text(json.dumps(asdict(state), indent=1))
        _seal(temporary)
        _move_into_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_checkpoint(path: Path, *, policy: PolicyModel, optimisation: Optimisation) -> TrainerState:
    """Restore weights, optimiser, scheduler and random generators in place; returns the rest.

    Raises `CheckpointError`, before anything is changed, when the checkpoint is torn, tampered with, or of another
    kind of policy.
    """
    path = Path(path)
    verify_checkpoint(path)
    state = read_state(path)
    _check_kind(path, policy)
    saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer_state = _positional_optimizer_state(path, saved["optimizer"], optimisation)
    load_weights(path, policy)
    optimisation.optimizer.load_state_dict(optimizer_state)
    optimisation.scheduler.load_state_dict(saved["scheduler"])
    _set_rng_state(torch.load(path / "rng.pt", map_location="cpu", weights_only=True))
    return state


def _adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors. Embeddings are not part of it; asking peft to find out would ask the hub for the base."""
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return weights


def save_weights(directory: Path, policy: PolicyModel) -> None:
    """Export what is trained (the adapter, or all weights), loadable with `load_policy(directory)`."""
    model: Any = policy.model
    if policy.has_adapter:
        adapter = {name: t.detach().cpu().contiguous() for name, t in _adapter_weights(model).items()}
        save_file(adapter, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        model.active_peft_config.save_pretrained(str(directory))
    else:
        model.save_pretrained(str(directory))
    policy.tokenizer.save_pretrained(str(directory))
    if policy.reads_images:
        policy.image_processor.save_pretrained(str(directory))


def load_weights(path: Path, policy: PolicyModel) -> None:
    """Load exported weights into `policy`, in place. Raises `CheckpointError` when they do not fit it."""
    _check_kind(path, policy)
    model: Any = policy.model
    if policy.has_adapter:
        set_peft_model_state_dict(model, load_file(path / ADAPTER_WEIGHTS))
    else:
        # Through transformers, whose files may name weights differently from the module.
        model.load_state_dict(type(model).from_pretrained(str(path), dtype=model.dtype).state_dict())


def _check_kind(path: Path, policy: PolicyModel) -> None:
    has_adapter = (path / ADAPTER_WEIGHTS).exists()
    if has_adapter != policy.has_adapter:
        saved, wanted = ("a LoRA adapter", "full weights") if has_adapter else ("full weights", "a LoRA adapter")
        raise CheckpointError(f"checkpoint {path} holds {saved}, the run trains {wanted}: change lora.enabled")
    if has_adapter:
        model: Any = policy.model
        own = {name: list(tensor.shape) for name, tensor in _adapter_weights(model).items()}
        with safe_open(path / ADAPTER_WEIGHTS, framework="pt") as file:
            saved_shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if own != saved_shapes:
            raise CheckpointError(
                f"checkpoint {path} holds an adapter of another shape: compare lora.r, lora.target_modules, model.path"
            )


def read_state(path: Path) -> TrainerState:
    """The checkpoint's `TrainerState`. Raises `CheckpointError`."""
    try:
        values = json.loads((path / "trainer_state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: trainer_state.json cannot be read: {error}") from error
    known = {field.name for field in fields(TrainerState)}
    if set(values) != known:
        raise CheckpointError(f"checkpoint {path}: trainer_state.json has other keys: {sorted(set(values) ^ known)}")
    return TrainerState(**values)


def verify_checkpoint(path: Path) -> None:
    """Compare every file with the manifest. Raises `CheckpointError`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = {str(name): str(digest) for name, digest in manifest["files"].items()}
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: no readable {MANIFEST} ({error})") from error
    if version != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {version}, this program reads {FORMAT}")
    for name, digest in files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"checkpoint {path} is incomplete: {name} is missing")
        if _sha256(path / name) != digest:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} differs from its checksum")


def latest_checkpoint(directory: Path) -> Path | None:
    """The intact checkpoint of the highest step in `directory`; broken ones are passed over."""
    for _, path in reversed(_by_step(directory)):
        try:
            verify_checkpoint(path)
        except CheckpointError:
            continue
        return path
    return None


def find_checkpoint(resume: str) -> Path:
    """The checkpoint that `resume` means: the directory itself, or the newest intact one of a run directory.

    Raises `CheckpointError` when there is none.
    """
    directory = Path(resume).expanduser()
    if (directory / MANIFEST).is_file():
        return directory
    newest = latest_checkpoint(directory / "checkpoints")
    if newest is None:
        raise CheckpointError(f"resume={resume!r} is neither a checkpoint nor a run directory with an intact one")
    return newest


def prune_checkpoints(directory: Path, *, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the one of `best_step`, which is never deleted."""
    checkpoints = _by_step(directory)
    for step, path in checkpoints[: max(len(checkpoints) - keep, 0)]:
        if step != best_step:
            shutil.rmtree(path)


def _by_step(directory: Path) -> list[tuple[int, Path]]:
    """Sealed checkpoints, oldest first. Found by content: one whose replacement was interrupted has a hidden name."""
    found = []
    for path in directory.glob("*/" + MANIFEST):
        try:
            found.append((read_state(path.parent).step, path.parent))
        except CheckpointError:
            continue
    return sorted(found, key=lambda item: (item[0], not item[1].name.startswith("."), item[1].name))


_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
"""How an optimiser computes, not what: each backend keeps its own choice."""


def _named_optimizer_state(optimisation: Optimisation) -> dict[str, Any]:
    """The optimiser's state by parameter name: independent of the order in which a backend lists parameters, and of
    frozen ones among them."""
    names = {id(parameter): name for name, parameter in optimisation.parameters.items()}
    state = {
        names[id(parameter)]: {key: _gathered(value, optimisation) for key, value in values.items()}
        for parameter, values in optimisation.optimizer.state.items()
    }
    groups = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "params": [names[id(p)] for p in group["params"] if id(p) in names],
        }
        for group in optimisation.optimizer.param_groups
    ]
    return {"state": state, "param_groups": groups}


def _gathered(value: Any, optimisation: Optimisation) -> Any:
    return optimisation.gather(value) if isinstance(value, Tensor) else value


def _positional_optimizer_state(path: Path, named: dict[str, Any], optimisation: Optimisation) -> dict[str, Any]:
    """What `optimizer.load_state_dict` wants. Raises `CheckpointError` when the trained parameters differ."""
    names = {id(parameter): name for name, parameter in optimisation.parameters.items()}
    groups_of_rank = optimisation.optimizer.param_groups
    own = [{names[id(p)] for p in group["params"] if id(p) in names} for group in groups_of_rank]
    if own != [set(group["params"]) for group in named["param_groups"]]:
        raise CheckpointError(f"checkpoint {path} trained other parameters than this run: compare lora and model")
    positions = {names.get(id(p)): i for i, p in enumerate(p for group in groups_of_rank for p in group["params"])}
    state = {
        positions[name]: {
            key: optimisation.scatter(value, optimisation.parameters[name]) if _is_per_element(value) else value
            for key, value in values.items()
        }
        for name, values in named["state"].items()
    }
    groups, first = [], 0
    for saved, present in zip(named["param_groups"], groups_of_rank, strict=True):
        kept = {key: present[key] for key in _IMPLEMENTATION if key in present}
        groups.append({**saved, **kept, "params": list(range(first, first + len(present["params"])))})
        first += len(present["params"])
    return {"state": state, "param_groups": groups}


def _is_per_element(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _rng_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(directory: Path) -> None:
    """Flush every file to disk, then write the manifest that makes the directory a checkpoint."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {path.relative_to(directory).as_posix(): _sha256(path) for path in paths}
    for name in files:
        _flush(directory / name)
    (directory / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    _flush(directory / MANIFEST)
    _flush(directory)


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename; a former `path` steps aside first, so that at every moment one complete checkpoint exists."""
    former = path.with_name(f".{path.name}.former")
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
        path.rename(former)
    temporary.rename(path)
    _flush(path.parent)
    shutil.rmtree(former, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
