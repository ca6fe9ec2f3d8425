"""Screenshots to vision-tower patches: the numbers of the slow `Qwen2VLImageProcessor`, several times faster.

The processor handles one image at a time in floating point, on the CPU. Here screenshots stay the bytes that they are,
an eighth of the memory, until a forward pass wants them. Then, on the model's device, the patches of all equally sized
images are cut at once, and a table of 256 entries per channel turns them into normalised values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.image_transforms import resize
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

from cua_agent.actions import Coordinates, Space
from cua_agent.models.families import ImageSizes
from cua_agent.models.transfer import sent

UINT8_LEVELS = 256
CHANNELS = 3


def check_screenshot(image: npt.NDArray[np.uint8]) -> None:
    """Raises `ValueError` unless `image` is uint8 [H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a screenshot must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")


def image_processor(location: str, sizes: ImageSizes) -> Any:
    """The image processor of the checkpoint at `location`; `sizes` hold where its preprocessor_config.json is silent.

    Raises `OSError` when there is none."""
    values, _ = Qwen2VLImageProcessor.get_image_processor_dict(location)
    defaults: dict[str, Any] = {"patch_size": sizes.patch, "merge_size": sizes.merge}
    if "size" not in values:
        defaults |= {"min_pixels": sizes.min_pixels, "max_pixels": sizes.max_pixels}
    return Qwen2VLImageProcessor.from_dict({**defaults, **values})


def coordinate_space(processor: Any, coordinates: Coordinates | None, height: int, width: int) -> Space | None:
    """The resized image of a [height, width] screenshot, which absolute positions are measured in; relative: None."""
    if coordinates != "absolute":
        return None
    rows, columns = resized_shape(processor, height, width)
    return columns, rows


def resized_shape(processor: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels that the processor resizes a screenshot to."""
    factor = processor.patch_size * processor.merge_size
    resized: tuple[int, int] = smart_resize(
        height, width, factor=factor, min_pixels=processor.min_pixels, max_pixels=processor.max_pixels
    )
    return resized


def image_bytes(processor: Any, images: Sequence[npt.NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """The bytes of at least one uint8 image [H, W, 3], of any sizes, in their own order, and their `image_grid_thw`
    int64 [n, 3] in patches; the bytes uint8 [patches, 3 * patch_size ** 2], as many as the patches have that
    `pixel_values` cuts out of them."""
    resized = [resize_screenshot(processor, image) for image in images]
    side = processor.patch_size
    flat = [image.reshape(-1, CHANNELS * side**2) for image in resized]
    grids = [(1, image.shape[0] // side, image.shape[1] // side) for image in resized]
    return torch.from_numpy(np.concatenate(flat)), torch.tensor(grids)


def pixel_values(processor: Any, pixels: Tensor, grids: Tensor) -> Tensor:
    """The processor's `pixel_values`, float32 [n, 3 * temporal_patch_size * patch_size ** 2], of what `image_bytes`
    gave, on the device of `pixels`. (`grids` in main memory, or the device is waited for.)"""
    groups = [(grid, len(list(group))) for grid, group in groupby(map(tuple, grids.tolist()))]
    sizes = [count * rows * columns for (_, rows, columns), count in groups]
    parts = zip(torch.split(pixels, sizes), groups, strict=True)
    planes = torch.cat([_patches(processor, part, grid[1:], count) for part, (grid, count) in parts])
    table = sent(torch.from_numpy(_normalisation_table(processor)), pixels.device)
    values = torch.stack([table[channel][planes[:, channel].int()] for channel in range(CHANNELS)], dim=1)
    # A still image: every frame shows the same.
    return values[:, :, None].expand(-1, -1, processor.temporal_patch_size, -1).reshape(len(values), -1)


def resize_screenshot(processor: Any, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The screenshot at the size that its patches are cut from; resizing it again changes nothing."""
    check_screenshot(image)
    shape = resized_shape(processor, image.shape[0], image.shape[1])
    if shape == image.shape[:2]:
        return image
    result: npt.NDArray[np.uint8] = resize(
        image, size=shape, resample=processor.resample, input_data_format="channels_last"
    )
    return result


def _normalisation_table(processor: Any) -> npt.NDArray[np.float32]:
    """Normalised value of every byte, [3, 256], by the processor's own arithmetic."""
    levels = np.arange(UINT8_LEVELS, dtype=np.uint8).reshape(1, -1, 1).repeat(3, axis=2)
    rescaled = processor.rescale(levels, scale=processor.rescale_factor, input_data_format="channels_last")
    normalised: npt.NDArray[np.float32] = processor.normalize(
        rescaled, mean=processor.image_mean, std=processor.image_std, input_data_format="channels_last"
    )
    return np.ascontiguousarray(normalised[0].T, dtype=np.float32)


def _patches(processor: Any, pixels: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """Patches [n, 3, patch_size ** 2] of `count` images of `grid` (rows, columns) patches; the merge_size x merge_size
    patches of one token are neighbours."""
    side, merge = processor.patch_size, processor.merge_size
    rows, columns = grid[0] // merge, grid[1] // merge
    blocks = pixels.reshape(count, rows, merge, side, columns, merge, side, CHANNELS)
    return blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, CHANNELS, side**2)
