"""Aspect-ratio buckets: rectangles cut out of square pairs."""

from __future__ import annotations

import torch

from imprint.config import ImprintConfig
from imprint.errors import ImprintError
from imprint.preprocess import bounding_boxes

from .batches import Pairs


def require_bucket(size: tuple[int, int], config: ImprintConfig) -> None:
    """Raise `ImprintError` unless the UNet accepts pictures of this width and height."""
    if any(side % config.multiple for side in size):
        raise ImprintError(
            f"the UNet cannot take {size[0]}x{size[1]} pixels; both sides must be multiples of {config.multiple}"
        )


def cut(pairs: Pairs, size: tuple[int, int], config: ImprintConfig) -> Pairs:
    """Cut a rectangle of (width, height) pixels out of each square pair, centred on the hole if possible.

    A pair whose hole does not fit into the rectangle is replaced by one whose hole fits, so that no object is cut off.
    If no hole fits, all pairs are cut.
    """
    cell, boxes = config.latent.downscale, bounding_boxes(pairs.hole[:, 0])
    window = boxes.new_tensor([size[1], size[0]]) // cell
    fitting = (boxes[:, 2:] - boxes[:, :2] <= window).all(1).nonzero()[:, 0]
    if len(fitting):
        chosen = fitting[torch.arange(len(boxes), device=boxes.device) % len(fitting)]
        pairs, boxes = pairs[chosen], boxes[chosen]
    free = boxes.new_tensor(pairs.hole.shape[2:]) - window
    corners = ((boxes[:, :2] + boxes[:, 2:] - window) // 2).clamp(min=0).minimum(free).tolist()

    def taken(maps: torch.Tensor, scale: int) -> torch.Tensor:
        high, wide = (scale * side for side in window.tolist())
        parts = (
            each[:, scale * top : scale * top + high, scale * left : scale * left + wide]
            for each, (top, left) in zip(maps, corners)
        )
        return torch.stack(list(parts))

    pictures = (taken(pictures, cell) for pictures in (pairs.target, pairs.background))
    return Pairs(pairs.reference, *pictures, taken(pairs.hole, 1), taken(pairs.matte, 1), pairs.text)
