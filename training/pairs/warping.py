"""Geometry: matrices, resampling, and random outlines."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from imprint.masks import fill_boxes
from imprint.preprocess import bounding_boxes

from .draw import Draw


def warp(images: torch.Tensor, matrices: torch.Tensor, side: int, beyond: str = "zeros") -> torch.Tensor:
    """Resample (B, C, H, W) by (B, 3, 3) to (B, C, side, side), at twice the side and averaged against aliasing."""
    line = (torch.arange(2 * side, device=images.device) + 0.5) / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)
    mapped = points @ matrices.transpose(1, 2)
    grid = (mapped[..., :2] / mapped[..., 2:]).unflatten(1, (2 * side, 2 * side))
    return F.avg_pool2d(F.grid_sample(images, grid, padding_mode=beyond, align_corners=False), 2)


def matrix(
    centre: torch.Tensor, zoom: torch.Tensor, angle: torch.Tensor, stretch: torch.Tensor, mirrored: torch.Tensor
) -> torch.Tensor:
    """Rotate, scale, mirror, shift: (B, 3, 3). zoom < 1 enlarges; stretch > 1 widens x, narrows y in the source."""
    sign = torch.where(mirrored, -1.0, 1.0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [
        torch.stack([cos * stretch * sign, -sin * stretch, centre[:, 0]], 1),
        torch.stack([sin * sign / stretch, cos / stretch, centre[:, 1]], 1),
        torch.stack([torch.zeros_like(zoom), torch.zeros_like(zoom), torch.ones_like(zoom)], 1),
    ]
    return torch.stack(rows, 1)


def shift(offset: torch.Tensor) -> torch.Tensor:
    """Shift by (B, 2), x and y: (B, 3, 3)."""
    matrix = torch.eye(3, device=offset.device).repeat(len(offset), 1, 1)
    matrix[:, :2, 2] = offset
    return matrix


def centres(boxes: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in pixels -> centres (B, 2), x and y in [-1, 1], and longer sides (B,) relative to the picture's."""
    boxes = boxes.float()
    centre = (boxes[:, :2] + boxes[:, 2:]).flip(1) / side - 1
    return centre, (boxes[:, 2:] - boxes[:, :2]).amax(1) / side


def blobs(size: torch.Tensor, side: int, draw: Draw) -> torch.Tensor:
    """(B,) sizes relative to the side -> (B, side, side) of 0 and 1: random outlines, smooth to jagged."""
    count = len(size)
    line = (torch.arange(side, device=draw.generator.device) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    centre = (draw.normal((count, 2)) * 0.25).clamp(-0.8, 0.8) * (1 - size)[:, None]
    aspect = torch.exp(draw.normal(count) * 0.3).clamp(0.5, 2)
    dx = (x - centre[:, 0, None, None]) / (size * aspect.clamp(max=1))[:, None, None]
    dy = (y - centre[:, 1, None, None]) / (size / aspect.clamp(min=1))[:, None, None]
    angle = torch.atan2(dy, dx)
    radius = torch.ones_like(angle)
    for order in range(2, 8):
        strength = draw.normal((count, 1, 1)) * 0.28 / order**0.7
        radius = radius + strength * torch.cos(order * angle + draw.uniform((count, 1, 1), 0, 2 * math.pi))
    power = torch.where(draw.chance(0.5, count), 2.0, draw.uniform(count, 2, 8))[:, None, None]
    distance = (dx.abs() ** power + dy.abs() ** power) ** (1 / power)
    inside = (distance < radius.clamp(0.35, 1.0)).float()
    inside[inside.flatten(1).amax(1) == 0] = 1.0
    return inside


def loosened_box(boxes: torch.Tensor, draw: Draw) -> torch.Tensor:
    """(B, R, R) filled boxes -> boxes grown on each side by a random fraction of their size, usually a small one."""
    count = len(boxes)
    edges = bounding_boxes(boxes).float()
    extent = (edges[:, 2:] - edges[:, :2]).repeat(1, 2)
    most = torch.tensor([0.04, 0.2, 0.8], device=boxes.device)[draw.categorical((0.7, 0.22, 0.08), count)]
    room = draw.uniform((count, 4)) * extent * most[:, None]
    room[:, 2] *= draw.chance(0.5, count)  # in a user's box an object stands more often than it floats
    grown = torch.cat([(edges[:, :2] - room[:, :2]).floor(), edges[:, 2:] + room[:, 2:]], 1)
    return fill_boxes(grown, *boxes.shape[1:]).to(boxes)
