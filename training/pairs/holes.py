"""The last step of every pair: its hole, the visible background, and the matte."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from imprint.config import ImprintConfig
from imprint.masks import box, latent_hole, mask_levels, paint_hole
from imprint.preprocess import cut_out

from .batches import Pairs
from .draw import Draw
from .framing import BOX
from .recolouring import scene_light
from .warping import loosened_box


def hole_levels(stage: str, count: int, draw: Draw) -> torch.Tensor:
    """(count,) levels of `mask_levels`. In stage 1 all are boxes, since no hole determines a pose there."""
    if stage == "identity":
        return torch.full((count,), BOX, device=draw.generator.device)
    return draw.categorical((0.15, 0.15, 0.2, 0.5), count)


def on_black(cutout: torch.Tensor, pictures: torch.Tensor, masks: torch.Tensor, config: ImprintConfig) -> Pairs:
    """Stage 1: the target is the object alone, on black, and the hole is the whole picture.

    It is framed like the reference. A random position and size, which the model cannot know, would dominate the loss,
    and it would learn blots of the right colour before any detail.
    """
    masks = masks.clone()
    masks[masks.flatten(1).amax(1) == 0] = 1.0
    side, margin = config.resolution, config.encoder.object_margin
    target, alpha = (cut_out(each, masks, side, margin) for each in (pictures, torch.ones_like(pictures)))
    cells = side // config.latent.downscale
    hole = target.new_ones(len(target), 1, cells, cells)
    return _pairs(cutout, target, target, hole, alpha[:, 0], None, config)


def in_scene(
    cutout: torch.Tensor,
    target: torch.Tensor,
    scene: torch.Tensor,
    alpha: torch.Tensor,
    shadow: torch.Tensor | None,
    level: torch.Tensor,
    draw: Draw,
    config: ImprintConfig,
) -> Pairs:
    """Stage 2: the scene's light over the whole picture, and a hole of the given levels (B,), often with room for the
    shadow at every level but the tightest.

    alpha, shadow (B, R, R) in [0, 1]; None for photos, whose shadows are not annotated.
    """
    count = len(alpha)
    light = scene_light(draw, count)
    target, scene = ((picture * light).clamp(0, 1) for picture in (target, scene))
    # Objects much smaller than the box drawn for them are what users like least.
    roomy = draw.uniform(count) < torch.tensor([0.0, 0.7, 0.7, 0.3], device=alpha.device)[level]
    outline = alpha > 0.3
    if shadow is not None:
        outline = outline | ((shadow > 0.08) & roomy[:, None, None])
    outline = outline.float()
    levels = mask_levels(outline)
    # A user's box may be as tight as the object itself, tighter than the level that contains all others.
    levels[:, -1] = loosened_box(box(outline), draw)
    hole = latent_hole(levels[torch.arange(count, device=alpha.device), level], config.latent.downscale)
    return _pairs(cutout, target, scene, hole, alpha, shadow, config)


def _pairs(
    cutout: torch.Tensor,
    target: torch.Tensor,
    scene: torch.Tensor,
    hole: torch.Tensor,
    alpha: torch.Tensor,
    shadow: torch.Tensor | None,
    config: ImprintConfig,
) -> Pairs:
    matte = matte_values(alpha, torch.full_like(alpha, -1.0) if shadow is None else shadow, config)
    return Pairs(cutout, target, paint_hole(scene, hole, config.hole_value), hole, matte)


def matte_values(alpha: torch.Tensor, shadow: torch.Tensor, config: ImprintConfig) -> torch.Tensor:
    """The targets of the matte's sigmoid: alpha, shadow (B, H, W) in [0, 1] -> (B, 2 * matte**2, h, w).

    A pixel half covered by the object is taken entirely from the generated picture, where it is already mixed with the
    background.
    """
    if not config.matte:
        cell = config.latent.downscale
        return alpha.new_zeros(len(alpha), 0, alpha.shape[1] // cell, alpha.shape[2] // cell)
    maps = torch.stack([(2 * alpha).clamp(max=1), shadow], 1)
    return F.pixel_unshuffle(F.avg_pool2d(maps, config.latent.downscale // config.matte), config.matte)
