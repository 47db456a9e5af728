"""The matte: where in the hole the object is, and where it takes light from the scene.

A hole is nearly always larger than the object. IMPRINT repaints all of it, and what is repainted is never quite the
photo. A UNet with a matte predicts two maps beside its usual output, the object's alpha and its shadow's density, and

    picture = alpha * generated + (1 - alpha) * (1 - shadow) * background

keeps the photo wherever neither is: bit for bit, also within the hole. The maps are read off sampling's last evaluation
of the UNet, of its half that sees the object: they cost nothing, and belong to the very prediction that the picture is
made of. They are finer than the latent: `ImprintConfig.matte` values along each side of a cell, which are channels of
the UNet's output (sub-pixel convolution: Shi et al., arXiv 1609.05158).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from .checkpoint import Checkpoint
from .config import ImprintConfig

MAPS = ("alpha", "shadow")
# What is nearer to 0 or 1 than this is meant to be it. A sigmoid never gets there, and where the model is not sure of
# an edge's place to a pixel, its alpha is a wide, hazy ramp around it.
_MARGINS = torch.tensor([0.3, 0.05], device="cpu").reshape(1, 2, 1, 1)


def split_matte(output: torch.Tensor, config: ImprintConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's output -> the usual prediction (B, C, h, w), and the matte's logits (B, 2 * matte**2, h, w)."""
    return output[:, : config.latent.channels], output[:, config.latent.channels :]


def matte_pixels(logits: torch.Tensor, hole: torch.Tensor, config: ImprintConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, 2 * matte**2, h, w) -> alpha and shadow, each (B, h * downscale, w * downscale) in [0, 1].

    Exactly 0 where there is nothing. alpha: the object's share of a pixel; shadow: the share of light that the pixel
    loses. Both are 0 outside the latents' hole (B or 1, 1, h, w): nothing is generated there, and the logits are
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
    """Means over a latent cell, `cells` values wide, and its neighbours, of what is inside; 0 at the hole's edge.

    A shadow has no fine structure; that of what a small model predicts is the latent's grid. And one that falls farther
    than the hole has to end there: it fades over the last cell, where a straight cut would show the box.
    """
    kernel, share = cells | 1, inside
    count = F.avg_pool2d(inside, kernel, 1, kernel // 2).clamp(min=1e-6)
    for _ in range(2):
        shadow = F.avg_pool2d(shadow * inside, kernel, 1, kernel // 2) / count
        share = F.avg_pool2d(share, kernel, 1, kernel // 2, count_include_pad=False)  # the picture's edge is none
    return shadow * (2 * share - 1).clamp(min=0)


def matte_values(alpha: torch.Tensor, shadow: torch.Tensor, config: ImprintConfig) -> torch.Tensor:
    """What the logits' sigmoid is trained to be.

    alpha, shadow (B, H, W) in [0, 1] -> (B, 2 * matte**2, h, w). A pixel that the object covers by half is wholly taken
    from what was generated: it is mixed with the background there already.
    """
    if not config.matte:
        cell = config.latent.downscale
        return alpha.new_zeros(len(alpha), 0, alpha.shape[1] // cell, alpha.shape[2] // cell)
    maps = torch.stack([(2 * alpha).clamp(max=1), shadow], 1)
    return F.pixel_unshuffle(F.avg_pool2d(maps, config.latent.downscale // config.matte), config.matte)


def apply_matte(
    background: torch.Tensor, generated: torch.Tensor, alpha: torch.Tensor, shadow: torch.Tensor
) -> torch.Tensor:
    """`picture` as above: pictures (B, C, H, W) in [0, 1], alpha and shadow (B, H, W) in [0, 1].

    Where both maps are 0 the background stays bit for bit.
    """
    alpha, shadow = alpha[:, None].to(background), shadow[:, None].to(background)
    shaded = torch.where(shadow > 0, background * (1 - shadow), background)
    return torch.where(alpha > 0, torch.lerp(shaded, generated.to(background), alpha), shaded)


def with_matte(checkpoint: Checkpoint, cells: int) -> Checkpoint:
    """The checkpoint with an untrained matte of `cells` values along a latent cell's side, or with none for 0.

    The usual prediction stays exactly what it was. Raises `ImprintError` where `cells` does not divide the cell.
    """
    config = checkpoint.config
    channels = config.latent.channels
    unet = replace(config.unet, out_channels=channels + len(MAPS) * cells**2)
    config = replace(config, matte=cells, unet=unet)  # checks that it fits, before any tensor is made
    grown = dict(checkpoint.parts["unet"])
    for name in ("conv_out.weight", "conv_out.bias"):
        kept = grown[name][:channels]
        grown[name] = torch.cat([kept, kept.new_zeros(unet.out_channels - channels, *kept.shape[1:])])
    return replace(checkpoint, config=config, parts=checkpoint.parts | {"unet": grown})
