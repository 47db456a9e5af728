"""How objects and photos are framed: matrices of random size, position and rotation."""

from __future__ import annotations

import torch

from imprint.masks import LEVELS

from .draw import Draw
from .warping import centres, matrix, shift, warp

BOX = LEVELS.index("box")
SIZES, CENTRAL_SIZES = (0.35, 0.8), (0.8, 0.9)  # object sizes, relative to the frame's side


def object_to_frame(
    central: bool,
    boxes: torch.Tensor,
    side: int,
    mirrored: torch.Tensor,
    draw: Draw,
    tilted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Matrices that put a source's boxed object into the frame, with random size, position and rotation.

    tilted (B,): for rendered objects, whether to rotate as far as a user's hole may require; photos stay upright.
    """
    count = len(boxes)
    centre, extent = centres(boxes, side)
    size, reach = draw.uniform(count, *SIZES), 0.5
    if central:  # large and central; the target is cut out of it
        size, reach = draw.uniform(count, *CENTRAL_SIZES), 0.0
    angle = draw.normal(count) * (0.03 if tilted is None else torch.where(tilted, 0.5, 0.12))
    stretch = torch.exp(draw.normal(count) * torch.where(draw.chance(0.2, count), 0.25, 0.06))
    free = (1 - size).clamp(min=0)
    offset = (draw.normal((count, 2)) * 0.3 * reach).clamp(-1, 1) * free[:, None]
    zoom = extent / size
    if tilted is not None:
        return matrix(centre, zoom, angle, stretch, mirrored) @ shift(-offset)
    # A photo ends at its border: the frame must lie inside it, even if the object is then large or off centre.
    zoom = zoom.clamp(max=1)
    spare = (1 - zoom)[:, None]
    centre = torch.minimum(torch.maximum(centre - offset * zoom[:, None], -spare), spare)
    return matrix(centre, zoom, angle, stretch, mirrored)


def zoom_on(
    boxes: torch.Tensor, side: int, draw: Draw, level: torch.Tensor, mirrored: torch.Tensor | None = None
) -> torch.Tensor:
    """Matrices that show the boxed object large and warped: affine, perspective, and mirrored for some outlines."""
    count = len(boxes)
    centre, extent = centres(boxes, side)
    angle = draw.normal(count) * 0.15
    stretch = torch.exp(draw.normal(count) * 0.1)
    mirrored = torch.zeros(count, dtype=torch.bool, device=boxes.device) if mirrored is None else mirrored
    mirrored = mirrored ^ (draw.chance(0.2, count) & (level != BOX))
    warped = matrix(centre, extent * draw.uniform(count, 1.15, 1.4), angle, stretch, mirrored)
    tilt = torch.eye(3, device=boxes.device).repeat(count, 1, 1)
    tilt[:, 2, :2] = draw.normal((count, 2)).clamp(-2, 2) * 0.08
    return warped @ tilt


def crop_matrix(flip: torch.Tensor, draw: Draw, count: int) -> torch.Tensor:
    """(B, 3, 3): a random square of each photo, mirrored where flip (B,) says so."""
    zoom = draw.uniform(count, 0.5, 1.0)
    offset = draw.uniform((count, 2), -1, 1) * (1 - zoom)[:, None]
    return matrix(offset, zoom, draw.normal(count) * 0.03, torch.ones_like(zoom), flip)


def photo_crop(photos: torch.Tensor, side: int, draw: Draw) -> torch.Tensor:
    """A random square of each photo (B, 3, S, S) -> (B, 3, side, side)."""
    flip = draw.chance(0.5, len(photos))
    return warp(photos, crop_matrix(flip, draw, len(photos)), side, "reflection")


def scene_view(scenes: torch.Tensor, mirrored: torch.Tensor, side: int, draw: Draw) -> torch.Tensor:
    """Most of each scene (B, 3, S, S) that lights a relit view -> (B, 3, side, side)."""
    zoom = draw.uniform(len(scenes), 0.7, 1.0)
    offset = draw.uniform((len(scenes), 2), -1, 1) * (1 - zoom)[:, None]
    placed = matrix(offset, zoom, torch.zeros_like(zoom), torch.ones_like(zoom), mirrored)
    return warp(scenes, placed, side, "reflection")
