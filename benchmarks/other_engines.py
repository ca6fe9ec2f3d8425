"""What serves the conversations of `bench_engine.py` besides our own engine: transformers' `generate`, and vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from cua_agent.inference.base import InferenceEngine
from cua_agent.models.policy import PolicyModel
from cua_agent.models.sources import model_source

if TYPE_CHECKING:
    from bench_engine import Conversation


def with_generate(model: Any, policy: PolicyModel, conversations: Sequence[Conversation], new_tokens: int) -> int:
    """Play them with transformers' `generate`, turn by turn; how many tokens it sampled."""
    sampled = 0
    for turn in range(max(len(each.prompts) for each in conversations)):
        playing = [each for each in conversations if turn < len(each.prompts)]
        for conversation in playing:
            conversation.told(turn)
        for conversation, ids in zip(playing, sample_turn(model, policy, playing, new_tokens), strict=True):
            conversation.ids = conversation.ids + ids
            sampled += len(ids)
    return sampled


def sample_turn(
    model: Any, policy: PolicyModel, conversations: Sequence[Conversation], new_tokens: int
) -> list[list[int]]:
    """The tokens that `generate` samples for each, the one that ends the turn included."""
    longest = max(len(each.ids) for each in conversations)
    pad, stops = policy.special.pad_id, set(policy.special.stop_ids)
    padding = [longest - len(each.ids) for each in conversations]
    ids = torch.tensor([[pad] * missing + each.ids for missing, each in zip(padding, conversations, strict=True)])
    mask = torch.tensor([[0] * missing + [1] * (longest - missing) for missing in padding])
    pixels, grids = policy.pixels([image for each in conversations for image in each.images])
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=pixels,
        image_grid_thw=grids,
        mm_token_type_ids=(ids == policy.special.image_token_id).long(),
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        suppress_tokens=list(policy.special.banned),
        eos_token_id=list(policy.special.stop_ids),
        pad_token_id=pad,
    )
    rows = out[:, longest:].tolist()
    return [row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


def plain_model(path: str) -> Any:
    """The checkpoint as transformers loads it, without any of our changes."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(model_source(path), dtype=torch.float32)
    return model.eval()


def server_engine(url: str, policy: PolicyModel) -> InferenceEngine:
    """vLLM's, with the weights that it was started with."""
    from trainers.components import build_engine
    from trainers.config.compose import load_config

    return build_engine(load_config(["inference=vllm", f"inference.servers=[{url}]"]), policy)
