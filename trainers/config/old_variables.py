"""What the environment variables of the old synchronous trainer (Unsloth, vLLM, GBox) are called today."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

_MODULE_NAME = re.compile(r"\w+")
_LANGUAGE_MODEL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Variable:
    """A variable that is a key today.

    `default` is what the old trainer took where the variable was unset (None: nothing, and so the key's own default
    holds). `convert` turns the text into the key's value; without it the key's type decides how the text is read.
    A `secret` is never written down: its key refers to the environment.
    """

    name: str
    key: str
    default: str | None = None
    convert: Callable[[str], object] | None = None
    secret: bool = False


def modules_pattern(text: str) -> str:
    """`lora.target_modules` of a list of module names, written `["q_proj", "v_proj"]` or `q_proj,v_proj`.

    Raises `ValueError` saying what is allowed.
    """
    allowed = 'allowed: module names, written q_proj,v_proj or ["q_proj", "v_proj"], or all-linear'
    try:
        names = json.loads(text) if text.startswith("[") else re.split(r"[\s,]+", text.strip(" ,"))
    except json.JSONDecodeError:
        raise ValueError(f"not a list; {allowed}") from None
    if names == ["all-linear"]:
        names = list(_LANGUAGE_MODEL_LINEARS)
    if not names or not all(isinstance(name, str) and _MODULE_NAME.fullmatch(name) for name in names):
        raise ValueError(f"not a list of module names; {allowed}")
    return rf".*\.layers\..*\.({'|'.join(names)})"


PRESETS = {"backend": "legacy", "env": "gbox", "loader": "unsloth", "inference": "vllm"}
"""What the old trainer was made of: group and preset."""

VARIABLES = (
    Variable("MODEL_NAME", "model.path", "unsloth/Qwen3-VL-32B-Instruct"),
    Variable("MAX_SEQ_LENGTH", "model.max_length", "16384"),
    Variable("LOAD_IN_4BIT", "loader.load_in_4bit", "true"),
    Variable("USE_LORA", "lora.enabled", "true"),
    Variable("LORA_R", "lora.r", "16"),
    Variable("LORA_ALPHA", "lora.alpha", "32"),
    Variable("LORA_DROPOUT", "lora.dropout", "0.0"),
    Variable("LORA_TARGET_MODULES", "lora.target_modules", None, modules_pattern),
    Variable("LEARNING_RATE", "optim.learning_rate", "1e-5"),
    Variable("WARMUP_STEPS", "optim.warmup_steps", "10"),
    Variable("MAX_GRAD_NORM", "optim.max_grad_norm", "1.0"),
    Variable("BETA", "loss.kl_coefficient", "0.01"),
    Variable("CLIP_EPSILON", "loss.clip_epsilon", "0.2"),
    Variable("MIN_GROUP_STD", "advantage.min_group_std", "0.05"),
    Variable("BATCH_SIZE", "rollout.groups_per_step", "4"),
    Variable("NUM_ROLLOUTS", "rollout.group_size", "4"),
    Variable("MAX_TURNS", "rollout.max_turns", "15"),
    Variable("CUA_MAX_TURNS", "rollout.max_turns"),
    Variable("CUA_CONTEXT_WINDOW", "rollout.last_k", "5"),
    Variable("ROLLOUT_CONCURRENCY", "rollout.concurrency", "4"),
    Variable("MAX_TOKENS", "rollout.max_new_tokens", "2048"),
    Variable("TEMPERATURE", "rollout.temperature", "0.7"),
    Variable("MAX_STEPS", "max_steps", "200"),
    Variable("SEED", "seed", "42"),
    Variable("OUTPUT_DIR", "output_dir", "outputs/grpo_cua"),
    Variable("EVAL_STEPS", "eval.every_steps", "10"),
    Variable("TARGET_ACCURACY", "eval.target_success", "0.80"),
    Variable("PATIENCE", "eval.patience", "5"),
    Variable("SAVE_STEPS", "checkpoint.every_steps", "10"),
    Variable("SAVE_TOTAL_LIMIT", "checkpoint.keep", "5"),
    Variable("ENABLE_WANDB", "logging.wandb", "true"),
    Variable("WANDB_PROJECT", "logging.project", "cua-grpo"),
)

FIXED: dict[str, tuple[object, str]] = {
    "model.dtype": ("bfloat16", "Unsloth's choice"),
    "model.grounding": ("target", "the model named elements"),
    "model.prompt": ("full", "the tool schema was spelled out"),
    "loader.device": ("cuda", "it needed a GPU"),
    "loader.gradient_checkpointing": (True, "Unsloth's default"),
    "rollout.context": ("last_k", "it showed the newest turns only"),
    "optim.betas": ([0.9, 0.999], "torch's default"),
    "optim.weight_decay": (0.01, "torch's default"),
    "eval.episodes": (20, "20 evaluation tasks, once each"),
}
"""What the old trainer did without a variable: key, value and a word on where it comes from."""

REMARKS = {
    "BETA": "the old trainer's KL term was always 0; this one computes it, so that BETA counts",
    "WARMUP_STEPS": "the old trainer read it but did not warm up; this one does",
    "ROLLOUT_CONCURRENCY": "the old trainer played one episode after the other; this one plays as many at a time",
}
"""Variables that did less than their name said and now do what it says."""

OBSOLETE = {
    "GRADIENT_ACCUMULATION_STEPS": "a batch is split by optim.micro_batch_tokens, and its gradient does not depend on "
    "the split",
    "TOP_P": "sampling is from the whole distribution: the loss compares probabilities under it",
    "LORA_NAME": "adapters are named after their policy version",
    "LORA_UPDATE_STEPS": "every update is served at once",
    "ENABLE_DYNAMIC_LORA": "every update is served at once",
    "VLM_PROVIDER": "episodes are sampled by the model in training; inference= says how",
    "OPENROUTER_API_KEY": "episodes are sampled by the model in training",
    "OPENROUTER_API_BASE": "episodes are sampled by the model in training",
    "MODEL_HUB": "give a model of another hub as a directory: MODEL_NAME=<directory>",
    "MODELSCOPE_CACHE": "give a model of another hub as a directory: MODEL_NAME=<directory>",
    "VERBOSE": "progress is always shown; python -m trainers.watch shows every episode",
    "ENABLE_DETAILED_LOGGING": "python -m trainers.watch shows every episode",
    "ENABLE_TRACING": "timings of every step are in metrics.jsonl",
    "UPTRACE_DSN": "timings of every step are in metrics.jsonl",
    "OTEL_SERVICE_NAME": "timings of every step are in metrics.jsonl",
    "OTEL_SERVICE_VERSION": "timings of every step are in metrics.jsonl",
    "DEPLOYMENT_ENVIRONMENT": "timings of every step are in metrics.jsonl",
    **dict.fromkeys(
        ("GPU_DEVICES", "TENSOR_PARALLEL_SIZE", "GPU_MEMORY_UTILIZATION", "MAX_MODEL_LEN", "TRUST_REMOTE_CODE"),
        "an option of the vLLM server, not of the trainer",
    ),
    **dict.fromkeys(
        ("BASE_MODEL", "HOST", "PORT", "VLLM_IMAGE", "CONTAINER_NAME", "IMAGE_NAME", "HF_CACHE_DIR"),
        "an option of the old start scripts",
    ),
    "TRAIN_GPU_DEVICES": "set CUDA_VISIBLE_DEVICES in the environment",
}
"""Variables without a key, and why."""

STAYS = {
    **dict.fromkeys(("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_MODE", "WANDB_DIR"), "wandb"),
    **dict.fromkeys(("HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE"), "huggingface_hub"),
    **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"), "CUDA"),
    **dict.fromkeys(("PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS"), "torch"),
    "TOKENIZERS_PARALLELISM": "tokenizers",
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"), "every HTTP client"),
}
"""Variables that a library reads itself, and which."""
