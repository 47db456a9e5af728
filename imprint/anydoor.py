"""AnyDoor's released weights (arXiv 2307.09481), as a checkpoint's configuration and parts.

A latent diffusion file as those of `imprint.third_party`, but of SD 2.1-base: its UNet, a ControlNet of the UNet's
sizes that sees the background, DINOv2 under Meta's names, and one linear layer as the adapter.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .config import AdapterConfig, EncoderConfig
from .encoder import from_meta_names
from .released import Tensors

HINT = "control_model.input_hint_block.0.weight"
"""A tensor that only files with a ControlNet have."""
ENCODER = "cond_stage_model.model."
CONVENTIONS = {"surroundings": "white", "resize": "opencv", "nothing": "black"}
"""run_inference.py: the object on white, brought to 224 px by OpenCV; no object is a black picture."""

_PATCHES = 16  # along a side, of the pictures of 224 px; the file's own position embeddings are for 37
_HEAD_WIDTH = 64  # of every DINOv2 that Meta released


def encoder_config(tensors: Tensors) -> EncoderConfig:
    """The encoder's configuration, from the tensors' sizes and the authors' code."""
    width, _, patch, _ = tensors.shape(f"{ENCODER}patch_embed.proj.weight", 4)
    inner = tensors.shape(f"{ENCODER}blocks.0.mlp.w3.weight", 2)[1]
    return EncoderConfig(
        width=width,
        layers=tensors.count(f"{ENCODER}blocks."),
        heads=max(1, width // _HEAD_WIDTH),
        mlp_ratio=round(1.5 * inner / width),  # SwiGLU's width is two thirds
        swiglu=True,
        patch_size=patch,
        image_size=_PATCHES * patch,
        register_tokens=0,
        object_margin=0.1,
        several_views=False,
        **CONVENTIONS,
    )


def adapter_config(tensors: Tensors, encoder: EncoderConfig) -> AdapterConfig:
    """The configuration of its projector, one linear layer."""
    output_width, input_width = tensors.shape("cond_stage_model.projector.weight", 2)
    return AdapterConfig(
        kind="linear",
        layers=0,
        heads=1,
        input_width=input_width,
        input_tokens=encoder.tokens,
        output_width=output_width,
        output_tokens=encoder.tokens,
    )


def parts(tensors: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """`encoder`, `adapter` and `control`, the last under its LDM names."""
    control = tensors.under("control_model.")
    for kind in ("weight", "bias"):
        # cldm/cldm.py puts the hint in the place of the first layer's output; every other ControlNet adds the two.
        name = f"input_blocks.0.0.{kind}"
        control[name] = torch.zeros_like(tensors[f"control_model.{name}"])
    encoder = tensors.under(ENCODER) | {"pos_embed": _resampled(tensors[f"{ENCODER}pos_embed"])}
    adapter = {f"project.{kind}": tensors[f"cond_stage_model.projector.{kind}"] for kind in ("weight", "bias")}
    return {"encoder": from_meta_names(encoder), "adapter": adapter, "control": control}


def _resampled(embeddings: torch.Tensor) -> torch.Tensor:
    """Position embeddings (1, 1 + n * n, C) for `_PATCHES` along a side, as DINOv2's own code resamples them."""
    side = math.isqrt(embeddings.shape[1] - 1)
    if side == _PATCHES:
        return embeddings
    grid = embeddings[:, 1:].float().unflatten(1, (side, side)).movedim(-1, 1)
    scale = (_PATCHES + 0.1) / side  # its guard against rounding, which moves every value a little
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([embeddings[:, :1].float(), grid.flatten(2).mT], 1).to(embeddings)
