"""The nodes' inputs for the object: its pictures and masks."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..imprint.errors import ImprintError
from ..imprint.mask_reading import full_strength
from ..imprint.masks import what_is_white
from ..imprint.views import ObjectViews
from .tensors import fit_mask, to_bchw


def marks_input(hint: str = "") -> io.Combo.Input:
    """The widget that says what is white in the object's mask. hint: a last sentence of its tooltip."""
    return io.Combo.Input(
        "mask_marks",
        options=["auto", "background", "object"],
        default="auto",
        advanced=True,
        tooltip="What is white in the mask. auto (default): decided by the mask's border, and shown on this node. "
        "background: the MASK of Load Image for a cut-out, white where the picture is transparent. object: a mask "
        f"painted over the object, or a segmentation. {hint}".rstrip(),
    )


def object_views(image: torch.Tensor, mask: torch.Tensor, mask_marks: str) -> tuple[ObjectViews, str]:
    """IMAGE and MASK -> the views of an object, and what is white in the mask: mask_marks, or the decision of "auto".

    Raises `ImprintError` for a mask without an object, and for differing counts.
    """
    views, _ = to_bchw(image)
    masks = fit_mask(mask, views, "object's mask")
    if mask_marks == "auto":
        mask_marks = what_is_white(masks)
    if mask_marks == "background":
        masks = 1 - masks
    for index, each in enumerate(masks):
        if not bool(each.any()):
            reason = "is white everywhere" if mask_marks == "background" else "is empty"
            other = "object" if mask_marks == "background" else "background"
            raise ImprintError(
                f"the object's mask {index + 1} of {len(masks)} {reason}, so that no object is left; "
                f"connect the object's mask, or set mask_marks to '{other}' if it is the other way round"
            )
    if len(masks) not in (1, len(views)):
        raise ImprintError(
            f"got {len(masks)} masks for {len(views)} picture(s) of the object; give one mask, or one per picture"
        )
    masks = full_strength(masks)
    return ObjectViews(views.split(1), masks.expand(len(views), -1, -1).split(1)), mask_marks
