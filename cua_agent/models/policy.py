"""The policy: a model with its tokenizer, image processor and positions, in one object."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cua_agent.actions import Coordinates, Space
from cua_agent.models.mrope import mrope_positions
from cua_agent.models.pixels import coordinate_space, image_bytes, pixel_values, resized_shape
from cua_agent.models.vision_features import Features, in_place_of_tower

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cua_agent.models.weight_files import WeightFiles


NO_TOKEN = -1


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids with a meaning of their own; a model without eyes has no image token (`NO_TOKEN`).

    A turn ends with any of `stop_ids`: the end of turn, and what else the model was trained to stop with.
    `banned` ids are never sampled and get probability 0 in training as well: image and video placeholders, vision
    start and end, `<|im_start|>`, and rows of the embedding that belong to no token. `call_id` begins a tool call (None
    where that takes several tokens).
    """

    image_token_id: int
    end_of_turn_id: int
    stop_ids: tuple[int, ...]
    pad_id: int
    banned: tuple[int, ...] = field(repr=False)
    call_id: int | None = None
    _masks: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def is_banned(self, words: int, device: torch.device) -> Tensor:
        """bool [words] on `device`, set on the banned ids; made once, and not to be written to."""
        if (words, device) not in self._masks:
            mask = torch.zeros(words, dtype=torch.bool)
            mask[list(self.banned)] = True
            self._masks[words, device] = mask.to(device)
        return self._masks[words, device]


@dataclass(frozen=True)
class Unread:
    """Weights that are still on disk: the model's parameters are on the meta device until who shards it puts them onto
    `device`; `keep_reference` as `load_policy` was told."""

    files: WeightFiles
    device: torch.device
    keep_reference: bool


@dataclass
class PolicyModel:
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL model, or a language model without eyes (`image_processor` is None), possibly
    wrapped in a `PeftModel`, and what is needed to feed it.

    `reference_weights` are the frozen weights that `reference` swaps in (full-weight training only). `base_name` and
    `base_fingerprint` tell the model that training began with, without its adapter. `coordinates` is how the model
    writes positions (None: unknown), `reply_prefix` what stands in the prompt before each of its turns. `unread` are
    weights that are not in memory yet. With `frozen_vision` nothing trains the vision tower, here or where this is a
    copy of.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    special: SpecialTokens
    reference_weights: dict[str, Tensor] | None = field(default=None, repr=False)
    base_name: str = ""
    base_fingerprint: str | None = None
    coordinates: Coordinates | None = None
    reply_prefix: str = ""
    unread: Unread | None = field(default=None, repr=False)
    frozen_vision: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        if self.unread is not None:
            return self.unread.device
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model was loaded in, computes in and is served in, whatever its trained weights are held in."""
        dtype: torch.dtype = self.base_model.config.dtype
        return dtype

    @property
    def base_model(self) -> Any:
        """The transformers model itself, adapter layers in place: `.model` is its backbone, `.lm_head` its head."""
        return self.model.get_base_model() if self.has_adapter else self.model  # type: ignore[operator]

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter is trained, not the model's own weights."""
        return hasattr(self.model, "disable_adapter")

    @property
    def reads_images(self) -> bool:
        """Whether the model has a vision tower."""
        return self.image_processor is not None

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        pixels: tuple[Tensor | None, Tensor | None] = (None, None),
        **cache: Any,
    ) -> Tensor:
        """Last hidden states [B, L, width] of the backbone; `base_model.lm_head` makes logits of them.

        `position_ids` int64 [3, B, L] as `positions` gives them, `pixels` what `pixels` returned for the images of all
        rows, `cache` the backbone's arguments about a cache, or about rows that are packed behind one
        another in a single one (`packed_rows` makes them).
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **cache}
        if self.reads_images:
            inputs |= {"pixel_values": pixels[0], "image_grid_thw": pixels[1]}
        else:
            inputs["position_ids"] = position_ids[0]
        states: Tensor = self.base_model.model(**inputs).last_hidden_state
        return states

    def hidden_states_of(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        features: Sequence[Features],
        **cache: Any,
    ) -> Tensor:
        """`hidden_states` of rows whose images have been through the vision tower: `features` of all of them in order,
        as `VisionFeatures` gives them."""
        if not features:
            return self.hidden_states(input_ids, attention_mask, position_ids, **cache)
        unread = torch.empty(0)
        with in_place_of_tower(self.base_model.model, features):
            return self.hidden_states(input_ids, attention_mask, position_ids, (unread, unread), **cache)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens written out in it map to their ids, none are added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def image_grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of tokens that a [height, width] screenshot becomes after the processor's resizing.

        Raises `ValueError` when the model reads no images."""
        if self.image_processor is None:
            raise ValueError("a screenshot, but the model reads no images: show it the screen in words")
        resized = resized_shape(self.image_processor, height, width)
        token_side = self.image_processor.patch_size * self.image_processor.merge_size
        return resized[0] // token_side, resized[1] // token_side

    def coordinate_space(self, height: int, width: int) -> Space | None:
        """What the model's positions on a [height, width] screenshot are measured in; None: 0..1000."""
        return coordinate_space(self.image_processor, self.coordinates, height, width)

    def image_tokens(self, height: int, width: int) -> int:
        """How many placeholders a [height, width] screenshot needs."""
        rows, columns = self.image_grid(height, width)
        return rows * columns

    def pixels(self, images: Sequence[npt.NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """The model's `pixel_values` (float32 [patches, features]) and `image_grid_thw` (int64 [n, 3]) on its device,
        of at least one uint8 image [H, W, 3]."""
        pixels, grids = self.image_bytes(images)
        return self.pixel_values(pixels, grids), grids.to(self.device)

    def image_bytes(self, images: Sequence[npt.NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """What `pixel_values` makes pixels of, uint8 [patches, features], and `image_grid_thw` (int64 [n, 3]); on the
        CPU, of at least one uint8 image [H, W, 3]."""
        return image_bytes(self.image_processor, images)

    def pixel_values(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """The model's `pixel_values`, float32 on its device, of the bytes and the grids that `image_bytes` gave."""
        return pixel_values(self.image_processor, pixels.to(self.device), grids)

    def positions(
        self, input_ids: Sequence[int] | npt.NDArray[np.int64], images: Sequence[npt.NDArray[np.uint8]]
    ) -> npt.NDArray[np.int64]:
        """M-RoPE ids [3, L] of a row; of text alone, three times the same. Raises `ValueError` when placeholders and
        images do not match."""
        is_image = np.asarray(input_ids) == self.special.image_token_id
        return mrope_positions(is_image, [self.image_grid(image.shape[0], image.shape[1]) for image in images])

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What training changes, with names."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def frozen_copy(self) -> PolicyModel:
        """The same policy in a model of its own that nothing trains: weights that are trained here are copied, frozen
        ones are shared."""
        shared = {id(parameter): parameter for parameter in self.model.parameters() if not parameter.requires_grad}
        model = copy.deepcopy(self.model, dict[int, Any](shared)).eval().requires_grad_(False)
        return replace(self, model=model, reference_weights=None)

    @torch.no_grad()
    def load_trained(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite, in place, the parameters that `weights` names. Raises `KeyError` for one that is not there."""
        parameters = dict(self.model.named_parameters())
        for name, weight in weights.items():
            parameters[name].copy_(weight)

    @contextmanager
    def holding(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Inside, the parameters that `weights` names are its tensors, of whatever dtype; afterwards their own again.
        The parameter objects (and an optimiser's view of them) stay."""
        self._exchange(weights)
        try:
            yield
        finally:
            self._exchange(weights)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, `model` is the frozen reference policy: without its adapter, or with the weights it was loaded with.

        Raises `RuntimeError` when full weights are trained and the model was loaded without `keep_reference=True`.
        """
        if self.has_adapter:
            with self.model.disable_adapter():  # type: ignore[operator]
                yield
            return
        if self.reference_weights is None:
            raise RuntimeError("no reference policy: load the model with keep_reference=True, or train a LoRA adapter")
        with self.holding(self.reference_weights):
            yield

    def _exchange(self, weights: dict[str, Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        for name, weight in weights.items():
            parameters[name].data, weights[name] = weight, parameters[name].data
