"""An object's photo in its place in the frame, which the light stage works on.

`PlacedObject` is the object in its place, however it got there: from a picture of the frame's size with transparency,
by position, height, rotation and mirroring, or fitted into a box with its own proportions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .crop import inner
from .errors import ImprintError, require_one_of, require_same_size
from .images import Picture
from .mask_reading import full_strength
from .masks import what_is_white
from .positions import ACROSS, DOWN, FITS, Align, Place
from .preprocess import bounding_boxes
from .sprites import clean_edge, cropped, is_soft, reduced, resized, turned, without_fringe
from .views import ObjectViews, read_masks

STANDING = 0.98
"""A hole that covers at least this fraction of its bounding box is a box; any other is an outline."""
LARGEST = 2**26
"""Pixels, height times width, to which an object may be enlarged however small the frame is."""
SMALLEST = 8
"""Pixels: an object whose longer side is shorter can hardly be seen, so its place is probably a mistake."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlacedObject:
    """An object in a frame of `size` (height, width).

    colours (3, h, w) in [0, 1], not premultiplied; alpha (h, w) in [0, 1]. `corner` (top, left) is where their upper
    left corner lies in the frame; they lie entirely inside it.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    colours: torch.Tensor
    alpha: torch.Tensor

    @classmethod
    def from_layer(
        cls,
        colours: torch.Tensor,
        alpha: torch.Tensor,
        corner: tuple[int, int] = (0, 0),
        size: tuple[int, int] | None = None,
    ) -> PlacedObject:
        """From colours (3, h, w) and alpha (h, w) of a picture with transparency: of the frame's size or, with `size`,
        of a part of the frame whose upper left corner is at `corner`.

        Raises `ImprintError` if nothing is visible.
        """
        if not bool(alpha.max() > 0):
            raise ImprintError(
                "the placed object is transparent everywhere; give a picture in which the object can be seen"
            )
        top, left, bottom, right = bounding_boxes(alpha[None], threshold=0)[0].tolist()
        part = slice(top, bottom), slice(left, right)
        size, corner = size or tuple(alpha.shape), (corner[0] + top, corner[1] + left)
        return cls(size, corner, *clean_edge(colours[(slice(None), *part)], alpha[part]))

    @classmethod
    def put(cls, picture: torch.Tensor, mask: torch.Tensor, place: Place, size: tuple[int, int]) -> PlacedObject:
        """An object's photo (3, h, w) with its mask (h, w), at a place of a frame of `size` (height, width).

        Parts beyond the frame are cut off. Raises `ImprintError` if nothing is left, the mask is empty, or the object
        would be many times larger than the frame.
        """
        colours, alpha = cropped(picture, mask)
        factor = int(min(alpha.shape) / (2 * max(1, place.height)))
        soft = is_soft(alpha)
        colours, alpha = reduced(colours, alpha, factor, soft) if factor > 1 else clean_edge(colours, alpha)
        if soft:
            colours = without_fringe(colours, alpha)
        colours, alpha = turned(colours, alpha, place.rotate, place.flip)
        high, wide = place.height, alpha.shape[1] * (place.height / alpha.shape[0])
        if high * wide > max(LARGEST, 4 * size[0] * size[1]):
            raise ImprintError(
                f"the object would be {wide:.7g}x{high:.7g} pixels, many times the {size[1]}x{size[0]} background; "
                "give a smaller height, or only the visible part of its photo"
            )
        high, wide = max(1, round(high)), max(1, round(wide))
        if max(high, wide) < SMALLEST:
            _log.warning(
                "the object will be only %dx%d pixels; if that is wrong, give a larger box or height", wide, high
            )
        colours, alpha = resized(colours, alpha, high, wide)
        top, left = round(place.y) - high, round(place.x - wide / 2)
        above, before = max(0, -top), max(0, -left)
        below, after = min(high, size[0] - top), min(wide, size[1] - left)
        if below <= above or after <= before or not bool((alpha[above:below, before:after] > 0).any()):
            raise ImprintError(
                f"the object would lie outside the {size[1]}x{size[0]} background: {wide}x{high} pixels, standing at "
                f"{place.x:g},{place.y:g}; give a place within it"
            )
        part = slice(above, below), slice(before, after)
        return cls(size, (top + above, left + before), colours[(slice(None), *part)], alpha[part])

    @classmethod
    def aligned(
        cls,
        picture: torch.Tensor,
        mask: torch.Tensor,
        box: tuple[int, int, int, int],
        align: Align,
        size: tuple[int, int],
        rotate: float | None = 0.0,
        flip: bool = False,
    ) -> PlacedObject:
        """An object's photo (3, h, w) with its mask (h, w), in a box (top, left, bottom, right) of a frame of `size`.

        rotate, flip: as in `fit_into`. Raises `ImprintError` as `fit_into` does.
        """
        top, left, bottom, right = box = align.within(box)
        put = cls.put(picture, mask, fit_into(picture, mask, box, rotate, flip, align.height), size)
        high, wide = put.alpha.shape
        down, across = round((bottom - top - high) * DOWN[align.y]), round((right - left - wide) * ACROSS[align.x])
        return replace(put, corner=(top + down, left + across))

    @property
    def area(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that it covers."""
        (top, left), (high, wide) = self.corner, self.alpha.shape
        return slice(top, top + high), slice(left, left + wide)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right in the frame."""
        rows, columns = self.area
        return rows.start, columns.start, rows.stop, columns.stop

    @property
    def view(self) -> ObjectViews:
        """The object as a view, cropped from the frame."""
        return ObjectViews((self.colours[None],), (self.alpha[None],), self.corner)

    @property
    def hole(self) -> torch.Tensor:
        """(1, H, W) of 0 and 1: the frame, 1 in the object's box."""
        hole = self.alpha.new_zeros(1, *self.size)
        hole[(0, *self.area)] = 1
        return hole

    @property
    def outline(self) -> torch.Tensor:
        """(1, H, W) in [0, 1]: the frame, the object's alpha in its box, at its `full_strength`."""
        outline = self.alpha.new_zeros(1, *self.size)
        outline[(slice(None), *self.area)] = full_strength(self.alpha[None])
        return outline

    def within(self, area: tuple[slice, slice]) -> tuple[torch.Tensor, torch.Tensor]:
        """Colours (1, 3, h, w) and alpha (1, 1, h, w) in a part of the frame that contains the object; 0 around it."""
        rows, columns = area
        colours = self.colours.new_zeros(1, 3, rows.stop - rows.start, columns.stop - columns.start)
        alpha = torch.zeros_like(colours[:, :1])
        part = inner(area, self.area)
        colours[(0, slice(None), *part)], alpha[(0, 0, *part)] = self.colours, self.alpha
        return colours, alpha


def fit_into(
    picture: torch.Tensor,
    mask: torch.Tensor,
    box: tuple[int, int, int, int],
    rotate: float | None = 0.0,
    flip: bool = False,
    height: float | None = None,
) -> Place:
    """The place of an object in a box (top, left, bottom, right): as large as the box allows, with the object's own
    proportions, centred on the box's lower edge.

    picture (3, h, w), mask (h, w); rotate: degrees clockwise, or None for a quarter turn if the object then fills more
    of the box; height: pixels, instead of as many as the box allows. Raises `ImprintError` for an empty mask, a
    rotation that is not a finite number, and a height that the box does not allow.
    """
    top, left, bottom, right = box
    high, wide = bottom - top, right - left
    require_turn(rotate)
    if rotate is None:
        own_high, own_wide = _shape(mask, 0.0, flip)
        upright = min(high / own_high, wide / own_wide)
        lying = min(high / own_wide, wide / own_high)
        rotate = 90.0 if lying > upright * 1.05 else 0.0
    own_high, own_wide = _shape(mask, rotate, flip)
    scale = min(high / own_high, wide / own_wide)
    most = math.floor(own_high * scale + 1e-6) or own_high * scale  # whole pixels never leave the box
    if height is not None and height > most:
        raise ImprintError(
            f"height is {height:g}, but in the {wide}x{high} pixels where it is aligned the object can have {most:g}; "
            "give a smaller height or inset, or leave height out"
        )
    return Place((left + right) / 2, bottom, most if height is None else height, rotate, flip)


def place_object(
    views: ObjectViews,
    size: tuple[int, int],
    mask: torch.Tensor | None = None,
    *,
    placed: bool = False,
    place: Place | None = None,
    align: Align | None = None,
    fit: str = "contain",
    rotate: float | Literal["auto"] = 0.0,
    flip: bool = False,
) -> PlacedObject | None:
    """The object in its place in a frame of `size` (height, width), with a clean edge; None if the model is to draw it.

    Exactly one of four says where. placed: the first view has the frame's size, with the object already in its place.
    place: a `Place`. mask (H, W), above 0.5: if it is a box and `fit` is not "fill", the object is fitted into it
    (`fit_into`), aligned by `align` if given; with an outline, or "fill", the model draws it. align without a mask: the
    whole frame is the box. rotate, flip: for a box, as in `fit_into`; "auto" for the rotation that fills it best.
    Raises `ImprintError` for none or several of the four, and as `PlacedObject`'s constructors do.
    """
    _check_request(mask is not None, placed, place, align, fit, bool(rotate or flip))
    picture, own = views.pictures[0][0], views.masks[0][0]
    if not placed and any(what_is_white(each) == "background" for each in views.masks):
        _log.warning("the object's mask is white along most of its border; if that is not the object, invert the mask")
    if placed:
        require_same_size("the placed object", tuple(own.shape), "the background", size)
        return PlacedObject.from_layer(picture, own)
    if place:
        return PlacedObject.put(picture, own, place, size)
    if fit == "fill" or _is_outline(mask):
        if rotate or flip or align:
            raise ImprintError(
                "rotate, flip and align are for an object that is fitted into a box with its own proportions; here the "
                "mask's outline, or fit 'fill', says how it lies: draw a box and leave fit out, or leave them out"
            )
        if what_is_white(mask[None]) == "background" and _is_outline(mask):
            _log.warning(
                "the mask is white along most of its border, where the object would go; if wrong, invert the mask"
            )
        return None
    box = (0, 0, *size) if mask is None else bounding_boxes(mask[None])[0].tolist()
    turn = None if rotate == "auto" else rotate
    if align:
        return PlacedObject.aligned(picture, own, box, align, size, turn, flip)
    return PlacedObject.put(picture, own, fit_into(picture, own, box, turn, flip), size)


def _check_request(
    has_mask: bool, placed: bool, place: Place | None, align: Align | None, fit: str, turns: bool
) -> None:
    """Raise `ImprintError` unless these arguments of `place_object` go together; turns: rotated or mirrored."""
    require_one_of("fit", fit, FITS)
    for name, value, kind in (("place", place, Place), ("align", align, Align)):
        if value is not None and not isinstance(value, kind):
            raise ImprintError(f"{name} is {value!r}; it must be an imprint.place.{kind.__name__}")
    ways = {"placed": placed, "place": place, "align": align and not has_mask, "mask": has_mask}
    given = [name for name, used in ways.items() if used]
    if len(given) != 1:
        raise ImprintError(
            f"got {' and '.join(given) or 'nothing'} to say where the object goes; give one of placed (a picture of "
            "the background's size), place (position and height), align (in the whole background) or mask"
        )
    if fit == "fill" and (placed or place):
        raise ImprintError(
            f"fit is fill, with which the model draws into a mask, but {given[0]} says where the object goes; leave "
            "fit out, use outline, with which it draws the placed object, or give a mask"
        )
    if (placed or place) and turns:
        raise ImprintError(
            "rotate and flip are for an object that is fitted into a box; a placed object stays as it is, and a place "
            "has its own"
        )


def is_drawn(mask: torch.Tensor | None, fit: str = "contain", change: str | None = None) -> bool:
    """Whether the model draws the object, instead of its photo being placed and lit.

    mask (H, W), above 0.5: where it goes, None if that is said otherwise; fit: as for `place_object`; change: as for
    `ImprintPipeline.__call__`.
    """
    return change is not None or fit != "contain" or _is_outline(mask)


def require_turn(rotate: float | None) -> None:
    """Raise `ImprintError` unless `rotate` is a finite number of degrees, or None."""
    if rotate is not None and (not isinstance(rotate, (int, float)) or not math.isfinite(rotate)):
        raise ImprintError(f"rotate is {rotate!r}; it must be a finite number of degrees, or 'auto' in a box")


def object_height(
    images: Picture | Sequence[Picture],
    masks: Picture | Sequence[Picture] | None,
    rotate: float = 0.0,
    flip: bool = False,
) -> int:
    """The object's height in its own photo, in pixels, after rotation; images, masks: as for `ObjectViews.of`."""
    return _shape(read_masks(images, masks)[0][0], rotate, flip)[0]


def is_box(hole: torch.Tensor) -> bool:
    """Whether a hole (H, W), above 0.5, is a box rather than an outline or empty."""
    if not bool(hole.max() > 0.5):
        return False
    top, left, bottom, right = bounding_boxes(hole[None])[0].tolist()
    return float((hole[top:bottom, left:right] > 0.5).float().mean()) >= STANDING


def _is_outline(mask: torch.Tensor | None) -> bool:
    return mask is not None and not is_box(mask)


def _shape(mask: torch.Tensor, rotate: float, flip: bool) -> tuple[int, int]:
    """Height and width of the object's box after rotation."""
    no_colours = mask.new_empty(0, *mask.shape)
    return tuple(turned(no_colours, mask, rotate, flip)[1].shape)
