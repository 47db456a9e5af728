"""Background Blend."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..imprint.blending import composite, feather, match_colour
from ..imprint.errors import ImprintError
from .tensors import broadcast, fit_mask, to_bchw, to_bhwc


class ImprintBackgroundBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintBackgroundBlend",
            display_name="Background Blend",
            category="imprint/image",
            description="Puts the generated picture into the background through a soft mask. "
            "Beyond the soft edge the background's pixels are unchanged, bit for bit.",
            search_aliases=["paste back", "composite", "feather", "seamless", "imprint blend"],
            inputs=[
                io.Image.Input("background", tooltip="The untouched picture. Its transparency, if any, is kept."),
                io.Image.Input(
                    "generated", tooltip="The result of Imprint Composite Sampler: a picture of the background's size."
                ),
                io.Mask.Input("mask", tooltip="The mask that was sampled with. Values above 0.5 are the hole."),
                io.Int.Input(
                    "feather_out",
                    default=4,
                    min=0,
                    max=512,
                    tooltip="Width in pixels of the soft edge outside the mask. Beyond it nothing changes.",
                ),
                io.Int.Input(
                    "feather_in", default=0, min=0, max=512, tooltip="Width in pixels of the soft edge within the mask."
                ),
                io.Float.Input(
                    "colour_match",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the generated colours are moved to agree with the background's "
                    "on a ring just outside the mask; 0 is off.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The finished picture, of the background's size.")],
        )

    @classmethod
    def execute(
        cls,
        background: torch.Tensor,
        generated: torch.Tensor,
        mask: torch.Tensor,
        feather_out: int,
        feather_in: int,
        colour_match: float,
    ) -> io.NodeOutput:
        frames, alpha = to_bchw(background)
        made, _ = to_bchw(generated)
        if made.shape[2:] != frames.shape[2:]:
            raise ImprintError(
                f"the generated picture is {made.shape[3]}x{made.shape[2]}, but the background {frames.shape[3]}x"
                f"{frames.shape[2]}; connect the whole frame that Imprint Composite Sampler made from this background"
            )
        frames, made, masks = broadcast(backgrounds=frames, generated=made, masks=fit_mask(mask, frames, "mask"))
        if colour_match:
            made = match_colour(made, frames, masks, strength=colour_match)
        return io.NodeOutput(to_bhwc(composite(frames, made, feather(masks, feather_in, feather_out)), alpha))
