"""Imprint Composite Sampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import node_helpers
import torch
from comfy_api.latest import io

import nodes  # ComfyUI's own, not this package

from ..imprint.config import ImprintConfig
from ..imprint.errors import ImprintError
from ..imprint.masks import latent_hole, paint_hole
from ..imprint.placement import Placement
from .models import imprint_config
from .tensors import broadcast, fit_mask, to_bchw, to_bhwc


class ImprintCompositeSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintCompositeSampler",
            display_name="Imprint Composite Sampler",
            category="imprint/sampling",
            description="Generates the object in the masked place: crops a square around the mask, samples there at "
            "the model's own resolution, and puts it back. Follow it with Background Blend for soft edges.",
            search_aliases=["imprint sampler", "inpaint", "object insertion", "insert object", "crop and stitch"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Imprint Checkpoint."),
                io.Vae.Input("vae", tooltip="From Load Imprint Checkpoint, or any VAE of SD 1.5."),
                io.Conditioning.Input("positive", tooltip="The object, from Content Adapter."),
                io.Conditioning.Input("negative", tooltip="No object, from Content Adapter."),
                io.Image.Input(
                    "background", tooltip="The picture to put the object into. A batch gives one composite for each."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="Where the object goes: values above 0.5. Its outline steers the pose. "
                    "A mask of another size is stretched to the background.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed and inputs give the same picture.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Sampling steps."),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance: how strongly to push towards the object. 1 is off, and twice as fast.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="The sampling algorithm.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="How the noise levels are spread over the steps.",
                ),
                io.Float.Input(
                    "context",
                    default=1.6,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    tooltip="Side of the square crop over the longer side of the mask's box. "
                    "More shows the model more of the scene, and leaves fewer pixels for the object.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    advanced=True,
                    tooltip="Side in pixels at which the model sees the crop; 0 = what the checkpoint was trained at.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The whole background with the generated square in its place, hard-edged.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        positive: list,
        negative: list,
        background: torch.Tensor,
        mask: torch.Tensor,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        context: float,
        resolution: int,
    ) -> io.NodeOutput:
        config = imprint_config(model)
        _check_parts(config, vae, positive, negative)
        frames, alpha = to_bchw(background)
        frames, masks = broadcast(backgrounds=frames, masks=fit_mask(mask, frames, "mask"))
        holes = (masks > 0.5).float()
        _require_holes(holes, masks)

        placements = [
            Placement.around(hole, resolution or config.resolution, context, config.multiple) for hole in holes
        ]
        crops = torch.cat([place.extract(frame[None]) for place, frame in zip(placements, frames)])
        crop_holes = torch.cat([place.extract_mask(hole[None]) for place, hole in zip(placements, holes)])

        hole = latent_hole(crop_holes, config.latent.downscale)
        clean = vae.encode(to_bhwc(paint_hole(crops, hole, config.hole_value)))
        hole = hole.to(clean)
        latent = {"samples": clean}
        if config.background == "blend":
            latent["noise_mask"] = hole
        else:
            # This UNet was trained with noise everywhere, and has the background in channels of its own: no noise mask, and
            # an empty latent to start from, so that the first step sees noise alone.
            latent = {"samples": torch.zeros_like(clean)}
            channels = {"concat_latent_image": clean, "concat_mask": hole}
            positive, negative = (node_helpers.conditioning_set_values(each, channels) for each in (positive, negative))
        (sampled,) = nodes.common_ksampler(model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent)
        made, _ = to_bchw(vae.decode(torch.where(hole > 0, sampled["samples"], clean)))
        results = [
            place.insert(frame[None], crop[None]) for place, frame, crop in zip(placements, frames, made.to(frames))
        ]
        return io.NodeOutput(to_bhwc(torch.cat(results), alpha))


def _check_parts(config: ImprintConfig, vae: Any, positive: list, negative: list) -> None:
    if vae is None:
        raise ImprintError(
            "the VAE is empty: this checkpoint holds no autoencoder; connect Load VAE with a VAE of SD 1.5"
        )
    if vae.latent_channels != config.latent.channels:
        raise ImprintError(
            f"the VAE has {vae.latent_channels} latent channels, but the MODEL takes {config.latent.channels}; "
            "connect the VAE of Load Imprint Checkpoint"
        )
    for name, conditioning in (("positive", positive), ("negative", negative)):
        for context, _ in conditioning:
            if context.shape[-1] != config.unet.context_width:
                raise ImprintError(
                    f"the {name} conditioning has width {context.shape[-1]}, but the MODEL takes "
                    f"{config.unet.context_width}; connect the Content Adapter of the same checkpoint"
                )


def _require_holes(holes: torch.Tensor, masks: torch.Tensor) -> None:
    for index, (hole, mask) in enumerate(zip(holes, masks)):
        if not bool(hole.any()):
            raise ImprintError(
                f"mask {index + 1} of {len(masks)} has no hole: its largest value is {float(mask.max()):g}, and values "
                "above 0.5 count; paint the place for the object in white"
            )
