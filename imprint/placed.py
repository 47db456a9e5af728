"""Composites of placed objects: the object's own photo in its place, in the scene's light and with its shadow.

They take the light network alone, so that neither diffusers nor transformers is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from .crop import paste_all
from .errors import PRECISION, ImprintError, require_finite, require_same_size
from .hole import Placement
from .images import Picture, picture_profile, picture_size
from .light import Lit, relight, square_around
from .lightnet import LightNet
from .mask_reading import as_mask
from .place import PlacedObject, place_object
from .views import ObjectViews


class PlacedComposite(NamedTuple):
    """The fields of `ImprintPipelineOutput`, for a placed object."""

    images: list[Image.Image] | torch.Tensor
    placement: Placement
    alpha: torch.Tensor
    shadow: torch.Tensor
    lit: Lit


def composite_placed(
    net: LightNet,
    object_image: Picture | Sequence[Picture],
    object_mask: Picture | Sequence[Picture] | None,
    background: Picture,
    mask: Picture | None = None,
    *,
    light: float = 1.0,
    shadow: float = 1.0,
    softness: float = 0.0,
    light_from: str | float = "auto",
    blend_mask: Picture | None = None,
    **where: Any,
) -> PlacedComposite:
    """Put an object's photo into a background and light it: `ImprintPipeline.__call__` where the model draws nothing.

    where: as `place_object` takes it. Raises `ImprintError` for input that cannot be used.
    """
    views, hole = read_object_and_hole(object_image, object_mask, background, mask)
    placed = place_object(views, picture_size(background), None if hole is None else hole[0], **where)
    return light_placed(net, background, placed, light, shadow, softness, light_from, blend_mask)


def read_object_and_hole(
    object_image: Picture | Sequence[Picture],
    object_mask: Picture | Sequence[Picture] | None,
    background: Picture,
    mask: Picture | None,
) -> tuple[ObjectViews, torch.Tensor | None]:
    """The object in the background's colours, and the mask (1, H, W) if there is one.

    Raises `ImprintError` for pictures that cannot be used or whose sizes differ.
    """
    views = ObjectViews.of(object_image, object_mask, picture_profile(background))
    size = picture_size(background)
    hole = None if mask is None else as_mask(mask)
    if hole is not None:
        require_same_size("the background", size, "its mask", hole.shape[1:])
    return views, hole


@torch.no_grad()
def light_placed(
    net: LightNet,
    background: Picture,
    placed: PlacedObject,
    light: float = 1.0,
    shadow: float = 1.0,
    softness: float = 0.0,
    light_from: str | float = "auto",
    blend_mask: Picture | None = None,
    num_results: int = 1,
    output_type: str = "pil",
) -> PlacedComposite:
    """Composites of an object in its place; arguments and errors as for `Finishing.finish_placed`."""
    if output_type == "latent":
        raise ImprintError("a placed object is never in the model's latents; give output_type 'pil' or 'pt'")
    square = square_around(net, placed)
    lit = relight(net, background, placed, light, shadow, softness, light_from)
    if blend_mask is not None:
        blend = as_mask(blend_mask)
        require_same_size("the background", placed.size, "its blend mask", blend.shape[1:])
        share = blend[(slice(None), *square.area)][None]
        if not bool((lit.alpha * share).any()):
            raise ImprintError(
                "the blend mask is empty where the object lies, so that nothing of it would be seen; paint it "
                "white there, or leave it out"
            )
        lit = lit.through(share)
    part = require_finite(lit.composite(), "the object in the scene's light", PRECISION)
    images = paste_all(background, part.expand(num_results, -1, -1, -1), square.area, output_type)
    alpha, lost = (square.within(square.area).extract(each)[:, 0] for each in (lit.alpha, lit.shadow))
    return PlacedComposite(images, square, alpha, lost, lit)
