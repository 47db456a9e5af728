"""Local blocks: the object's patch tokens, worked into the UNet's features where the object goes.

ControlCom's local enhancement (arXiv 2308.10040, section 3.3). A block follows each layer of the UNet's first levels on
the way down. It looks at the features of a region, finds for each of their cells the object's matching tokens, and
adds their values to the features in the hole's box. Layers come from an `operations` namespace, as in
`imprint.adapter`. Legend: B pictures, C channels, N = S x S tokens of width D, h x w cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import floordiv, mul, truediv
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .config import ImprintConfig, UNetConfig
from .preprocess import edges

_GROUPS = 32


@dataclass(frozen=True)
class LocalScene:
    """The inputs of all blocks in one evaluation of the UNet, besides its features."""

    tokens: torch.Tensor
    """(B, N, D): the object's patch tokens."""
    changes: torch.Tensor
    """(B, 2) of 0 and 1, as in `changes.CHANGES`."""
    boxes: torch.Tensor
    """(B, 4) int64: top, left, bottom, right of the hole, in cells of the UNet's input; the last two exclusive."""
    size: tuple[int, int]
    """Height and width of the UNet's input."""

    @classmethod
    def of(cls, seen: torch.Tensor, tokens: torch.Tensor, config: ImprintConfig) -> LocalScene:
        """From the UNet's input (B, C, h, w), which `unet.with_background` made, and tokens (B, N, D)."""
        channels = config.latent.channels
        mask = seen[:, channels if config.concat_order == "mask, background" else 2 * channels]
        hole = (mask > 0.5) if config.concat_mask == "hole" else (mask < 0.5)
        return cls(tokens, seen[:, -2:, 0, 0], edges(hole.any(2), hole.any(1)), tuple(seen.shape[2:]))

    def cells(self, height: int, width: int) -> torch.Tensor:
        """The boxes (B, 4) in a level's cells, rounded down, and at least one cell high and wide."""
        boxes = _by_axis(floordiv, _by_axis(mul, self.boxes, (height, width)), self.size)
        return torch.cat([boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2] + 1)], 1)


class LocalBlock(nn.Module):
    """One local block.

    channels: of the features; width: of the tokens; region: `UNetConfig.local_region`.
    """

    def __init__(self, channels: int, width: int, region: str, operations: Any = nn, **factory: Any):
        super().__init__()
        self.region = region
        self.norm = operations.GroupNorm(_GROUPS, channels, eps=1e-6, **factory)
        self.tokens_norm = operations.GroupNorm(_GROUPS, width, eps=1e-6, **factory)
        self.query = operations.Conv2d(channels + 2, channels, 1, **factory)
        self.key = operations.Conv2d(width, channels, 1, **factory)
        self.value = operations.Conv2d(width, channels, 3, padding=1, **factory)
        self.gain = operations.Conv2d(width, channels, 3, padding=1, **factory)
        self.shift = operations.Conv2d(width, channels, 3, padding=1, **factory)

    def forward(self, features: torch.Tensor, scene: LocalScene) -> torch.Tensor:
        """(B, C, h, w) -> the same, changed in the hole's box."""
        size = tuple(features.shape[2:])
        tokens = scene.tokens.to(features).transpose(1, 2)
        side = math.isqrt(tokens.shape[2])
        square = tokens.unflatten(2, (side, side))

        boxes = _by_axis(truediv, scene.boxes, scene.size)
        if self.region == "box":
            boxes = _by_axis(mul, boxes, size)
        seen = roi_align(features, boxes, side)
        changes = scene.changes.to(features)[:, :, None, None].expand(-1, -1, side, side)
        query = self.query(torch.cat([self.norm(seen), changes], 1))
        key, value = self.key(self.tokens_norm(square)), self.value(square)

        # One attention gives each cell both the values and the tokens they come from; its scores are not scaled.
        query, key, both = (
            each.flatten(2).transpose(1, 2)[:, None] for each in (query, key, torch.cat([value, square], 1))
        )
        found = F.scaled_dot_product_attention(query, key, both, scale=1.0)[:, 0]
        value, square = found.transpose(1, 2).unflatten(2, (side, side)).split([value.shape[1], square.shape[1]], 1)
        drawn = F.group_norm(value, _GROUPS) * self.gain(square) + self.shift(square)
        return features + fill(drawn, scene.cells(*size), size)


class LocalBlocks(nn.ModuleList):
    """All local blocks of a UNet, in the order of its layers. width: of the tokens."""

    def __init__(self, config: UNetConfig, width: int, operations: Any = nn, **factory: Any):
        channels = [each for each in config.widths[: config.local_levels] for _ in range(config.layers_per_block)]
        super().__init__(LocalBlock(each, width, config.local_region, operations, **factory) for each in channels)


def _by_axis(
    operation: Callable[[torch.Tensor, int], torch.Tensor], boxes: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Boxes (B, 4) and the size along each axis -> boxes; by Python numbers, which need no synchronisation."""
    return torch.stack([operation(boxes[:, axis::2], length) for axis, length in enumerate(size)], 2).flatten(1)


def input_blocks(config: UNetConfig) -> list[int]:
    """The indices of latent diffusion's input blocks that are followed by local blocks, in order."""
    per_level = config.layers_per_block + 1  # the last one of each level halves the size
    levels = range(config.local_levels)
    # One block precedes the first level.
    return [1 + level * per_level + layer for level in levels for layer in range(config.layers_per_block)]


def roi_align(features: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """The features in a box: (B, C, h, w), (B, 4) boxes within them, in cells and fractions -> (B, C, size, size).

    torchvision's `roi_align` (Mask R-CNN, arXiv 1703.06870) with its default arguments: boxes are at least one cell
    high and wide, a cell's centre has a whole number, and each value is the mean of as many bilinear samples as it has
    cells, rounded up. So a box in fractions of the map, within [0, 1], means its first cells: the region "corner".
    """
    rows, columns = (
        _samples(boxes[:, axis], boxes[:, axis + 2], size, length).to(features)
        for axis, length in enumerate(features.shape[2:])
    )
    return rows[:, None] @ features @ columns[:, None].transpose(-1, -2)


def _samples(start: torch.Tensor, end: torch.Tensor, size: int, length: int) -> torch.Tensor:
    """(B,), (B,) -> (B, size, length): each value's weights over the cells of one axis."""
    start, step = start[:, None, None], ((end - start).clamp(min=1) / size)[:, None, None]
    counts, index = step.ceil(), torch.arange(max(1, math.ceil(length / size)), device=start.device)
    values, cells = torch.arange(size, device=start.device)[:, None], torch.arange(length, device=start.device)
    places = (start + (values + (index + 0.5) / counts) * step).clamp(0, length - 1)
    weights = (1 - (cells - places[..., None]).abs()).clamp(min=0) * (index < counts)[..., None]
    return weights.sum(2) / counts


def fill(square: torch.Tensor, cells: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, C, S, S) enlarged to boxes (B, 4) of whole cells, by the nearest value -> (B, C, *size), 0 around them."""
    rows, columns = (
        _nearest(cells[:, axis, None], cells[:, axis + 2, None], square.shape[2], length).to(square)
        for axis, length in enumerate(size)
    )
    return rows[:, None] @ square @ columns[:, None].transpose(-1, -2)


def _nearest(start: torch.Tensor, end: torch.Tensor, size: int, length: int) -> torch.Tensor:
    """(B, 1), (B, 1) -> (B, length, size) of 0 and 1: which value each cell of one axis has, if any."""
    cells = torch.arange(length, device=start.device)
    inside = (cells >= start) & (cells < end)
    # torch's "nearest" rounds this product of two fp32 numbers, and not the quotient of whole ones
    chosen = ((cells - start) * (size / (end - start).float())).floor()
    return (chosen[..., None] == torch.arange(size, device=start.device)) & inside[..., None]
