"""Show Hint."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..imprint.errors import ImprintError
from ..imprint.mask_reading import full_strength
from .control import hints
from .sampling import context_input, crops_of, resolution_input
from .tensors import broadcast, fit_mask, to_bchw, to_bhwc
from .unet import imprint_config


class ImprintShowHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintShowHint",
            display_name="Imprint: Show Hint",
            category="imprint/sampling",
            description="Shows what a checkpoint with a ControlNet, such as AnyDoor's, is shown of the scene: the crop "
            "with a sketch of the object, and where the object goes.",
            search_aliases=["anydoor", "collage", "high frequency map", "controlnet hint", "sobel"],
            is_output_node=True,  # the front end shows previews of output nodes only
            inputs=[
                io.Model.Input("model", tooltip="From Imprint: Load Checkpoint, of a checkpoint with a ControlNet."),
                io.Conditioning.Input("positive", tooltip="The object, from Condition on Object."),
                io.Image.Input("background", tooltip="As on Draw Object."),
                io.Mask.Input("mask", tooltip="As on Draw Object: a box, or an outline that the object is to fill."),
                context_input(
                    2.0,
                    "As on Draw Object: side of the square crop over the longer side of the mask's box; default 2.",
                ),
                resolution_input(
                    "As on Draw Object: side in pixels at which the model sees the crop. 0 (default): the "
                    "checkpoint's own.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="collage",
                    tooltip="The crop with the object's edges, in their colours on black, in a box around the mask.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Where the object goes: that box, or the mask itself where it is an outline.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list,
        background: torch.Tensor,
        mask: torch.Tensor,
        context: float = 2.0,
        resolution: int = 0,
    ) -> io.NodeOutput:
        config = imprint_config(model)
        if config.background != "control":
            raise ImprintError(
                "this checkpoint has no ControlNet and therefore no hint; load one that has, such as AnyDoor's"
            )
        frames, _ = to_bchw(background)
        frames, masks = broadcast(backgrounds=frames, masks=full_strength(fit_mask(mask, frames, "mask")))
        shown = hints(config, positive, crops_of(frames, masks, config, resolution or None, context))
        collage = to_bhwc(shown[:, :3] / 2 + 0.5)
        return io.NodeOutput(collage, shown[:, 3].clamp(min=0), ui=ui.PreviewImage(collage, cls=cls))
