"""Blending: of latents while sampling, of pixels at the end. Pictures are BCHW in [0, 1], masks BHW with 1 = hole."""

from __future__ import annotations

import numpy as np
import torch

from .errors import ImprintError


def blend_latents(noisy: torch.Tensor, background: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """What IMPRINT's UNet sees at every step: `x_in = m * z_t + (1 - m) * z_bg` (arXiv 2403.10701, figure 2).

    The background latent is clean, not noised again as in RePaint. noisy, background (B, C, h, w); hole (B, 1, h, w).
    """
    return hole * noisy + (1 - hole) * background


def feather(masks: torch.Tensor, inwards: int = 0, outwards: int = 0) -> torch.Tensor:
    """A blend mask (B, H, W) with a linear ramp across each hole's edge.

    The ramp runs from 1, `inwards` pixels within the hole, to exactly 0, `outwards` pixels outside it (Euclidean
    distance). Both 0 gives the hole itself, hard. Raises `ImprintError` for negative widths.
    """
    from scipy.ndimage import distance_transform_edt

    if inwards < 0 or outwards < 0:
        raise ImprintError(f"feather is {inwards} pixels inwards and {outwards} outwards; both must be 0 or more")
    blend = []
    for hole in (masks > 0.5).cpu().numpy():
        ramp = hole.astype(np.float32)
        if hole.any() and not hole.all() and inwards + outwards:
            # Signed distance to the edge, which lies half way between a pixel of the hole and its neighbour outside.
            distance = distance_transform_edt(hole) - distance_transform_edt(~hole)
            distance -= np.sign(distance) * 0.5
            ramp = np.clip((distance + outwards) / (inwards + outwards), 0, 1).astype(np.float32)
        blend.append(torch.from_numpy(ramp))
    return torch.stack(blend).to(masks)


def composite(background: torch.Tensor, generated: torch.Tensor, blend: torch.Tensor) -> torch.Tensor:
    """background where blend is 0, bit for bit; generated where it is 1; a mixture between.

    background, generated (B, C, H, W); blend (B, H, W) in [0, 1].
    """
    weight = blend[:, None].to(background)
    mixed = torch.lerp(background, generated.to(background), weight)
    return torch.where(weight > 0, mixed, background)


def match_colour(
    generated: torch.Tensor, background: torch.Tensor, masks: torch.Tensor, ring: int = 16, strength: float = 1.0
) -> torch.Tensor:
    """Move the generated picture's colours so that they agree with the background's on a ring *outside* the hole.

    There both show the same place, so that their difference is the model's and the autoencoder's colour shift and not the
    object. Per channel the mean is moved and the contrast scaled (by 0.8 to 1.25). ring: its width in pixels; strength
    from 0 (off) to 1. Returns (B, C, H, W) in [0, 1]; unchanged where no ring is left, as for a hole that fills the frame.
    """
    if ring < 1:
        raise ImprintError(f"the ring is {ring} pixels wide; it must be 1 or more")
    matched = []
    for picture, reference, outside in zip(generated, background, feather(masks, 0, ring)):
        band = (outside > 0) & (outside < 1)
        if int(band.sum()) >= 2:
            source, target = picture[:, band], reference[:, band].to(picture)
            gain = (target.std(1) / source.std(1).clamp(min=1e-4)).clamp(0.8, 1.25)
            gain = torch.where(source.std(1) > 1e-3, gain, torch.ones_like(gain))[:, None, None]
            moved = (picture - source.mean(1)[:, None, None]) * gain + target.mean(1)[:, None, None]
            picture = torch.lerp(picture, moved, strength).clamp(0, 1)
        matched.append(picture)
    return torch.stack(matched)
