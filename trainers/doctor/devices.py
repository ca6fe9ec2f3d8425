"""The devices that the policy is trained on, their driver, and memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cua_agent.models.memory import GIB, ModelShape, ServingMemory, TrainingMemory
from trainers.config import TrainConfig
from trainers.config.cluster import workers_of
from trainers.doctor.context import Context
from trainers.doctor.finding import Finding, error, not_checked, ok, warning

if TYPE_CHECKING:
    from collections.abc import Mapping


def devices(context: Context) -> Finding:
    """Whether `loader.device` is there, and whether another one would be faster."""
    import torch

    device = context.config.loader.device
    if device.startswith("cuda"):
        return _cuda(device)
    if device == "mps":
        there = torch.backends.mps.is_available()
        return ok("mps") if there else error("loader.device=mps: there is none", "set loader.device=cpu")
    cores = len(os.sched_getaffinity(0))
    said = ok(f"cpu with {cores} cores, loader.device=cpu")
    if torch.cuda.is_available():
        return warning(
            f"loader.device=cpu on a machine with {torch.cuda.device_count()} GPUs", "set loader.device=cuda"
        )
    threads = context.config.threads
    if threads > cores:
        return warning(f"threads={threads} on {cores} cores: they wait for each other", f"set threads={cores}")
    return said


def _cuda(device: str) -> Finding:
    import torch

    if torch.version.cuda is None:
        return error(
            f"loader.device={device}, and torch {torch.__version__} is built without CUDA",
            "install torch's CUDA build (docs/gpu.md), or set loader.device=cpu",
        )
    if not torch.cuda.is_available():
        return error(
            f"loader.device={device}: no CUDA device is seen (CUDA {torch.version.cuda} of torch)",
            "see what nvidia-smi and CUDA_VISIBLE_DEVICES say, or set loader.device=cpu",
        )
    index, count = int(device.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        return error(f"loader.device={device}: there are {count} GPUs", f"set loader.device=cuda:{count - 1} or below")
    return ok(f"{count} x {torch.cuda.get_device_name(index)}, driver {_driver()}, CUDA {torch.version.cuda} of torch")


def _driver() -> str:
    """The driver's version; `unknown` where NVML cannot tell."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # no library, no device, a version that does not match: NVML's errors are many
        return "unknown"


def device_memory(context: Context) -> Finding:
    """Weights, gradients, optimiser, activations and logits of an update, and the cache of local sampling, against the
    memory that is free."""
    from trainers.run.memory import training_settings

    config = context.config
    if config.loader.load_in_4bit:
        return not_checked("the estimate does not know loader.load_in_4bit=true")
    shape = model_shape(config)
    cards = training_processes(config)
    from cua_agent.models.memory import training_memory

    needed = training_memory(shape, training_settings(config, cards))
    cache = cache_bytes(shape, config)
    free = _free_on(config)
    if free is None:
        return not_checked(
            f"a card needs {_gib(needed.total + cache)}; {config.loader.device} does not tell its memory"
        )
    return judge_memory(needed, cache, free, on_cpu=config.loader.device == "cpu", cards=cards)


def judge_memory(needed: TrainingMemory, cache: int, free: int, *, on_cpu: bool, cards: int) -> Finding:
    """`needed` for an update and up to `cache` bytes for keys and values against `free` bytes. On a CPU the process
    itself is in the same memory, and counted apart."""
    training = needed.allocated if on_cpu else needed.total
    each = f" on each of {cards}" if cards > 1 else ""
    parts = (
        f"weights {_gib(needed.weights + needed.gathered)}, trained {_gib(needed.trained + needed.reference)}, "
        f"activations {_gib(max(needed.activations, needed.logits))}, sampling {_gib(needed.sampling_copy + cache)}"
    )
    said = f"about {_gib(training + cache)} needed{each} ({parts}), {_gib(free)} free"
    remedy = (
        "a smaller model, lora.enabled=true, loader.gradient_checkpointing=true, with it "
        "loader.offload_activations=true, a shorter model.max_length, or more cards (docs/gpu.md)"
    )
    if training > free:
        return error(said, remedy)
    if training + cache > free:
        return warning(f"{said}: not all of inference.max_batch fits at full length", "a smaller inference.max_batch")
    return ok(said)


def host_memory(context: Context) -> Finding:
    """Main memory for the processes themselves, which import AReaL and hold what is loaded or saved."""
    import psutil

    from cua_agent.models.memory import training_memory
    from trainers.run.memory import training_settings

    config = context.config
    needed = training_memory(model_shape(config), training_settings(config, training_processes(config))).host
    processes = sum(workers_of(config)) if config.scheduler.name == "local" else 1
    free = psutil.virtual_memory().available
    said = f"{_gib(free)} free, a process takes up to {_gib(needed)}" + (f", {processes} run" if processes > 1 else "")
    if processes * needed > free:
        remedy = "fewer processes (n_gpus), or a machine with more memory"
        return warning(said, "loader.offload_activations=false, " * config.loader.offload_activations + remedy)
    return ok(said)


def model_shape(config: TrainConfig) -> ModelShape:
    """The shape of the model that is trained; no weights are loaded. Raises `ModelError`."""
    from transformers import AutoConfig

    from cua_agent.models.memory import shape_of
    from cua_agent.models.sources import find_model

    about: Mapping[str, Any] = AutoConfig.from_pretrained(find_model(config.model.path).location).to_dict()
    return shape_of(about, config.lora.target_modules)


def training_processes(config: TrainConfig) -> int:
    """How many processes train: a scheduler's workers, those that a launcher started, or this one."""
    if config.scheduler.name != "none":
        return workers_of(config).training
    return int(os.environ.get("WORLD_SIZE", "1"))


def cache_bytes(shape: ModelShape, config: TrainConfig) -> int:
    """Keys and values of `inference.max_batch` conversations at their full length, when they are sampled in process."""
    from cua_agent.models.memory import serving_memory

    if config.inference.name != "local":
        return 0
    serving: ServingMemory = serving_memory(shape, dtype=config.model.dtype, lora_rank=None)
    return serving.kv_token * config.model.max_length * min(config.inference.max_batch, config.rollout.concurrency)


def _free_on(config: TrainConfig) -> int | None:
    import psutil
    import torch

    device = config.loader.device
    if device == "cpu":
        return int(psutil.virtual_memory().available)
    if not device.startswith("cuda"):
        return None
    cards = range(torch.cuda.device_count())
    free = [torch.cuda.mem_get_info(card)[0] for card in cards]
    if config.loader.device_map is not None:
        return sum(free)
    return min(free) if training_processes(config) > 1 else free[int(device.partition(":")[2] or 0)]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
