"""Masks: four levels of coarseness, from the object's own outline to its bounding box; boxes; and a mask's hole in the
latents.

IMPRINT trains with a random level, so that users can draw as coarsely as they like, and the mask's shape determines the
pose (arXiv 2403.10701, section 3.3). Blur and threshold after SmartBrush (arXiv 2212.05034, section 3.2). Masks are
BHW, 1 = hole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F

from .errors import ImprintError, require_one_of
from .preprocess import bounding_boxes

LEVELS = ("precise", "fine", "coarse", "box")
"""From the exact outline to the bounding box; each contains the one before it, and the object."""

# Standard deviation of the blur over the longer side of the object's box. With these the box, which contains all other
# levels, is about 1.2 times the object's own: related models' room for a shadow is 1.1 to 1.2.
_BLUR = {"fine": 0.02, "coarse": 0.05}
_THRESHOLD = 0.1
_WORK_SIDE = 1024  # larger masks are blurred at reduced size: coarse shapes have no finer detail


def what_is_white(masks: torch.Tensor) -> str:
    """What is white in masks (B, H, W): "background" if most of their border is white, else "object"."""
    border = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], 1)
    return "background" if float(border.mean()) > 0.5 else "object"


def grow(masks: torch.Tensor, pixels: int, below: int = 0) -> torch.Tensor:
    """Dilate (B, H, W) by a square, `pixels` to each side and `below` more downwards."""
    for axis, before, after in ((1, pixels, pixels + below), (2, pixels, pixels)):
        masks = _spread(_spread(masks, after, axis).flip(axis), before, axis).flip(axis)
    return masks


def grow_boxes(boxes: torch.Tensor, pixels: int, below: int, height: int, width: int) -> torch.Tensor:
    """(B, 4) boxes of masks in a picture of this size -> the boxes of the masks after `grow`."""
    reach = boxes.new_tensor([-pixels, -pixels, pixels + below, pixels])
    return (boxes + reach).clamp(min=0).minimum(boxes.new_tensor([height, width, height, width]))


def _spread(masks: torch.Tensor, pixels: int, axis: int) -> torch.Tensor:
    """The maximum of each pixel and the `pixels` before it along an axis.

    The reach doubles at each step, so large distances cost little.
    """
    length, reach = masks.shape[axis], 0
    pixels = min(pixels, length - 1)
    while reach < pixels:
        step = min(reach + 1, pixels - reach)
        moved = torch.maximum(masks.narrow(axis, step, length - step), masks.narrow(axis, 0, length - step))
        masks = torch.cat([masks.narrow(axis, 0, step), moved], axis)
        reach += step
    return masks


def fill_boxes(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, 4) boxes as `bounding_boxes` gives them -> (B, height, width) bool, True inside."""
    inside = []
    for axis, length in enumerate((height, width)):
        positions = torch.arange(length, device=boxes.device)
        inside.append((positions >= boxes[:, axis, None]) & (positions < boxes[:, 2 + axis, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


def box(masks: torch.Tensor) -> torch.Tensor:
    """(B, H, W) -> the filled bounding box of each mask."""
    return fill_boxes(bounding_boxes(masks), *masks.shape[1:]).to(masks)


def _blob(masks: torch.Tensor, blur: float) -> torch.Tensor:
    """The mask dilated and rounded: Gaussian blur by a fraction of the object's size, then a threshold."""
    height, width = masks.shape[1:]
    factor = math.ceil(max(height, width) / _WORK_SIDE)
    small = F.max_pool2d(masks[:, None].float(), factor, ceil_mode=True)[:, 0]
    boxes = bounding_boxes(small)
    sigma = ((boxes[:, 2:] - boxes[:, :2]).amax(1) * blur).clamp(min=0.5)[:, None, None]
    for _ in range(2):  # blur the columns, turn, blur the rows, turn back
        positions = torch.arange(small.shape[1], device=masks.device)
        kernel = torch.exp(-0.5 * ((positions[:, None] - positions) / sigma) ** 2)
        kernel = kernel / (sigma * math.sqrt(2 * math.pi))
        small = (kernel @ small).transpose(1, 2)
    blob = (small > _THRESHOLD).to(masks)
    return blob.repeat_interleave(factor, 1).repeat_interleave(factor, 2)[:, :height, :width]


def mask_levels(masks: torch.Tensor, margin: int = 0, min_size: int = 0, shadow_room: int = 0) -> torch.Tensor:
    """All four levels of each mask: (B, H, W) in [0, 1] -> (B, 4, H, W) of 0 and 1, in the order of `LEVELS`.

    margin: pixels added on every side of every level; shadow_room: additional ones at the bottom. min_size: the box of
    every level measures at least this many pixels along both sides if the picture allows. Raises `ImprintError`
    for an empty mask or a negative number.
    """
    return torch.stack(list(_levels(masks, margin, min_size, shadow_room)), 1)


def coarsen(masks: torch.Tensor, level: str, margin: int = 0, min_size: int = 0, shadow_room: int = 0) -> torch.Tensor:
    """One of `LEVELS` for each mask, (B, H, W) -> (B, H, W); other arguments and errors as for `mask_levels`."""
    require_one_of("mask level", level, LEVELS)
    return next(islice(_levels(masks, margin, min_size, shadow_room), LEVELS.index(level), None))


def _levels(masks: torch.Tensor, margin: int, min_size: int, shadow_room: int) -> Iterator[torch.Tensor]:
    if min(margin, min_size, shadow_room) < 0:
        raise ImprintError(
            f"margin is {margin}, minimum size {min_size} and shadow room {shadow_room}; "
            "all are pixels and must be 0 or more"
        )
    precise = (masks > 0.5).to(masks)
    faint = ~precise.flatten(1).any(1)
    precise = grow(torch.where(faint[:, None, None], (masks > 0).to(masks), precise), margin, shadow_room)
    precise = enlarge(precise, min_size)
    yield precise
    fine = torch.maximum(precise, _blob(precise, _BLUR["fine"]))
    yield fine
    coarse = torch.maximum(fine, _blob(fine, _BLUR["coarse"]))
    yield coarse
    yield box(coarse)


def enlarge(masks: torch.Tensor, size: int) -> torch.Tensor:
    """Add a box of at least `size` pixels a side, around the same centre, to masks (B, H, W) whose box is smaller.

    The box stays inside the picture; all other masks are returned unchanged.
    """
    boxes = bounding_boxes(masks)
    larger = enlarge_boxes(boxes, size, *masks.shape[1:])
    changed = (larger != boxes).any(1)
    if not bool(changed.any()):
        return masks
    filled = fill_boxes(larger, *masks.shape[1:]) & changed[:, None, None]
    return torch.maximum(masks, filled.to(masks))


def enlarge_boxes(boxes: torch.Tensor, size: int, height: int, width: int) -> torch.Tensor:
    """(B, 4) boxes in pixels -> at least `size` along both sides, around their centres, if the picture allows."""
    limits = torch.tensor((height, width), device=boxes.device)
    extents = boxes[:, 2:] - boxes[:, :2]
    wanted = torch.minimum(extents.clamp(min=size), limits)
    start = (boxes[:, :2] + (extents - wanted).div(2, rounding_mode="floor")).clamp(min=0)
    start = torch.minimum(start, limits - wanted)
    return torch.cat([start, start + wanted], 1)


def latent_hole(masks: torch.Tensor, downscale: int) -> torch.Tensor:
    """(B, H, W) -> (B, 1, H / downscale, W / downscale) of 0 and 1: every latent cell that the hole touches."""
    return (F.max_pool2d(masks[:, None], downscale) > 0).to(masks)


def hole_pixels(hole: torch.Tensor, downscale: int) -> torch.Tensor:
    """`latent_hole`'s cells (B, 1, h, w) -> (B, 1, h * downscale, w * downscale): all pixels that are generated."""
    return hole.repeat_interleave(downscale, 2).repeat_interleave(downscale, 3)


def paint_hole(images: torch.Tensor, hole: torch.Tensor, value: float) -> torch.Tensor:
    """The background with its hole painted grey, so that nothing inside it reaches the autoencoder.

    images (B, 3, H, W) in [0, 1]; hole (B, 1, h, w) of 0 and 1 from `latent_hole`; value: `ImprintConfig.hole_value`.
    """
    return torch.where(hole_pixels(hole, images.shape[2] // hole.shape[2]) > 0.5, value, images)
