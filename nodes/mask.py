"""Coarsen Mask."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..imprint.mask_reading import full_strength
from ..imprint.masks import LEVELS, coarsen, enlarge_boxes, grow_boxes
from ..imprint.preprocess import bounding_boxes
from .messages import tell
from .tensors import broadcast, fit_mask, listed_masks, to_bchw, to_bhwc

_TINT = (1.0, 0.25, 0.1)  # of the mask in the preview; rarely the colour of a background


class ImprintMaskCoarsener(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintMaskCoarsener",
            display_name="Imprint: Coarsen Mask",
            category="imprint/mask",
            description="Makes a mask as coarse as the ones the model was trained with, from outline to box.",
            search_aliases=[
                "mask coarsener",
                "coarse mask",
                "grow mask",
                "expand mask",
                "dilate mask",
                "bounding box mask",
                "mask to box",
                "shadow mask",
                "imprint mask",
            ],
            is_output_node=True,  # the front end shows previews of output nodes only
            inputs=[
                io.Mask.Input(
                    "mask",
                    tooltip="White where the object goes. Each mask of a batch is treated on its own. Values above 0.5 "
                    "count; in a fainter mask, those above half of its brightest.",
                ),
                io.Combo.Input(
                    "level",
                    options=list(LEVELS),
                    default="box",
                    tooltip="How closely the mask is followed; each level contains the one before it. precise: your "
                    "own outline decides shape and pose. fine, coarse: swollen and rounded. box (default): the model "
                    "decides, with room for a shadow. Take precise for a drawn silhouette, box for a quick scribble.",
                ),
                io.Int.Input(
                    "margin",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Pixels added to every side of the mask before it is made coarse, 0 to 1024; default 0. "
                    "Raise it when the object is cut off or looks squeezed.",
                ),
                io.Int.Input(
                    "min_size",
                    default=32,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="A mask smaller than this many pixels in width or height is enlarged around its centre, "
                    "and this node says so; 0 is off. Default 32: in less, hardly any object can be seen.",
                ),
                io.Int.Input(
                    "shadow_room",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    tooltip="Further pixels added at the bottom of the mask, where a shadow on the ground falls, 0 to "
                    "1024; default 0. A tenth to a fifth of the object's height is a good start.",
                ),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="Only for the picture on this node: shows the mask over the background, so that you see "
                    "where the object will stand. The result does not change.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The coarse mask, 0 and 1 only. For both Draw Object and Blend into Background.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        mask: torch.Tensor,
        level: str,
        margin: int,
        min_size: int,
        shadow_room: int = 0,
        background: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        masks = full_strength(listed_masks(mask, "mask"))
        coarse = coarsen(masks, level, margin, min_size, shadow_room)
        tell(cls, _sizes(masks, coarse, margin, min_size, shadow_room))
        if background is None:
            return io.NodeOutput(coarse, ui=ui.PreviewMask(coarse, cls=cls))
        return io.NodeOutput(coarse, ui=ui.PreviewImage(_over(coarse, background), cls=cls))


def _sizes(masks: torch.Tensor, coarse: torch.Tensor, margin: int, min_size: int, shadow_room: int) -> str:
    """One line for each mask: how large it was drawn, and how large it is now."""
    drawn, made, frame = bounding_boxes(masks), bounding_boxes(coarse), masks.shape[1:]
    grown = grow_boxes(drawn, margin, shadow_room, *frame)
    enlarged = (enlarge_boxes(grown, min_size, *frame) != grown).any(1)
    lines = []
    for before, after, small in zip(drawn.tolist(), made.tolist(), enlarged.tolist()):
        (old_width, old_height), (width, height) = _extent(before), _extent(after)
        reason = f": smaller than min_size {min_size}, enlarged around its centre" if small else ""
        lines.append(f"{old_width}x{old_height} px drawn, {width}x{height} px now{reason}")
    return "\n".join(lines)


def _extent(box: list[int]) -> tuple[int, int]:
    top, left, bottom, right = box
    return right - left, bottom - top


def _over(masks: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """The masks as a tint over the background (IMAGE)."""
    frames, _ = to_bchw(background)
    frames, masks = broadcast(backgrounds=frames, masks=fit_mask(masks, frames, "mask"))
    return to_bhwc(torch.lerp(frames, frames.new_tensor(_TINT)[:, None, None], 0.5 * masks[:, None]))
