"""The asynchronous backend: what AReaL is told besides what every backend is."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainers.config.validation import STRICT


@dataclass(frozen=True, config=STRICT)
class ArealConfig:
    """Keys of backend=areal."""

    max_failures: int = Field(default=8, ge=1, description="groups lost in a row before the run stops")
    loss: str = Field(
        default="grpo", description="phase 3: AReaL's grpo_loss_fn, or module:function with its arguments"
    )
    packed_tokens: int = Field(
        default=4096,
        ge=64,
        description="phases 2 and 3: token budget of one packed forward pass; a longer row goes alone",
    )
    worker_memory_gb: int = Field(default=4, ge=1, description="scheduler: main memory asked for each worker process")
