"""The matte: where in the hole the object is, and where it shadows the scene.

A hole is nearly always larger than the object. IMPRINT repaints all of it, and never reproduces the photo exactly. A
UNet with a matte predicts two maps besides its usual output, the object's alpha and its shadow's density, and

    picture = alpha * generated + (1 - alpha) * (1 - shadow) * background

keeps the photo wherever there is neither, bit for bit, also inside the hole. The maps are taken from the UNet's last
evaluation in sampling, from the half that sees the object: they cost nothing, and belong to the very prediction that
the picture is made from. They are finer than the latent: `ImprintConfig.matte` values along each side of a cell, which
are channels of the UNet's output (sub-pixel convolution: Shi et al., arXiv 1609.05158).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .config import ImprintConfig

MAPS = ("alpha", "shadow")
# Values closer to 0 or 1 than this count as 0 or 1. A sigmoid never reaches them, and where the model is not sure of an
# edge's position to a pixel, its alpha is a wide, hazy ramp around it.
_MARGINS = torch.tensor([0.3, 0.05], device="cpu").reshape(1, 2, 1, 1)


def split_matte(output: torch.Tensor, config: ImprintConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's output -> the usual prediction (B, C, h, w), and the matte's logits (B, 2 * matte**2, h, w)."""
    return output[:, : config.latent.channels], output[:, config.latent.channels :]


def matte_pixels(logits: torch.Tensor, hole: torch.Tensor, config: ImprintConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, 2 * matte**2, h, w) -> alpha and shadow, each (B, h * downscale, w * downscale) in [0, 1].

    Exactly 0 where there is neither. alpha: the object's share of a pixel; shadow: the share of light that the pixel
    loses. Both are 0 outside the latents' hole (B or 1, 1, h, w), where nothing is generated and the logits are
    untrained.
    """
    maps, margins = F.pixel_shuffle(logits.float(), config.matte).sigmoid(), _MARGINS.to(logits.device)
    alpha, shadow = ((maps - margins) / (1 - 2 * margins)).clamp(0, 1).chunk(2, 1)
    inside = (hole > 0).to(maps).repeat_interleave(config.matte, 2).repeat_interleave(config.matte, 3)
    maps = torch.where(inside > 0, torch.cat([alpha, _softened(shadow, inside, config.matte)], 1), 0)
    side = (logits.shape[2] * config.latent.downscale, logits.shape[3] * config.latent.downscale)
    alpha, shadow = F.interpolate(maps, side, mode="bilinear", align_corners=False).unbind(1)
    return alpha, shadow


def _softened(shadow: torch.Tensor, inside: torch.Tensor, cells: int) -> torch.Tensor:
    """Averages over about a latent cell, `cells` values wide, of the values inside the hole; 0 at the hole's edge.

    A shadow has no fine structure; what a small model predicts there is the latent's grid. A shadow that would reach
    beyond the hole fades over the last cell, since a straight cut would show the box.
    """
    kernel, share = cells | 1, inside
    count = F.avg_pool2d(inside, kernel, 1, kernel // 2).clamp(min=1e-6)
    for _ in range(2):
        shadow = F.avg_pool2d(shadow * inside, kernel, 1, kernel // 2) / count
        share = F.avg_pool2d(share, kernel, 1, kernel // 2, count_include_pad=False)  # a picture's border is no edge
    return shadow * (2 * share - 1).clamp(min=0)


def apply_matte(
    background: torch.Tensor, generated: torch.Tensor, alpha: torch.Tensor, shadow: torch.Tensor
) -> torch.Tensor:
    """`picture` as in the equation above: pictures (B, C, H, W), alpha and shadow (B, H, W), all in [0, 1].

    Where both maps are 0 the background is unchanged, bit for bit.
    """
    alpha, shadow = alpha[:, None].to(background), shadow[:, None].to(background)
    shaded = torch.where(shadow > 0, background * (1 - shadow), background)
    return torch.where(alpha > 0, torch.lerp(shaded, generated.to(background), alpha), shaded)
