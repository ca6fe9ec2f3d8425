"""Values that do not go together are refused before anything is loaded, in one line with the way out."""

import pytest

from tests.refusals import refusal
from trainers.config.compose import load_config

UNSLOTH = ["loader=unsloth", "loader.device=cuda", "loader.load_in_4bit=true"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loader.load_in_4bit=true", "loader.device=cuda"], ["loader.load_in_4bit=true", "set loader=unsloth"]),
        (
            ["loader=unsloth", "model=smollm2", "loader.load_in_4bit=true"],
            ["loader.device=cpu", "set loader.device=cuda or loader.load_in_4bit=false"],
        ),
        (
            [*UNSLOTH, "backend=areal", "phase=2"],
            ["phase=2", "set phase=1, backend=legacy or loader.load_in_4bit=false"],
        ),
        (
            ["loader.device_map=auto", "backend=areal", "phase=2"],
            ["loader.device_map=auto", "set loader.device_map=null"],
        ),
        (["loader=unsloth", "loader.device=cuda", "lora.enabled=false"], ["lora.enabled=false", "loader=peft"]),
        (["loader=unsloth", "loader.device=mps"], ["loader.device=mps", "loader=peft"]),
        (["loader=unsloth"], ["loader.device=cpu", "reads no images", "model=smollm2"]),
        (
            ["loader.offload_activations=true"],
            ["loader.gradient_checkpointing=false", "set loader.gradient_checkpointing=true"],
        ),
        (
            [*UNSLOTH, "backend=legacy", "loader.gradient_checkpointing=true", "loader.offload_activations=true"],
            ["loader.offload_activations=true with loader.name=unsloth", "set loader=peft"],
        ),
        (
            ["loader.attn_implementation=flash_attention_2"],
            ["flash_attention_2", "inference.name=local", "loader.attn_implementation=sdpa"],
        ),
        (
            [*UNSLOTH, "backend=legacy", "inference=vllm", "lora.enabled=true", "inference.sync=merged"],
            ["inference.sync=merged", "set inference.sync=adapter or loader.load_in_4bit=false"],
        ),
        (["model=smollm2", "env=miniwob"], ["model.observation=text", "env.name=miniwob", "set env=pocket"]),
    ],
)
def test_refused_with_the_way_out(overrides: list[str], words: list[str]) -> None:
    message = refusal(*overrides)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "overrides",
    [
        [*UNSLOTH, "backend=legacy"],
        [*UNSLOTH, "backend=areal", "phase=1"],
        ["loader=unsloth", "loader.device=cuda", "backend=areal", "phase=2"],
        ["loader=unsloth", "model=smollm2"],
        ["loader.device_map=auto", "backend=legacy"],
        ["model.observation=text"],
        ["loader.gradient_checkpointing=true", "loader.offload_activations=true", "backend=areal", "phase=3"],
    ],
)
def test_what_works_is_allowed(overrides: list[str]) -> None:
    assert load_config(overrides)
