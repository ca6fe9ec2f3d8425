"""AReaL's FSDP engine around a model that is already in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from areal.api import FinetuneSpec, ParallelStrategy
from areal.api.cli_args import MicroBatchSpec, PPOActorConfig
from areal.engine.fsdp_engine import FSDPPPOActor, FSDPTrainContext
from areal.infra.platforms import current_platform
from areal.utils.data import MicroBatchItem, MicroBatchList
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.optim.lr_scheduler import LambdaLR

from cua_agent.models.architecture import blocks_of, ends_of, replace_parameters, set_training
from cua_agent.models.mrope import mrope_positions
from cua_agent.models.packed_attention import packed_rows, takes_packed_rows
from cua_agent.models.policy import PolicyModel
from trainers.areal.tensors import TensorDict
from trainers.areal.train.micro_batches import Images, images_ahead, note_places, numbered_images, text_positions
from trainers.areal.train.scoring_head import ScoringHead, at_every_position
from trainers.config import OptimConfig
from trainers.distributed.sharded_tensors import clip_gradients, read_into, sharded_like, whole
from trainers.distributed.torch_process_group import init_default_group
from trainers.grpo.learner import warmup_factor
from trainers.grpo.master_weights import MasterWeights
from trainers.grpo.prefetch import prefetched

PACKED_SAFELY = ("sdpa", "eager")
"""Attention that reads sequence boundaries from positions; flash attention takes AReaL's cu_seqlens."""


class FSDPPolicyActor(FSDPPPOActor):  # type: ignore[misc]
    """`FSDPPPOActor` that trains `policy.model` itself: a plain model or a `PeftModel`, whoever loaded it.

    Several processes shard the model in place; what is trained becomes float32, and is computed with in the dtype that
    it was loaded in. A single process has nothing to share: its model stays as it is, with float32 `masters` beside it,
    as the legacy learner has them (FSDP would copy every weight for every pass).

    Its log-probs are those of sampling: at the rollouts' temperature, over the tokens that may be sampled; 0 where
    `predicts` of the batch (see `rows_to_tensors`) is not set. Packed sequences do not see each other.
    """

    def __init__(
        self, config: PPOActorConfig, policy: PolicyModel, optim: OptimConfig, *, entropy_gradient: bool = False
    ) -> None:
        super().__init__(config=config)
        self.policy = policy
        self._modules = list(policy.model.modules())
        self._entropy_gradient = entropy_gradient
        self._warmup_steps = optim.warmup_steps * optim.updates_per_batch
        self._images: Generator[Images | None, None, None] = prefetched([], policy.device)
        self._loaded_in = {name: parameter.dtype for name, parameter in policy.trainable_parameters()}

    def initialize(self, addr: str | None, ft_spec: FinetuneSpec, *_: Any, **__: Any) -> None:
        """AReaL's, for a model that is there already and a precision that AReaL cannot be told: its engine computes
        every parameter in `config.dtype`, adapters in float32 included."""
        assert addr is None
        if self.initialized:
            return  # AReaL's trainer asks again
        self._create_device_model()
        if self.world_mesh["dp_sp"].size() > 1:
            for _name, parameter in self.policy.trainable_parameters():
                parameter.data = parameter.data.float()
            self._shard()
        self._read_weights()
        self.masters = MasterWeights(self.policy)
        self._create_optimizer(ft_spec)
        self._initialized = True

    def _shard(self) -> None:
        """Blocks, vision tower, embedding and head are gathered when their turn comes; where the last two are one, they
        stay for the whole pass."""
        base = self.policy.base_model
        mesh, precision = self.world_mesh["dp_sp"], self._precision()
        for module in [*blocks_of(base), *ends_of(base), self.model]:
            fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=True)

    def _read_weights(self) -> None:
        """Put weights that are still on disk into their shards, of which each process reads its own, or where there are
        none into the model."""
        if (unread := self.policy.unread) is None:
            return
        module: Any = self.model
        if not isinstance(module, FSDPModule):
            replace_parameters(module, self._in_memory)  # `_apply` would untie what is tied
            module.to(self.device)
        module._apply(self._in_memory)
        own = {name.replace(".base_layer", ""): p for name, p in self.policy.base_model.named_parameters()}
        read_into(own, unread.files)
        if unread.keep_reference and not self.policy.has_adapter:
            trained = self.policy.trainable_parameters()
            self.policy.reference_weights = {
                name: p.detach().to(self._loaded_in[name], copy=True) for name, p in trained
            }
        self.policy.unread = None

    def _in_memory(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=self.device) if tensor.is_meta else tensor

    def _precision(self) -> MixedPrecisionPolicy:
        """Forward and backward pass in the dtype that the trained parameters were loaded in; their gradients are
        reduced and summed in float32."""
        [computed_in] = set(self._loaded_in.values())
        return MixedPrecisionPolicy(
            param_dtype=None if computed_in == torch.float32 else computed_in,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # AReaL's, which rounds the vision tower's rotary positions to bfloat16
        )

    def create_process_group(self, parallel_strategy: ParallelStrategy | None = None) -> None:
        if not dist.is_initialized():  # AReaL's would be NCCL alone, and its statistics are on the CPU
            init_default_group()
            self.own_global_group = True
        super().create_process_group(parallel_strategy)

    def _create_device_model(self) -> None:
        current_platform.set_device(int(os.environ["LOCAL_RANK"]))
        self.device = self.policy.device
        self.tokenizer, self.processor = self.policy.tokenizer, None
        self.model = self.policy.model
        base = self.policy.base_model
        self._head = ScoringHead(
            base.lm_head,
            self.policy.special,
            self.config.temperature,
            entropy_gradient=self._entropy_gradient,
        )
        asked = base if self.policy.has_adapter else base.model  # what AReaL finds at `model.model`
        asked.compute_3d_position_ids = partial(position_ids, self.policy)

    def _create_optimizer(self, ft_spec: FinetuneSpec) -> None:
        super()._create_optimizer(ft_spec)
        self.optimizer.param_groups.clear()  # AReaL's has all parameters of the model
        self.optimizer.add_param_group({"params": list(self.masters.parameters.values())})
        kept, self.policy.reference_weights = self.policy.reference_weights or {}, None
        parameters = dict(self.policy.trainable_parameters())
        self._reference_shards = {name: sharded_like(weight, parameters[name]) for name, weight in kept.items()}
        warmup = self._warmup_steps
        self.lr_scheduler = LambdaLR(self.optimizer, lambda update: warmup_factor(update, warmup))

    def train(self, mode: bool = True) -> FSDPPolicyActor:
        """Of the whole model."""
        set_training(self._modules, mode)
        return self

    def _prepare_mb_list(self, input_: dict[str, Any]) -> MicroBatchList:
        """AReaL's micro-batches; a row longer than their budget goes alone, as on every backend."""
        spec = self.config.mb_spec
        longest = int(input_["attention_mask"].sum(-1).max())
        numbered, pixels = numbered_images(input_)
        self.config.mb_spec = MicroBatchSpec.new(spec, max_tokens_per_mb=max(spec.max_tokens_per_mb, longest))
        try:
            batch = super()._prepare_mb_list(numbered)
        finally:
            self.config.mb_spec = spec
        note_places(batch)
        self._images = images_ahead(batch, pixels, self.device)
        return batch

    def _prepare_mb_inputs(self, mb_item: MicroBatchItem) -> tuple[dict[str, Any], FSDPTrainContext]:
        inputs, context = super()._prepare_mb_inputs(mb_item)
        lengths = inputs.pop("lengths")
        inputs |= self._head.ask(inputs["input_ids"], inputs.pop("predicts_at"))
        if self.config.attn_impl not in PACKED_SAFELY:
            return self._with_images(inputs), context
        visual, packed = self.policy.reads_images, takes_packed_rows(self.policy.base_model)
        positions = inputs["position_ids"].long() if visual else text_positions(lengths).to(self.device)
        if packed:
            inputs |= packed_rows(lengths, self.device)
        else:
            inputs["attention_mask"] = None  # AReaL's says that there is nothing to mask, also between sequences
        if visual and not packed:
            positions = torch.cat([text_positions(lengths).to(self.device)[None], positions])
        inputs["position_ids"] = positions
        return self._with_images(inputs), context

    def forward_backward_batch(self, *args: Any, **kwargs: Any) -> None:
        """AReaL's; nothing of the images is kept beyond it."""
        with closing(self._images):
            super().forward_backward_batch(*args, **kwargs)

    def _with_images(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the model is given: `inputs`, which live as long as the batch, and their images."""
        images = next(self._images)
        if images is None:
            return inputs
        pixels = self.policy.pixel_values(images.pixels, images.grids)
        return {**inputs, "pixel_values": pixels, "image_grid_thw": images.grids}

    def _compute_logprobs_and_loss(
        self,
        logits: Tensor,
        ctx: FSDPTrainContext,
        loss_fn: Callable[..., Tensor],
        loss_weight_fn: Callable[[dict[str, Any]], Tensor],
        total_loss_weight: Tensor,
        loss_multiplier: float = 1.0,
    ) -> Tensor:
        """AReaL's, of the scores that come in place of `logits`."""
        if not len(ctx.mb_input["trained_at"]):
            return logits.sum() * 0.0  # other processes wait for this one's backward pass
        weight = loss_weight_fn(ctx.mb_input)
        logprobs, entropy = self._without_padding(logits, ctx)
        loss = loss_fn(logprobs, entropy, ctx.mb_input)
        self._loss_is_finite *= loss.detach().isfinite()
        return loss * (weight / total_loss_weight * loss_multiplier)

    def train_batch(self, input_: Any, loss_fn: Any, loss_weight_fn: Any) -> dict[str, float]:
        """AReaL's optimiser step; one whose loss or gradient is not finite changes nothing."""
        self._loss_is_finite = torch.ones((), device=self.device)
        stats: dict[str, float] = super().train_batch(input_, loss_fn, loss_weight_fn)
        return stats

    def optimizer_step(self) -> dict[str, float]:
        """Instead of AReaL's, which looks at the gradient only (that of a loss that is not finite may be) and asks the
        GPU for the norm of every tensor of it."""
        dist.all_reduce(self._loss_is_finite, op=dist.ReduceOp.MIN, group=self.dp_group)
        norm = clip_gradients(self.masters.parameters.values(), self.optimizer_config.gradient_clipping, self.dp_group)
        grad_norm = float(norm.where(self._loss_is_finite.bool(), math.nan))
        if successful := math.isfinite(grad_norm):
            self.optimizer.step()
            self.masters.publish()
        else:
            self.optimizer_zero_grad()
        lr = float(self.lr_scheduler.get_last_lr()[0])
        return {"update_successful": float(successful), "grad_norm": grad_norm, "lr": lr}

    def _compute_forward_result(self, logits: Tensor, ctx: FSDPTrainContext) -> Tensor:
        return self._without_padding(logits, ctx)[0]

    @staticmethod
    def _without_padding(scores: Tensor, ctx: FSDPTrainContext) -> tuple[Tensor, Tensor]:
        logprobs, entropy = at_every_position(scores, ctx.model_inputs)
        end = len(logprobs) - ctx.pad_length
        return logprobs[:end], entropy[:end]

    def trained_weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, whole, float32, on every rank."""
        return {name: whole(parameter) for name, parameter in self.masters.parameters.items()}

    def served_weights(self) -> dict[str, Tensor]:
        """The same, rounded to what the model was loaded in."""
        return {name: weight.to(self._loaded_in[name]) for name, weight in self.trained_weights().items()}

    def reference_logprobs(self, data: list[TensorDict]) -> list[Tensor]:
        """Log-probs float32 [B, L] of every entry under the frozen reference policy, where they are predicted: by the
        model itself, without its adapter or with the shards that it was loaded with. Collective."""
        with self._reference():
            logprobs: list[Tensor] = self.compute_logp(data)
        return [scores.to(group["input_ids"].device) for scores, group in zip(logprobs, data, strict=True)]

    @contextmanager
    def _reference(self) -> Iterator[None]:
        if self.policy.has_adapter:
            adapter = self.policy.trainable_parameters()
            with self.policy.reference():
                # peft freezes the adapter, and in its first forward pass FSDP settles the dtype of gradients for good.
                for _name, parameter in adapter:
                    parameter.requires_grad_(True)
                yield
            return
        trained = {name: parameter.detach().clone() for name, parameter in self.policy.trainable_parameters()}
        self._overwrite(self._reference_shards)
        try:
            yield
        finally:
            self._overwrite(trained)

    @torch.no_grad()
    def _overwrite(self, shards: Mapping[str, Tensor]) -> None:
        """Copied, not exchanged: FSDP holds on to the parameters' memory."""
        for name, parameter in self.policy.trainable_parameters():
            parameter.copy_(shards[name])

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the trained parameters by name, whole, float32 on the CPU."""
        return {
            name: whole(parameter.grad).cpu().clone()
            for name, parameter in self.masters.parameters.items()
            if parameter.grad is not None
        }


def position_ids(
    policy: PolicyModel,
    *,
    attention_mask: Tensor,
    mm_token_type_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """M-RoPE positions int64 [3, B, L] of padded rows, 0 on padding; also for rows, or batches, without images.

    `attention_mask`, `mm_token_type_ids` [B, L]; `image_grid_thw` int64 [n, 3] (patches), images of all rows in order.
    Raises `ValueError` when a row's placeholders do not match its images.
    """
    merge = policy.image_processor.merge_size
    grids = [] if image_grid_thw is None else [(h // merge, w // merge) for _, h, w in image_grid_thw.tolist()]
    out = torch.zeros(3, *attention_mask.shape, dtype=torch.int64)
    for row, length in enumerate(attention_mask.sum(-1).tolist()):
        is_image = mm_token_type_ids[row, :length].bool().cpu().numpy()
        own: list[tuple[int, int]] = []
        while grids and sum(h * w for h, w in own) < is_image.sum():
            own.append(grids.pop(0))
        if (features := sum(h * w for h, w in own)) != is_image.sum():
            raise ValueError(f"row {row}: {is_image.sum()} image placeholders, but its images give {features}")
        out[:, row, :length] = torch.from_numpy(mrope_positions(is_image, own))
    return out.to(attention_mask.device)
