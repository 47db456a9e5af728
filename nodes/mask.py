"""Mask Coarsener."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..imprint.masks import LEVELS, coarsen
from .tensors import listed_masks


class ImprintMaskCoarsener(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintMaskCoarsener",
            display_name="Mask Coarsener",
            category="imprint/mask",
            description="Makes a mask as coarse as the ones the model was trained with, from outline to box.",
            search_aliases=["coarse mask", "grow mask", "bounding box mask", "imprint mask"],
            is_output_node=True,  # the front end shows previews of output nodes only
            inputs=[
                io.Mask.Input(
                    "mask", tooltip="White where the object shall be. Each mask of a batch is treated on its own."
                ),
                io.Combo.Input(
                    "level",
                    options=list(LEVELS),
                    default="box",
                    tooltip="The closer to the outline, the more the mask decides the object's pose; "
                    "a box leaves it to the model, with room for a shadow. Each level contains the one before it.",
                ),
                io.Int.Input(
                    "margin",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Pixels added to every side of the mask before it is made coarse.",
                ),
                io.Int.Input(
                    "min_size",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="The result reaches at least this many pixels in width and height; 0 is off.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="The coarse mask, 0 and 1 only.")],
        )

    @classmethod
    def execute(cls, mask: torch.Tensor, level: str, margin: int, min_size: int) -> io.NodeOutput:
        coarse = coarsen(listed_masks(mask, "mask"), level, margin, min_size)
        return io.NodeOutput(coarse, ui=ui.PreviewMask(coarse, cls=cls))
