"""How much arithmetic an update asks for, to be held against what a card can do."""

from __future__ import annotations

from typing import Any

from cua_agent.models.policy import PolicyModel
from trainers.protocol import Batch

PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "A100": 312, "L40S": 362}
"""Dense bfloat16 products without sparsity, from NVIDIA's data sheets, by a part of the card's name."""


class UpdateOperations:
    """Floating-point operations (2 a multiply-add) of an update of a policy:

        language model, T tokens:        a N T        N its weights without embedding and head
        attention: 3 * sum over rows     2 L^2 q      a layer, q the width of its queries; causal, so half of each
                                                      square; forward 2 products, backward 4
        head, n trained tokens:          a V d n      V words, d the width
        vision, P patches:               b N_v P
        its attention: b/2 * sum over images  4 S^2 d_v   a layer, of S patches

    a is 4 while an adapter is trained (forward, and the gradient of what goes in), else 6 (and of the weights); b is 2
    where the tower is frozen, else 6. What gradient checkpointing computes again is no work that the update asks for.
    """

    def __init__(self, policy: PolicyModel) -> None:
        named = list(policy.model.named_parameters())
        base: Any = policy.base_model
        words = base.get_input_embeddings().weight
        head = base.get_output_embeddings().weight
        ends = {id(words): words.numel(), id(head): head.numel()}
        tower = [parameter for name, parameter in named if ".visual." in name]
        self._policy = policy
        self._vision = sum(parameter.numel() for parameter in tower)
        adapter = sum(parameter.numel() for name, parameter in named if "lora_" in name)
        self._language = sum(p.numel() for _, p in named) - self._vision - sum(ends.values()) - adapter
        self._head = head.numel()
        self._passes = 4.0 if policy.has_adapter else 6.0
        self._vision_passes = 6.0 if any(parameter.requires_grad for parameter in tower) else 2.0
        self._text = base.config.get_text_config()
        self._eyes = getattr(base.config, "vision_config", None) if policy.reads_images else None

    def __call__(self, batch: Batch) -> float:
        """Of one update on `batch`."""
        rows, text = batch.trajectories, self._text
        tokens, square = sum(map(len, rows)), sum(len(row) ** 2 for row in rows)
        trained = sum(int(row.loss_mask.sum()) for row in rows)
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        queries = text.num_attention_heads * head_width
        attention = 3.0 * 2.0 * square * queries * text.num_hidden_layers
        products = self._passes * (self._language * tokens + self._head * trained)
        return float(products + attention + self._seen(batch))

    def _seen(self, batch: Batch) -> float:
        """The share of the vision tower."""
        if self._eyes is None:
            return 0.0
        merged = self._policy.image_processor.merge_size**2
        patches = [
            merged * self._policy.image_tokens(*image.shape[:2]) for row in batch.trajectories for image in row.images
        ]
        width = getattr(self._eyes, "embed_dim", None) or self._eyes.hidden_size
        attention = 4.0 * sum(count**2 for count in patches) * width * self._eyes.depth
        return float(self._vision_passes * (self._vision * sum(patches) + attention / 2))


def peak_flops(card: str) -> float | None:
    """Operations a second that the card of this name does at most; None for one that the table does not have."""
    found = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in card), None)
    return None if found is None else found * 1e12
