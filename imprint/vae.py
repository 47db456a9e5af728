"""The autoencoder: TAESD or Stable Diffusion's, built from the configuration with diffusers.

Pictures to latents and back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .config import LatentConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny


def build_autoencoder(config: LatentConfig) -> AutoencoderTiny | AutoencoderKL:
    """TAESD or SD's autoencoder, with fresh weights."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    if config.autoencoder == "tiny":
        return AutoencoderTiny(latent_channels=config.channels)
    return AutoencoderKL(
        latent_channels=config.channels,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        scaling_factor=config.scale_factor,
    )


def encode(autoencoder: AutoencoderTiny | AutoencoderKL, images: torch.Tensor, config: LatentConfig) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, C, H / downscale, W / downscale) latents as the UNet sees them.

    The mean, no noise.
    """
    encoded = autoencoder.encode(images * 2 - 1)
    latents = encoded.latents if config.autoencoder == "tiny" else encoded.latent_dist.mode()
    return latents * config.scale_factor


def decode(autoencoder: AutoencoderTiny | AutoencoderKL, latents: torch.Tensor, config: LatentConfig) -> torch.Tensor:
    """The inverse of `encode`: -> (B, 3, H, W) in [0, 1]."""
    return (autoencoder.decode(latents / config.scale_factor).sample / 2 + 0.5).clamp(0, 1)
