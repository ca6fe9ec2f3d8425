"""Checkpoints: one directory format for every backend, complete or refused.

    adapter_model.safetensors, adapter_config.json      LoRA, as PEFT writes them
    or model.safetensors, config.json                   full weights, as transformers writes them; what is trained in
                                                        float32, whatever it is computed and served in
    tokenizer and image processor files                 so that `load_policy(directory)` works
    optimizer.pt                                        state by parameter *name*, and the scheduler's
    rng.pt                                              python, numpy and torch generators
    trainer_state.json                                  `TrainerState`
    successes.safetensors                               those that may be replayed, if there are any
    base.json                                           name and fingerprint of the model that training began with
    manifest.json                                       sha256 of every other file; written last

A directory is written beside its final place, flushed to disk and renamed, so that an interrupted write leaves nothing
that could be mistaken for a checkpoint. Nothing is unpickled: tensors load with `weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cua_agent.models.lora import ADAPTER_WEIGHTS, active_spec, saved_spec
from cua_agent.models.policy import PolicyModel
from cua_agent.models.saving import save_description
from cua_agent.models.weight_files import WeightFiles
from trainers.distributed.sharded_tensors import read_into, sharded_like, whole
from trainers.protocol import Files, Snapshot, TrainerState
from trainers.run.checkpoint_files import BASE, STATE, CheckpointError, read_state, verify_checkpoint, write_checkpoint
from trainers.run.compatibility import adapter_differences, saved_base
from trainers.run.old_checkpoint import is_old, read_old_state
from trainers.run.tensor_copies import copied, fits_in_memory, size_of


@dataclass(frozen=True)
class Optimisation:
    """An optimiser, its schedule, and the trained parameters by name.

    Where parameters are sharded, all processes that hold shards save and load together, and the one that `writes`
    leaves files behind.
    """

    optimizer: Optimizer
    scheduler: LambdaLR
    parameters: Mapping[str, nn.Parameter]
    writes: bool = True


def save_checkpoint(path: Path, *, policy: PolicyModel, optimisation: Optimisation, state: TrainerState) -> None:
    """Write the checkpoint directory `path`, atomically; a checkpoint already there is replaced."""
    take_snapshot(policy, optimisation, state).write(path)


def take_snapshot(policy: PolicyModel, optimisation: Optimisation, state: TrainerState) -> Snapshot:
    """What a checkpoint of the present moment holds: a copy in memory where there is room for one. Collective where
    parameters are sharded."""
    optimizer_state = _named_optimizer_state(optimisation)
    weights = whole_weights(policy, keep=optimisation.writes)
    if not optimisation.writes:
        return Snapshot(lambda *_: None, detached=True)
    tensors = {"weights": weights, "optimizer": optimizer_state, "scheduler": optimisation.scheduler.state_dict()}
    size = size_of(tensors)
    detached = fits_in_memory(size)
    tensors = copied(tensors) if detached else tensors
    rng = _rng_state()

    def fill(directory: Path, files: Files) -> None:
        save_weights(directory, policy, tensors["weights"])
        torch.save({name: tensors[name] for name in ("optimizer", "scheduler")}, directory / "optimizer.pt")
        torch.save(rng, directory / "rng.pt")
        if policy.base_fingerprint is not None:
            base = {"name": policy.base_name, "fingerprint": policy.base_fingerprint}
            (directory / BASE).write_text(json.dumps(base, indent=1), encoding="utf-8")
        (directory / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        for name, content in files.items():
            (directory / name).write_bytes(content())

    return Snapshot(lambda path, files: write_checkpoint(path, partial(fill, files=files)), detached, size)


def load_checkpoint(path: Path, *, policy: PolicyModel, optimisation: Optimisation) -> TrainerState:
    """Restore weights, the optimiser's moments, the place in the schedule and random generators in place; returns the
    rest. Learning rate, momenta, weight decay and warm-up stay those that `optimisation` was made with.

    Raises `CheckpointError`, before anything is changed, when the checkpoint is torn, tampered with, or of another
    kind of policy.
    """
    path = Path(path)
    if is_old(path):
        state = read_old_state(path)
        load_weights(path, policy)
        return state
    verify_checkpoint(path)
    state = read_state(path)
    _check_kind(path, policy)
    saved, rng = read_tensors(path / "optimizer.pt"), read_tensors(path / "rng.pt")
    optimizer_state = _positional_optimizer_state(path, saved["optimizer"], optimisation)
    load_weights(path, policy)
    optimisation.optimizer.load_state_dict(optimizer_state)
    _go_on_with(optimisation.scheduler, saved["scheduler"]["last_epoch"])
    _set_rng_state(rng)
    return state


def read_tensors(file: Path) -> dict[str, Any]:
    """What a file of a checkpoint holds: tensors, numbers, names. Raises `CheckpointError`, one line."""
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {file.parent}: {file.name} holds more than tensors, or is torn") from error
    return content


def _go_on_with(scheduler: LambdaLR, updates: int) -> None:
    """Put the schedule behind its first `updates`; its rates and their shape stay its own."""
    scheduler.last_epoch, scheduler._step_count = updates, updates + 1
    scheduler._last_lr = [
        rate * factor(updates) for rate, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def _exported(policy: PolicyModel) -> dict[str, Tensor]:
    """What an export holds, by its names: the adapter's parameters, or all of the model's. Embeddings are not part of
    an adapter; asking peft to find out would ask the hub for the base."""
    model: Any = policy.model
    if not policy.has_adapter:
        return dict(model.state_dict(keep_vars=True))
    parameters = dict(model.named_parameters())
    adapter: dict[str, Tensor] = get_peft_model_state_dict(model, parameters, save_embedding_layers=False)
    return adapter


def whole_weights(policy: PolicyModel, *, keep: bool = True) -> dict[str, Tensor]:
    """What is trained (the adapter, or all weights) on the CPU, gathered tensor by tensor where it is sharded.

    Collective then; a process that does not `keep` them gets none.
    """
    gathered: dict[int, Tensor] = {}  # tied weights are one tensor
    weights: dict[str, Tensor] = {}
    for name, tensor in _exported(policy).items():
        if id(tensor) not in gathered:
            complete = whole(tensor)
            gathered[id(tensor)] = complete.cpu() if keep else torch.empty(0)
        weights[name] = gathered[id(tensor)]
    return weights if keep else {}


def save_weights(directory: Path, policy: PolicyModel, weights: Mapping[str, Tensor] | None = None) -> None:
    """Export what is trained, loadable with `load_policy(directory)`; `weights` are `whole_weights(policy)`."""
    model: Any = policy.model
    weights = whole_weights(policy) if weights is None else weights
    if policy.has_adapter:
        adapter = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(adapter, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    else:
        model.save_pretrained(str(directory), state_dict=dict(weights))
    save_description(directory, policy)
    if not policy.has_adapter:
        _name_dtype(directory / "config.json", next(iter(weights.values())).dtype)


def _name_dtype(config: Path, dtype: torch.dtype) -> None:
    """Let a model's description name the dtype of its saved weights, whatever it is computed in."""
    about = json.loads(config.read_text(encoding="utf-8"))
    about["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def try_saving(directory: Path, policy: PolicyModel) -> None:
    """Write once into `directory`, and delete again, everything of a checkpoint that can be refused and costs little:
    all but weights and optimiser. Raises `UnsupportedModel` or `OSError`, before a step is trained in vain."""
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".trial-", dir=directory) as trial:
        save_description(Path(trial), policy)


def load_weights(path: Path, policy: PolicyModel) -> None:
    """Load exported weights into `policy`, in place. Raises `CheckpointError` when they do not fit it."""
    _check_kind(path, policy)
    if not policy.has_adapter:
        read_into(_exported(policy), WeightFiles(str(path), policy.model))
        return
    saved = load_file(path / ADAPTER_WEIGHTS)
    with torch.no_grad():
        for name, tensor in _exported(policy).items():
            tensor.copy_(sharded_like(saved[name], tensor))


def _check_kind(path: Path, policy: PolicyModel) -> None:
    has_adapter = (path / ADAPTER_WEIGHTS).exists()
    if has_adapter != policy.has_adapter:
        saved, wanted = ("a LoRA adapter", "full weights") if has_adapter else ("full weights", "a LoRA adapter")
        raise CheckpointError(f"checkpoint {path} holds {saved}, the run trains {wanted}: change lora.enabled")
    if has_adapter:
        own = {name: list(tensor.shape) for name, tensor in _exported(policy).items()}
        with safe_open(path / ADAPTER_WEIGHTS, framework="pt") as file:
            saved_shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if own != saved_shapes:
            raise CheckpointError(
                f"checkpoint {path} holds an adapter of another shape: compare lora.r, lora.target_modules, model.path"
            )
        for key, present, trained in adapter_differences(active_spec(policy.model), saved_spec(path)):
            raise CheckpointError(f"checkpoint {path} was trained with {key}={trained}, the run has {key}={present}")
    base = saved_base(path)
    if base is not None and policy.base_fingerprint not in (None, base[1]):
        raise CheckpointError(
            f"checkpoint {path} was trained on {base[0]} (fingerprint {base[1]}), the run is on {policy.base_name} "
            f"(fingerprint {policy.base_fingerprint})"
        )


def _named_optimizer_state(optimisation: Optimisation) -> dict[str, Any]:
    """The optimiser's state by parameter name: independent of the order in which a backend lists parameters, and of
    frozen ones among them."""
    names = {id(parameter): name for name, parameter in optimisation.parameters.items()}
    state = {
        names[id(parameter)]: {key: _whole(value) for key, value in values.items()}
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


def _whole(value: Any) -> Any:
    return whole(value) if isinstance(value, Tensor) else value


def _positional_optimizer_state(path: Path, named: dict[str, Any], optimisation: Optimisation) -> dict[str, Any]:
    """What `optimizer.load_state_dict` wants: the saved moments, in groups with the settings of the present optimiser.

    Raises `CheckpointError` when the trained parameters differ.
    """
    names = {id(parameter): name for name, parameter in optimisation.parameters.items()}
    groups_of_rank = optimisation.optimizer.param_groups
    own = [{names[id(p)] for p in group["params"] if id(p) in names} for group in groups_of_rank]
    if own != [set(group["params"]) for group in named["param_groups"]]:
        raise CheckpointError(f"checkpoint {path} trained other parameters than this run: compare lora and model")
    positions = {names.get(id(p)): i for i, p in enumerate(p for group in groups_of_rank for p in group["params"])}
    state = {
        positions[name]: {
            key: sharded_like(value, optimisation.parameters[name]) if _is_per_element(value) else value
            for key, value in values.items()
        }
        for name, values in named["state"].items()
    }
    groups, first = [], 0
    for present in groups_of_rank:
        groups.append({**present, "params": list(range(first, first + len(present["params"])))})
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
