"""The generator: Stable Diffusion's UNet, built from the configuration with diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .blending import blend_latents
from .config import ImprintConfig, UNetConfig
from .matte import split_matte

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def build_unet(config: UNetConfig, sample_size: int | None = None) -> UNet2DConditionModel:
    """diffusers' UNet of these sizes, with fresh weights."""
    from diffusers import UNet2DConditionModel

    down = tuple("CrossAttnDownBlock2D" if layers else "DownBlock2D" for layers in config.transformer_layers)
    up = tuple("CrossAttnUpBlock2D" if layers else "UpBlock2D" for layers in reversed(config.transformer_layers))
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        down_block_types=down,
        up_block_types=up,
        # diffusers takes the middle's number from the last level, whose own blocks have no attention or the same
        # number.
        transformer_layers_per_block=(*config.transformer_layers[:-1], config.mid_transformer_layers),
        attention_head_dim=config.heads,  # for old reasons diffusers' name for the *number* of heads
        cross_attention_dim=config.context_width,
    )


def with_background(
    noisy: torch.Tensor, background: torch.Tensor, hole: torch.Tensor, config: ImprintConfig
) -> torch.Tensor:
    """What the UNet sees of the scene, in training and at every sampling step.

    noisy, background: (B, C, h, w) latents, the background's with its hole painted grey; hole (B, 1, h, w) of 0 and 1.
    `blend` is IMPRINT's (arXiv 2403.10701, figure 2); `concat` puts mask and background beside the noisy latent, in the
    configuration's order.
    """
    if config.background == "blend":
        return blend_latents(noisy, background, hole)
    mask = hole if config.concat_mask == "hole" else 1 - hole
    beside = [mask, background] if config.concat_order == "mask, background" else [background, mask]
    return torch.cat([noisy, *beside], 1)


def evaluated(
    unet: torch.nn.Module,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    background: torch.Tensor,
    hole: torch.Tensor,
    contexts: torch.Tensor,
    guidance: float,
    *,
    config: ImprintConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All of a sampling step that takes time: -> the prediction with guidance (B, C, h, w), and the matte's logits
    without (B, 2 * matte**2, h, w), both float32.

    noisy (B, C, h, w): scaled as the scheduler asks; timestep: of no dimension; contexts (B or, with guidance, 2 * B,
    N, C'): those without an object first; the rest as in `imprint.phases.Phases.denoise`. It waits for no device, and
    can be compiled as one.
    """
    seen = with_background(noisy, background, hole, config)
    seen = seen.repeat(len(contexts) // len(seen), 1, 1, 1).to(contexts.dtype)
    prediction, logits = split_matte(unet(seen, timestep, contexts).sample.float(), config)
    if guidance != 1:
        without, with_object = prediction.chunk(2)
        prediction = torch.lerp(without, with_object, guidance)
        _, logits = logits.chunk(2)
    return prediction, logits
