"""The object's pictures and masks, as the nodes take them."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..imprint.errors import ImprintError
from ..imprint.images import full_strength
from ..imprint.views import ObjectViews
from .tensors import fit_mask, to_bchw


def marks_input(hint: str = "", auto: bool = False) -> io.Combo.Input:
    """The widget that says which way round the object's mask is. hint: a last sentence of its tooltip.

    auto: whether it may be left to `what_is_white`, and is by default.
    """
    first = "auto (default): seen from the mask's border, and said on this node. " if auto else ""
    default = "" if auto else " (default)"
    return io.Combo.Input(
        "mask_marks",
        options=["auto"] * auto + ["background", "object"],
        default="auto" if auto else "background",
        advanced=auto or None,
        tooltip=f"What is white in the mask. {first}background{default}: the MASK of Load Image for a cut-out, white where "
        f"the picture is transparent. object: a mask painted over the object, or a segmentation. {hint}".rstrip(),
    )


def what_is_white(masks: torch.Tensor) -> str:
    """Of an object's masks (B, H, W): "background" where most of their border is white, else "object"."""
    border = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], 1)
    return "background" if float(border.mean()) > 0.5 else "object"


def object_views(image: torch.Tensor, mask: torch.Tensor, mask_marks: str) -> ObjectViews:
    """IMAGE and MASK -> the views of an object.

    Raises `ImprintError` for a mask that leaves no object, and for counts that differ.
    """
    views, _ = to_bchw(image)
    masks = fit_mask(mask, views, "object's mask")
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
    return ObjectViews(views.split(1), masks.expand(len(views), -1, -1).split(1))
