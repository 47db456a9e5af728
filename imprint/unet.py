"""The generator: Stable Diffusion's or SDXL's UNet, built from the configuration with diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .blending import blend_latents
from .config import ImprintConfig, UNetConfig

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

SIZE_WIDTH = 256
"""Of the sinusoids that stand for each of SDXL's six numbers."""


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
        use_linear_projection=config.linear_projections,
        **_told(config),
    )


def _told(config: UNetConfig) -> dict[str, Any]:
    """The layers for SDXL's pooled text and its six numbers (`conditions`), in diffusers' words."""
    if not config.pooled_width:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": config.pooled_width + 6 * SIZE_WIDTH,
    }


def run_unet(
    unet: UNet2DConditionModel,
    seen: torch.Tensor,
    timesteps: torch.Tensor,
    context: torch.Tensor,
    config: ImprintConfig,
) -> torch.Tensor:
    """seen (B, C', h, w) from `with_background`, timesteps (B,) or one, context (B, N, C) -> the UNet's whole output
    (B, `out_channels`, h, w), which `split_matte` takes apart.
    """
    return unet(seen, timesteps, context, added_cond_kwargs=conditions(seen, config)).sample


def conditions(seen: torch.Tensor, config: ImprintConfig) -> dict[str, torch.Tensor] | None:
    """What SDXL's UNet is told beside its context (arXiv 2307.01952, section 2.2); None for SD 1.5's.

    seen (B, C', h, w) -> six numbers in pixels, (B, 6): height and width of the picture before it was cut, the upper
    left corner of the cut, height and width after it; here the model's crop is a whole picture. There is no text: its
    pooled embedding is 0, (B, `pooled_width`), as diffusers has it for SDXL's empty prompt. Both float32, under
    diffusers' names.
    """
    if not config.unet.pooled_width:
        return None
    height, width = (side * config.latent.downscale for side in seen.shape[2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=seen.device)
    nothing = sizes.new_zeros(len(seen), config.unet.pooled_width)
    return {"text_embeds": nothing, "time_ids": sizes.expand(len(seen), -1)}


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
