"""Which adapters vLLM can serve; asked before anything is loaded.

What it cannot is listed in vllm/lora/peft_helper.py (0.32) and refused there with the first load; an adapter whose
ranks or scales differ between modules is refused here as well, because older servers apply it wrongly and say nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cua_agent.inference.vllm.errors import ServerMismatch
from cua_agent.inference.vllm.plan import RANKS
from cua_agent.models.lora import ADAPTER_WEIGHTS, matching_modules
from cua_agent.models.sources import ModelSource

_NEVER = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "use_qalora",
    "trainable_token_indices",
    "target_parameters",
)
"""Options of an adapter that must be unset."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of `init_lora_weights` that leave the base model as it is."""
_NOT_LINEAR = frozenset({"embed_tokens", "lm_head", "patch_embed", "pos_embed"})
_WAY_OUT = "allowed: a plain LoRA adapter of linear layers, or inference=local"
_SHOWN = 60


def check_servable(source: ModelSource, rank: int | None, target_modules: str) -> None:
    """Raise `ServerMismatch` when vLLM cannot serve what is trained on `source`: the adapter saved there, or else a
    fresh one of `rank` (None: full weights) for the modules whose names match `target_modules`. One line that names
    the option."""
    if source.adapter is not None:
        config = json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        problem = _option_problem(config) or _rank_problem("r", config.get("r", 0))
        problem = problem or _module_problem("target_modules", _trained_modules(source.adapter))
        where = f"model.path={source.adapter}: its adapter has "
    elif rank is not None:
        problem = _rank_problem("lora.r", rank)
        problem = problem or _module_problem(
            f"lora.target_modules={target_modules}", matching_modules(source.location, target_modules)
        )
        where = ""
    else:
        return
    if problem is not None:
        raise ServerMismatch(f"{where}{problem}, which vLLM cannot serve; {_WAY_OUT}")


def _option_problem(config: Mapping[str, Any]) -> str | None:
    """The first option of a saved adapter that vLLM does not know, and its value."""
    if config.get("peft_type") != "LORA":
        return f"peft_type={config.get('peft_type')}"
    if config.get("bias", "none") != "none":
        return f"bias={config['bias']}"
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        return f"init_lora_weights={start} (it changes the base model)"
    option = next((name for name in _NEVER if config.get(name)), None)
    return None if option is None else f"{option}={json.dumps(config[option])[:_SHOWN]}"


def _rank_problem(key: str, rank: int) -> str | None:
    return f"{key}={rank} (at most {RANKS[-1]})" if rank > RANKS[-1] else None


def _module_problem(key: str, modules: Iterable[str]) -> str | None:
    module = next((name for name in modules if _NOT_LINEAR & set(name.split("."))), None)
    return None if module is None else f"{key} with {module}"


def _trained_modules(directory: Path) -> list[str]:
    """The modules that the adapter saved in `directory` changes."""
    from safetensors import safe_open

    if not (directory / ADAPTER_WEIGHTS).is_file():
        return []  # loading it says so
    with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as tensors:
        names = [name for name in tensors.keys() if ".lora_" in name]  # noqa: SIM118 (no mapping)
    return [name.partition(".lora_")[0].removeprefix("base_model.model.") for name in names]
