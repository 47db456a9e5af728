"""The generator: Stable Diffusion's or SDXL's UNet, built from the configuration with diffusers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .blending import blend_latents
from .changes import CHANGES
from .config import ImprintConfig, UNetConfig
from .hint import CHANNELS
from .local import LocalBlocks, LocalScene
from .matte import split_matte

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel

SIZE_WIDTH = 256
"""Width of the sinusoidal embedding of each of SDXL's six numbers."""


def build_unet(config: UNetConfig, sample_size: int | None = None, local_width: int = 0) -> UNet2DConditionModel:
    """diffusers' UNet of these sizes, with fresh weights; its local blocks, if it has any, are its module `local`.

    sample_size: side of the latents, which diffusers only records. local_width: width of the local blocks' tokens.
    """
    from diffusers import UNet2DConditionModel

    up = tuple("CrossAttnUpBlock2D" if layers else "UpBlock2D" for layers in reversed(config.transformer_layers))
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        out_channels=config.out_channels,
        up_block_types=up,
        **_encoder_options(config),
        **_told(config),
    )
    if config.local_levels:
        unet.local = LocalBlocks(config, local_width)
        layers = [layer for level in unet.down_blocks[: config.local_levels] for layer in level.attentions]
        for layer, block in zip(layers, unet.local):
            layer.register_forward_hook(partial(_then, unet.local, block))
    return unet


def _told(config: UNetConfig) -> dict[str, Any]:
    """The layers for SDXL's pooled text and its six numbers (`conditions`), in diffusers' words."""
    if not config.pooled_width:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": config.pooled_width + 6 * SIZE_WIDTH,
    }


def _then(blocks: LocalBlocks, block: torch.nn.Module, _layer: torch.nn.Module, _given: tuple, output: tuple) -> tuple:
    """The forward hook of a layer that a local block follows."""
    features, *others = output
    return block(features, blocks.scene), *others


def predict(
    unet: UNet2DConditionModel,
    seen: torch.Tensor,
    timestep: torch.Tensor | int,
    context: torch.Tensor,
    config: ImprintConfig,
    local: torch.Tensor | None = None,
    residuals: dict[str, Any] | None = None,
) -> torch.Tensor:
    """The UNet's output (B, `out_channels`, h, w): its prediction, and the matte's logits; see `split_matte`.

    seen (B, C, h, w) as `with_background` makes it; context (B, N, C'') from the adapter; local (B, M, D): the object's
    local tokens, of a model with local blocks; residuals: `control_residuals`, of one with a ControlNet.
    """
    if config.unet.local_levels:
        unet.local.scene = LocalScene.of(seen, local, config)
    return unet(seen, timestep, context, added_cond_kwargs=conditions(seen, config), **(residuals or {})).sample


def conditions(seen: torch.Tensor, config: ImprintConfig) -> dict[str, torch.Tensor] | None:
    """SDXL's conditions besides the context (arXiv 2307.01952, section 2.2); None for SD 1.5.

    seen (B, C', h, w) -> six numbers in pixels, (B, 6): height and width of the picture before cropping, the crop's
    upper left corner, height and width after cropping; here the model's crop counts as a whole picture. There is no
    text: its pooled embedding is 0, (B, `pooled_width`), as in diffusers for SDXL's empty prompt. Both are float32,
    under diffusers' names.
    """
    if not config.unet.pooled_width:
        return None
    height, width = (side * config.latent.downscale for side in seen.shape[2:])
    sizes = torch.zeros(len(seen), 6, device=seen.device)
    sizes[:, 0::4], sizes[:, 1::4] = height, width  # Python numbers, which need no synchronisation
    return {"text_embeds": sizes.new_zeros(len(seen), config.unet.pooled_width), "time_ids": sizes}


def control_residuals(
    control: ControlNetModel, seen: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, hint: torch.Tensor
) -> dict[str, Any]:
    """What a ControlNet adds to the UNet's features, for `predict`; hint (1, 4, R, R) from `hint.control_hint`."""
    hint = hint.to(seen).expand(len(seen), -1, -1, -1)
    down, middle = control(seen, timestep, context, hint, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def build_control(config: UNetConfig) -> ControlNetModel:
    """diffusers' ControlNet of the UNet's sizes for hints of `hint.CHANNELS`, with fresh weights."""
    from diffusers import ControlNetModel

    return ControlNetModel(
        conditioning_channels=CHANNELS,
        conditioning_embedding_out_channels=(16, 32, 96, 256),
        **_encoder_options(config),
    )


def _encoder_options(config: UNetConfig) -> dict[str, Any]:
    """The options shared with a ControlNet, in diffusers' terms."""
    down = tuple("CrossAttnDownBlock2D" if layers else "DownBlock2D" for layers in config.transformer_layers)
    return {
        "in_channels": config.in_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.layers_per_block,
        "down_block_types": down,
        # diffusers takes the middle's from the last level, whose own blocks have none or as many.
        "transformer_layers_per_block": (*config.transformer_layers[:-1], config.mid_transformer_layers),
        "attention_head_dim": config.heads,  # for old reasons diffusers' name for the *number* of heads
        "cross_attention_dim": config.context_width,
        "use_linear_projection": config.linear_projections,
        "upcast_attention": config.upcast_attention,
    }


def with_background(
    noisy: torch.Tensor, background: torch.Tensor, hole: torch.Tensor, config: ImprintConfig, change: str = "both"
) -> torch.Tensor:
    """What the UNet sees of the scene, in training and at every sampling step.

    noisy, background: (B, C, h, w) latents, the background's with its hole painted grey; hole (B, 1, h, w) of 0 and 1.
    `blend` is IMPRINT's (arXiv 2403.10701, figure 2); `concat` concatenates mask and background to the noisy latent, in
    the configuration's order, followed, for a model with `changes`, by what it may change of the object: one of
    `CHANGES`. With `control` the UNet itself sees only the noisy latent.
    """
    if config.background == "blend":
        return blend_latents(noisy, background, hole)
    if config.background == "control":
        return noisy
    mask = hole if config.concat_mask == "hole" else 1 - hole
    beside = [mask, background] if config.concat_order == "mask, background" else [background, mask]
    if config.changes:
        beside += [torch.full_like(noisy[:, :1], value) for value in CHANGES[change]]
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
    change: str = "both",
    local: torch.Tensor | None = None,
    control: ControlNetModel | None = None,
    hint: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The costly part of a sampling step: -> the prediction with guidance (B, C, h, w), and the matte's logits without
    guidance (B, 2 * matte**2, h, w), both float32.

    noisy (B, C, h, w): scaled as the scheduler requires; timestep: a scalar tensor; contexts (B or, with guidance,
    2 * B, N, C'): those without an object first; the rest as in `imprint.phases.Phases.denoise`. It never synchronises
    with the device, and can be compiled as a whole.
    """
    seen = with_background(noisy, background, hole, config, change)
    seen = seen.repeat(len(contexts) // len(seen), 1, 1, 1).to(contexts.dtype)
    residuals = None if hint is None else control_residuals(control, seen, timestep, contexts, hint)
    output = predict(unet, seen, timestep, contexts, config, local, residuals)
    prediction, logits = split_matte(output.float(), config)
    if guidance != 1:
        without, with_object = prediction.chunk(2)
        prediction = torch.lerp(without, with_object, guidance)
        _, logits = logits.chunk(2)
    return prediction, logits
