"""Linear radiance, how a photo shows it, and the irradiance of panoramas.

Pictures are (B, C, H, W); directions have y up. As in Mitsuba's `envmap`, a direction is at column
`atan2(x, -z) / (2 pi)` of a panorama and at row `acos(y) / pi`, both from 0 to 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..render.panoramas import LUMINANCE
from .scenes import LIGHTS, channels

SHOULDER = 0.7
"""Linear value above which a photo compresses its highlights."""
IRRADIANCE_ROWS = 16
"""Rows of an irradiance map: the cosine's blur leaves no finer detail."""
COARSE_ROWS = 64
"""Rows to which a panorama is reduced before its irradiance is computed."""
NO_SHADOW = 1.03
"""Largest factor by which an object brightens the ground: more is the tracer's noise."""


def luminance(pictures: torch.Tensor) -> torch.Tensor:
    """Luminance (B, 1, H, W) of linear colours (B, 3, H, W)."""
    return (pictures * pictures.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)


def tone(linear: torch.Tensor) -> torch.Tensor:
    """Convert exposed linear radiance to a photo's values in [0, 1]: a soft shoulder, then sRGB (IEC 61966-2-1).

    The same as `training.render.panoramas.to_photo`, for tensors.
    """
    room = 1 - SHOULDER
    held = 1 - room * torch.exp((SHOULDER - linear.clamp(max=50)) / room)
    c = torch.where(linear > SHOULDER, held, linear)
    return torch.where(c > 0.0031308, 1.055 * c.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * c).clamp(0, 1)


def to_linear(values: torch.Tensor) -> torch.Tensor:
    """Convert sRGB values in [0, 1] to linear ones (IEC 61966-2-1)."""
    return torch.where(values > 0.04045, ((values + 0.055) / 1.055).clamp(min=1e-6) ** 2.4, values / 12.92)


def settle_shadows(groups: torch.Tensor) -> None:
    """Replace the bare ground's radiance by the fraction of light that the ground keeps beside the object, in place.

    groups: (N, C, S, S) as in `training.light.scenes.CHANNELS`. A median of 3 x 3 pixels and a Gaussian of one pixel
    remove the tracer's noise. The fraction is 1 where the object hides the ground, and where there is none.
    """
    lit, bare = channels("lit"), channels("bare")
    for part in groups.split(32):
        free = (part[:, channels("alpha")].float() < 0.02).float()
        for light in range(LIGHTS):
            first = lit.start + 3 * light
            radiance = luminance(part[:, first : first + 3].float())
            row = bare.start + light
            without = part[:, row : row + 1].float()
            known = free * (without > 1e-4)
            kept = (radiance / without.clamp(min=1e-6)).clamp(0, NO_SHADOW)
            kept = _median(torch.where(known > 0, kept, 1.0))
            kept = _gauss(kept * known) / _gauss(known).clamp(min=1e-3)
            part[:, row : row + 1] = torch.where(known > 0, kept, 1.0).clamp(0, 1).to(part)


def irradiance(panorama: torch.Tensor, rows: int = IRRADIANCE_ROWS) -> torch.Tensor:
    """Linear panorama (H, W, 3) -> (3, rows, 2 * rows): natural logarithm of a white matt surface's light, by normal.

    By Lambert's law, that is the cosine-weighted mean of the radiance over the normal's hemisphere.
    """
    size = (COARSE_ROWS, 2 * COARSE_ROWS)
    small = F.interpolate(panorama.float().permute(2, 0, 1)[None], size, mode="area")[0].reshape(3, -1)
    weights = (_rays(rows) @ _rays(COARSE_ROWS).T).clamp(min=0) * _row_sizes(COARSE_ROWS)
    light = small @ (weights / weights.sum(1, keepdim=True)).T
    return light.clamp(min=1e-4).log().reshape(3, rows, 2 * rows)


def shading(lights: torch.Tensor, places: torch.Tensor, turns: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S): the irradiance of each sample's rotated panorama at its normals.

    lights: (P, 3, rows, 2 * rows) from `irradiance`. places: (B,) indices of panoramas. turns: (B,) rotations about the
    vertical in degrees, as in Mitsuba's `rotate`. normals: (B, 3, S, S), of any length.
    """
    x, y, z = F.normalize(normals, dim=1).unbind(1)
    angle = turns.view(-1, 1, 1) * (math.pi / 180)
    x, z = x * angle.cos() - z * angle.sin(), x * angle.sin() + z * angle.cos()
    across = torch.remainder(torch.atan2(x, -z) / math.pi, 2) - 1
    down = torch.acos(y.clamp(-1, 1)) / math.pi * 2 - 1
    # Each side gets a column of the other end, since a panorama wraps around.
    wide = lights.shape[3]
    closed = torch.cat([lights[..., -1:], lights, lights[..., :1]], 3)
    grid = torch.stack([across * wide / (wide + 2), down], -1)
    return F.grid_sample(closed[places], grid, padding_mode="border", align_corners=False)


def direction(lights: torch.Tensor, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (B, 3) of rotated panoramas' light, as for `imprint.lightnet.LightNet.forward`, and their mean (B,).

    lights: (B, 3, rows, 2 * rows) from `irradiance`. turns: (B,) in degrees, as in `shading`.
    """
    rows = lights.shape[2]
    given = luminance(lights.exp()).flatten(1) * _row_sizes(rows).to(lights)
    given = given / _row_sizes(rows).sum()
    mean = given.sum(1)
    # A cosine's blur leaves two thirds of a panorama's first moment.
    x, y, z = (1.5 * given @ _rays(rows).to(lights) / mean[:, None]).unbind(1)
    angle = turns * (math.pi / 180)
    return torch.stack([x * angle.cos() + z * angle.sin(), y, z * angle.cos() - x * angle.sin()], 1), mean


def _rays(rows: int) -> torch.Tensor:
    """(rows * 2 * rows, 3): directions of a panorama's pixels."""
    polar = ((torch.arange(rows) + 0.5) / rows * math.pi)[:, None]
    around = ((torch.arange(2 * rows) + 0.5) / rows * math.pi)[None]
    rays = around.sin() * polar.sin(), polar.cos(), -around.cos() * polar.sin()
    return torch.stack(torch.broadcast_tensors(*rays), -1).reshape(-1, 3)


def _row_sizes(rows: int) -> torch.Tensor:
    """(rows * 2 * rows,): solid angles of a panorama's pixels, up to a constant factor."""
    polar = ((torch.arange(rows) + 0.5) / rows * math.pi).sin()
    return polar[:, None].expand(-1, 2 * rows).reshape(-1)


def _median(pictures: torch.Tensor) -> torch.Tensor:
    """Median of 3 x 3 pixels; pictures (B, 1, H, W)."""
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    high, wide = pictures.shape[2:]
    shifted = [padded[:, :, y : y + high, x : x + wide] for y in range(3) for x in range(3)]
    return torch.cat(shifted, 1).median(1, keepdim=True).values


def _gauss(pictures: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with a standard deviation of one pixel; pictures (B, 1, H, W)."""
    line = torch.exp(-0.5 * torch.arange(-3, 4, device=pictures.device).float() ** 2)
    line = (line / line.sum()).view(1, 1, -1)
    pictures = F.conv2d(F.pad(pictures, (3, 3, 3, 3), mode="replicate"), line[..., None])
    return F.conv2d(pictures, line[:, :, None])
