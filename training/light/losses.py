"""The light network's losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from imprint.lightnet import SCATTER, LightMaps

from .pairs import LightBatch

EXPONENT = 2.2
"""A screen's gamma: converts a fraction of light to a fraction of a picture's values."""
WEIGHTS = {"fine": 1.0, "broad": 2.0, "shadow": 2.5, "edges": 1.0, "shading": 0.1, "smooth": 0.02, "direction": 0.05}
"""The losses' weights."""
LEAST_AREA = 16
"""Pixels: smaller objects and shadows count as if they had this many."""
KNOWN_GROUND = 0.02
"""The ground's shadow is known where the object covers less than this fraction of a pixel and its neighbours."""
CELLS = 4
"""Side in pixels of the cells whose means are the broad light."""
IN_SHADOW = 0.12
"""Ground that loses more than this fraction of its light belongs to the hole."""
REACH = 0.03
"""Width of the contact zone around the object's lower half, as a fraction of the picture's side."""


def predicted(net: nn.Module, batch: LightBatch, told: torch.Tensor | None = None) -> LightMaps:
    """Run the network, on a GPU in bf16. told: (B, 1), 1 for pairs whose light direction is given to the network."""
    kind = batch.picture.device.type
    direction = batch.direction * (0 if told is None else told)
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        return net(batch.picture, batch.alpha, batch.background, direction)


def relit(maps: LightMaps, batch: LightBatch) -> torch.Tensor:
    """Apply the maps to the object's colours: (B, 3, S, S)."""
    return (batch.picture * maps.gain.exp() + maps.offset).clamp(0, 1.1)


def darkening(shadow: torch.Tensor) -> torch.Tensor:
    """Fraction of light lost -> fraction of a picture's values lost."""
    return 1 - (1 - shadow).clamp(min=0) ** (1 / EXPONENT)


def broad(pictures: torch.Tensor) -> torch.Tensor:
    """Broad means of pictures (B, C, H, W), at 1 / `CELLS` of their resolution, which costs 1 / `CELLS` squared."""
    return F.avg_pool2d(F.avg_pool2d(pictures, CELLS), 3, 1, 1, count_include_pad=False)


def losses(maps: LightMaps, batch: LightBatch, told: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute each loss of `WEIGHTS`, the mean over the batch; objects and shadows of every size count the same.

    told: (B, 1), as in `predicted`; a direction that was given counts for no `direction` loss.
    """
    direction = {"direction": _direction_loss(maps, batch, (1 - told[:, 0]) * batch.direction[:, 3])}
    return _light_losses(maps, batch) | _shadow_losses(maps, batch) | _shading_losses(maps, batch) | direction


def _light_losses(maps: LightMaps, batch: LightBatch) -> dict[str, torch.Tensor]:
    off = (relit(maps, batch) - batch.target) * batch.alpha
    area = 3 * total(batch.alpha).clamp(min=LEAST_AREA)
    return {
        "fine": (total(off.abs()) / area).mean(),
        "broad": (CELLS**2 * total(broad(off).abs()) / area).mean(),
    }


def _shadow_losses(maps: LightMaps, batch: LightBatch) -> dict[str, torch.Tensor]:
    """Losses on the ground, where the hole, the contact zone and deep shadow have larger weights.

    Without them the network would learn the median of all plausible shadows, which is almost no shadow.
    """
    truth = darkening(batch.shadow)
    # At the outline the ground is unknown, and the truth says no shadow: the network would learn a bright rim.
    free = (F.max_pool2d(batch.alpha, 3, 1, 1) < KNOWN_GROUND).float() * batch.rendered
    weight = free * (0.15 + hole(batch) + 2 * contact(batch)) * (1 + 3 * truth)
    off = maps.shadow - truth
    each = total(off.abs() * weight) / total(weight).clamp(min=LEAST_AREA)
    edges = [(step * free[..., : step.shape[2], : step.shape[3]]).abs().mean() for step in _slopes(off)]
    return {"shadow": each.sum() / batch.rendered.sum().clamp(min=1), "edges": sum(edges)}


def _shading_losses(maps: LightMaps, batch: LightBatch) -> dict[str, torch.Tensor]:
    solid = (batch.alpha > 0.9).float() * batch.rendered
    off = ((maps.shading - batch.shading).abs() * solid).sum() / (6 * solid.sum()).clamp(min=1)
    smooth = [step.abs().mean() for step in (*_slopes(maps.gain), *_slopes(maps.offset))]
    return {"shading": off, "smooth": sum(smooth)}


def _direction_loss(maps: LightMaps, batch: LightBatch, counted: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the true direction under a mixture of Gaussians around the guesses.

    counted: (B,), the pairs' weights.
    """
    apart = (maps.directions - batch.direction[:, None, :3]).square().sum(2)
    density = (maps.chances - apart / (2 * SCATTER**2)).logsumexp(1)
    return -(density * counted).sum() / counted.sum().clamp(min=1)


def hole(batch: LightBatch) -> torch.Tensor:
    """(B, 1, S, S): 1 in the bounding box of the object and its shadow."""
    inside = (batch.alpha > 0.5) | (batch.shadow > IN_SHADOW)
    rows, columns = inside.any(3, keepdim=True), inside.any(2, keepdim=True)
    return (_between(rows, 2) & _between(columns, 3)).float()


def contact(batch: LightBatch) -> torch.Tensor:
    """(B, 1, S, S): 1 on the object's lower half and close to it."""
    solid = (batch.alpha > 0.5).float()
    rows = torch.arange(solid.shape[2], device=solid.device).view(1, 1, -1, 1).float()
    middle = (solid * rows).sum((2, 3), keepdim=True) / solid.sum((2, 3), keepdim=True).clamp(min=1)
    reach = round(REACH * solid.shape[2])
    return (F.max_pool2d(solid * (rows > middle), 2 * reach + 1, 1, reach) > 0).float()


def _between(line: torch.Tensor, axis: int) -> torch.Tensor:
    """True from the first to the last true value along an axis."""
    return (line.cumsum(axis) > 0) & (line.flip(axis).cumsum(axis).flip(axis) > 0)


def total(values: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B,) sums."""
    return values.sum((1, 2, 3))


def _slopes(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between neighbours, down and across."""
    return maps[..., 1:, :] - maps[..., :-1, :], maps[..., :, 1:] - maps[..., :, :-1]
