"""Colour and light of pictures: recolouring, jitter, shadows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from imprint.preprocess import bounding_boxes

from .draw import Draw
from .warping import warp


def brightness(layers: torch.Tensor) -> torch.Tensor:
    """(B, 4, H, W) -> (B, 1, 1, 1): the mean colour where alpha is not 0."""
    alpha = layers[:, 3:]
    total = (layers[:, :3] * alpha).mean((1, 2, 3), keepdim=True)
    return total.clamp(min=1e-4) / alpha.mean((1, 2, 3), keepdim=True).clamp(min=1e-4)


def hue_turn(angles: torch.Tensor) -> torch.Tensor:
    """(B,) radians -> (B, 3, 3): rotations of RGB space about the grey axis."""
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    ones = torch.ones(3, 3, device=angles.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angles.device) / math.sqrt(3)
    return cos * torch.eye(3, device=angles.device) + (1 - cos) / 3 * ones + sin * cross


def recolour(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Apply (B, 3, 3) to the colours of (B, 3, H, W)."""
    return torch.einsum("bij,bjhw->bihw", matrices, images)


def jitter_parameters(draw: Draw, count: int, strength: float | torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Random exposure and white balance as gains (B, 3, 1, 1), gamma and saturation (B, 1, 1, 1); strength likewise."""
    gain = torch.exp(draw.normal((count, 1, 1, 1)) * strength * 0.7 + draw.normal((count, 3, 1, 1)) * strength * 0.25)
    gamma = torch.exp(draw.normal((count, 1, 1, 1)) * strength * 0.4)
    saturation = (1 + draw.normal((count, 1, 1, 1)) * strength).clamp(0, 2)
    return gain, gamma, saturation


def apply_jitter(images: torch.Tensor, parameters: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Apply `jitter_parameters` to (B, 3, H, W) in [0, 1]."""
    gain, gamma, saturation = parameters
    images = (images.clamp(1e-3, 1) ** gamma * gain).clamp(0, 1)
    return torch.lerp(images.mean(1, keepdim=True), images, saturation).clamp(0, 1)


def jitter(images: torch.Tensor, draw: Draw, strength: float | torch.Tensor) -> torch.Tensor:
    """Change exposure, white balance, contrast and saturation of (B, 3, H, W), each picture on its own."""
    return apply_jitter(images, jitter_parameters(draw, len(images), strength))


def scene_light(draw: Draw, count: int) -> torch.Tensor:
    """(B, 3, 1, 1) gains for whole pictures, including the object, half of them 1: the scene by night, by lamp light or
    in glare.

    The reference does not get them. They teach that a dark or tinted scene darkens and tints what is put into it.
    """
    exposure = draw.uniform((count, 1, 1, 1), math.log(0.25), math.log(1.4))
    warmth = draw.normal((count, 1, 1, 1)) * torch.tensor([0.12, 0.0, -0.2], device=exposure.device)[:, None, None]
    gains = torch.exp(exposure + warmth + draw.normal((count, 3, 1, 1)) * 0.06)
    return torch.where(draw.chance(0.5, count)[:, None, None, None], gains, 1.0)


def contact_shadow(alpha: torch.Tensor, draw: Draw, known: torch.Tensor | None = None) -> torch.Tensor:
    """(B, 1, R, R) alpha -> (B, 1, R, R), the share of light lost on the ground that the object stands on.

    The darker of two shadows: the outline projected onto the ground, leaning any way and soft to sharp, as cast by a
    lamp or the sun; and a narrow dark contact shadow, which any light leaves. known (B, 3): lean, rise and depth of the
    first, as in `Record.shadow`; random if NaN.
    """
    count, side = len(alpha), alpha.shape[-1]
    solid = (alpha[:, 0] > 0.5).float()
    solid[solid.flatten(1).amax(1) == 0] = 1.0
    foot = bounding_boxes(solid)[:, 2].float() / side * 2 - 1

    def flattened(flat: torch.Tensor, shear: torch.Tensor) -> torch.Tensor:
        # Output to source: y is measured from the foot and stretched back up; x leans with the height.
        zero, one = torch.zeros_like(foot), torch.ones_like(foot)
        rows = [
            torch.stack([one, shear / flat, -shear / flat * foot], 1),
            torch.stack([zero, 1 / flat, foot - foot / flat], 1),
            torch.stack([zero, zero, one], 1),
        ]
        return warp(alpha, torch.stack(rows, 1), side)

    drawn = torch.stack(
        [draw.uniform(count, -0.8, 0.8), draw.uniform(count, 0.1, 0.45), draw.uniform(count, 0.2, 0.65)], 1
    )
    lean, rise, depth = (drawn if known is None else torch.where(known.isnan(), drawn, known)).unbind(1)
    cast = flattened(rise, lean)
    soft = [cast]
    for _ in range(2):
        soft.append(_box_blur(_box_blur(soft[-1], side // 24), side // 24))
    choice = draw.uniform((count, 1, 1, 1), 0.4, 2)
    cast = torch.where(choice < 1, torch.lerp(soft[0], soft[1], choice), torch.lerp(soft[1], soft[2], choice - 1))
    touch = _box_blur(flattened(torch.full_like(foot, 0.06), torch.zeros_like(foot)), side // 48)
    return torch.maximum(cast * depth[:, None, None, None], touch * draw.uniform((count, 1, 1, 1), 0.4, 0.8))


def _box_blur(images: torch.Tensor, radius: int) -> torch.Tensor:
    for kernel in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
        images = F.avg_pool2d(images, kernel, 1, tuple(k // 2 for k in kernel))
    return images
