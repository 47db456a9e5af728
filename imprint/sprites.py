"""Operations on a cut-out's pixels, colours (3, h, w) and alpha (h, w): rotate, resize, clean the edges."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .errors import ImprintError
from .preprocess import bounding_boxes

DUST = 0.1
"""Alpha below this fraction of its maximum does not belong to the object: stray specks of a matte must not move it."""
EDGE = 2
"""Pixels beside a mask's edge whose colours may be the old background's."""


def clean_edge(colours: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give an object (3, h, w) with a binary mask (h, w) an anti-aliased edge without its old background's colour.

    An object with a soft mask is returned unchanged.
    """
    if is_soft(alpha):
        return colours, alpha
    solid = F.pad((alpha > 0.5).float()[None, None], (EDGE,) * 4)
    # The new edge lies within the old one: what the mask left out is not the object.
    smooth = torch.minimum(_blurred(solid), solid)[0, 0, EDGE:-EDGE, EDGE:-EDGE]
    core = _core(alpha)
    if not bool(core.any()):  # too thin to have any colour that is surely its own
        return colours, smooth
    return torch.where(core > 0, colours, spread(colours[None], core))[0], smooth


def reduced(colours: torch.Tensor, alpha: torch.Tensor, factor: int, soft: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """An object (3, h, w), mask (h, w), reduced by a whole factor and with a clean edge as by `clean_edge`.

    soft: the mask's `is_soft`. For a photo of many megapixels that becomes small, this takes a fraction of the time.
    """
    weight = alpha[None, None] if soft else _core(alpha)
    if not bool(weight.any()):
        weight = alpha[None, None]
    share, total, alpha = (
        F.avg_pool2d(each, factor, ceil_mode=True) for each in (weight, colours[None] * weight, alpha[None, None])
    )
    known = (share > 0).to(share)
    return spread(total / share.clamp(min=1e-6), known)[0], alpha[0, 0]


def turned(picture: torch.Tensor, mask: torch.Tensor, rotate: float, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop an object (3, h, w), mask (h, w), to its box, mirror it, rotate it clockwise by degrees, and crop again.

    Mirroring and quarter turns keep every pixel as it is.
    """
    colours, alpha = cropped(picture, mask)
    if flip:
        colours, alpha = colours.flip(-1), alpha.flip(-1)
    quarters, rest = divmod(rotate + 45, 90)
    rest -= 45
    if int(quarters) % 4:
        colours, alpha = (torch.rot90(each, -int(quarters), (-2, -1)) for each in (colours, alpha))
    if rest:
        colours, alpha = cropped(*_rotated(colours, alpha, rest))
    return colours, alpha


def resized(colours: torch.Tensor, alpha: torch.Tensor, high: int, wide: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Antialiased, with premultiplied alpha, so that hidden colours behind the object do not enter its edge."""
    if tuple(alpha.shape) == (high, wide):
        return colours, alpha
    both = torch.cat([colours * alpha, alpha[None]])[None]
    both = F.interpolate(both, (high, wide), mode="bicubic", antialias=True, align_corners=False)[0]
    alpha = both[3].clamp(0, 1)
    return (both[:3] / both[3].clamp(min=1e-3)).clamp(0, 1), alpha


def spread(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Fill values (B, C, H, W) where known (B, 1, H, W) is 0 with averages of the nearest known ones (pull-push).

    After Gortler et al., "The Lumigraph" (SIGGRAPH 1996), section 3.4.
    """
    levels = [(values * known, known)]
    while max(levels[-1][0].shape[2:]) > 1:
        total, share = levels[-1]
        shape = [-(-side // 2) for side in total.shape[2:]]
        pad = (0, 2 * shape[1] - total.shape[3], 0, 2 * shape[0] - total.shape[2])
        total, share = F.avg_pool2d(F.pad(total, pad), 2), F.avg_pool2d(F.pad(share, pad), 2)
        full = (share / share.clamp(min=1e-6)).clamp(max=1)
        levels.append((total / share.clamp(min=1e-6) * full, full))
    filled = levels[-1][0]
    for total, share in reversed(levels[:-1]):
        coarse = F.interpolate(filled, total.shape[2:], mode="bilinear", align_corners=False)
        filled = total + coarse * (1 - share)
    return filled


def cropped(colours: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop to the object's box. Raises `ImprintError` for an empty mask."""
    if not bool(alpha.max() > 0):
        raise ImprintError(
            "the object's mask is empty, so that no object is left; give a mask that is white on the object"
        )
    top, left, bottom, right = bounding_boxes(alpha[None], DUST * float(alpha.max()))[0].tolist()
    part = slice(top, bottom), slice(left, right)
    return colours[(slice(None), *part)], alpha[part]


def _rotated(colours: torch.Tensor, alpha: torch.Tensor, degrees: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours (C, h, w) and alpha (h, w) rotated clockwise, in a frame that is large enough for them."""
    high, wide = alpha.shape
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    new_high = math.ceil(abs(high * cosine) + abs(wide * sine)) + 2
    new_wide = math.ceil(abs(wide * cosine) + abs(high * sine)) + 2
    rows = torch.arange(new_high, device=alpha.device) + 0.5 - new_high / 2
    columns = torch.arange(new_wide, device=alpha.device) + 0.5 - new_wide / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack([(x * cosine + y * sine) * 2 / wide, (y * cosine - x * sine) * 2 / high], -1)[None]
    both = torch.cat([colours * alpha, alpha[None]])[None]
    both = F.grid_sample(both, grid, mode="bicubic", padding_mode="zeros", align_corners=False)[0]
    alpha = both[-1].clamp(0, 1)
    alpha = torch.where(alpha < 1 / 255, 0, alpha)
    return (both[:-1] / both[-1].clamp(min=1e-3)).clamp(0, 1), alpha


def is_soft(alpha: torch.Tensor) -> bool:
    """Whether a mask (h, w) has a soft edge rather than only 0 and 1."""
    return bool(((alpha > 0.02) & (alpha < 0.98)).sum() > 0.25 * _edge(alpha > 0.5).sum())


def _core(alpha: torch.Tensor) -> torch.Tensor:
    """(1, 1, h, w), 1 where a binary mask (h, w) is farther than `EDGE` from its edge and the picture's border."""
    outside = F.pad((alpha <= 0.5).float()[None, None], (EDGE,) * 4, value=1)
    side = 2 * EDGE + 1
    return 1 - F.max_pool2d(F.max_pool2d(outside, (side, 1), 1), (1, side), 1)


def without_fringe(colours: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Colours (3, h, w) whose soft edge, by alpha (h, w), takes the colours of the solid object next to it.

    An edge's own colours are often mixed with the old background, or with the black or white it was cut out on.
    """
    faint = (alpha < 0.98).float()[None, None]
    solid = 1 - F.max_pool2d(faint, 3, 1, 1)
    if not bool(solid.any()):
        return colours
    beside = F.max_pool2d(solid, 2 * EDGE + 3, 1, EDGE + 1) - solid
    return torch.where(beside > 0, spread(colours[None], solid), colours[None])[0]


def _edge(inside: torch.Tensor) -> torch.Tensor:
    """Pixels inside that are next to one outside."""
    near = F.pad(~inside, (1, 1, 1, 1), value=True)
    for axis in (0, 1):  # faster than pooling a single plane
        lines = [near.narrow(axis, first, near.shape[axis] - 2) for first in range(3)]
        near = lines[0] | lines[1] | lines[2]
    return inside & near


def _blurred(pictures: torch.Tensor) -> torch.Tensor:
    kernel = pictures.new_tensor([0.25, 0.5, 0.25])
    kernel = (kernel[:, None] * kernel).view(1, 1, 3, 3)
    return F.conv2d(F.pad(pictures, (1, 1, 1, 1)), kernel)
