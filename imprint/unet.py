"""The generator: Stable Diffusion's UNet, built from the configuration with diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .blending import blend_latents
from .config import ImprintConfig, UNetConfig
from .hint import CHANNELS

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel


def build_unet(config: UNetConfig, sample_size: int | None = None) -> UNet2DConditionModel:
    """diffusers' UNet of these sizes, with fresh weights."""
    from diffusers import UNet2DConditionModel

    up = tuple("CrossAttnUpBlock2D" if layers else "UpBlock2D" for layers in reversed(config.transformer_layers))
    return UNet2DConditionModel(
        sample_size=sample_size, out_channels=config.out_channels, up_block_types=up, **_encoder_options(config)
    )


def build_control(config: UNetConfig) -> ControlNetModel:
    """diffusers' ControlNet of the UNet's sizes for hints of `hint.CHANNELS`, with fresh weights."""
    from diffusers import ControlNetModel

    return ControlNetModel(
        conditioning_channels=CHANNELS,
        conditioning_embedding_out_channels=(16, 32, 96, 256),
        **_encoder_options(config),
    )


def _encoder_options(config: UNetConfig) -> dict[str, Any]:
    """The half that a ControlNet has too, in diffusers' words."""
    down = tuple("CrossAttnDownBlock2D" if layers else "DownBlock2D" for layers in config.transformer_layers)
    return {
        "in_channels": config.in_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.layers_per_block,
        "down_block_types": down,
        # diffusers takes the middle's number from the last level, whose own blocks have no attention or the same
        # number.
        "transformer_layers_per_block": (*config.transformer_layers[:-1], config.mid_transformer_layers),
        "attention_head_dim": config.heads,  # for old reasons diffusers' name for the *number* of heads
        "cross_attention_dim": config.context_width,
        "use_linear_projection": config.family == "sd2",
        "upcast_attention": config.family == "sd2",
    }


def with_background(
    noisy: torch.Tensor, background: torch.Tensor, hole: torch.Tensor, config: ImprintConfig
) -> torch.Tensor:
    """What the UNet sees of the scene, in training and at every sampling step.

    noisy, background: (B, C, h, w) latents, the background's with its hole painted grey; hole (B, 1, h, w) of 0 and 1.
    `blend` is IMPRINT's (arXiv 2403.10701, figure 2); `concat` puts mask and background beside the noisy latent, in the
    configuration's order; with `control` the UNet itself sees nothing of it.
    """
    if config.background == "blend":
        return blend_latents(noisy, background, hole)
    if config.background == "control":
        return noisy
    mask = hole if config.concat_mask == "hole" else 1 - hole
    beside = [mask, background] if config.concat_order == "mask, background" else [background, mask]
    return torch.cat([noisy, *beside], 1)
