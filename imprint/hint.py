"""The hint for a ControlNet (AnyDoor, arXiv 2307.09481, section 3.2): a collage and a mask.

The collage is the background with the object's high frequencies, its edges in their colours on black, stretched into a
box around the hole, or at the place of a placed object. AnyDoor's ControlNet was trained on OpenCV's results, so the
arithmetic here reproduces OpenCV's, in whole steps of 8 bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .config import EncoderConfig
from .crop import Crop
from .place import is_box
from .preprocess import bounding_boxes, cut_out, resize_in_8_bits
from .views import ObjectViews

CHANNELS = 4
"""Channels of a hint: red, green, blue, and where the object goes."""

_SIDE = 256  # resolution at which edges are found
_EDGE = 50  # of 255: fainter edges are dropped
_WITHIN = 9  # a pixel counts only if the square of this size around it is all object
_COLLAGE = 1.1  # side of the collage's box relative to the hole's


def control_hint(views: ObjectViews, crop: Crop, encoder: EncoderConfig) -> torch.Tensor:
    """The hint for a crop, (1, `CHANNELS`, R, R): the collage in [-1, 1], and the mask.

    The mask is 1 where the object goes: in the collage's box if the hole is a box, else in the hole itself. It is 0
    around it and, like the collage, -1 beyond the background's border. Of several views the first is used. A placed
    object keeps its place and proportions: one whose corner is known, or whose picture has the background's size and
    whose mask has the hole's box. Raises `ImprintError` for an empty object mask.
    """
    frame = _frame_box(crop)
    box = _collage_box(crop.mask, frame)
    edges = high_frequencies(*_cutout(views, encoder))
    collage = (crop.picture * 255).round().clamp(0, 255)
    _draw_edges(collage, edges, box, _object_box(views, crop, encoder) or box)
    inside = _filled(box, crop.mask) if is_box(crop.mask[0]) else crop.mask[:, None]
    there = _filled(frame, crop.mask)
    return torch.cat([collage / 127.5 - 1, inside], 1) * there - (1 - there)


def high_frequencies(pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """An object's edges in its own colours, black elsewhere: whole numbers up to 255.

    pictures (B, 3, S, S) and masks (B, S, S): whole numbers up to 255, 255 = object -> (B, 3, S, S).
    """
    small = resize_in_8_bits(pictures, _SIDE, _SIDE)
    inside = F.interpolate(masks[:, None].double() / 255, (_SIDE, _SIDE), mode="bilinear", align_corners=False) > 0.5
    inside = -F.max_pool2d(-inside.float(), _WITHIN, 1, _WITHIN // 2)  # the border is not an edge of the object
    padded = F.pad(small, (1, 1, 1, 1), mode="reflect")
    difference, mean = small.new_tensor([-1.0, 0.0, 1.0]), small.new_tensor([1.0, 2.0, 1.0])
    slopes = [_filter(padded, *pair).abs().clamp(max=255) for pair in ((mean, difference), (difference, mean))]
    strength = ((slopes[0] + slopes[1]) / 2).round().amax(1, keepdim=True) * inside
    strength = torch.where(strength < _EDGE, 0, strength)
    return resize_in_8_bits((strength / 255 * small).floor(), *pictures.shape[2:])


def _filter(pictures: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B, C, H + 2, W + 2) -> (B, C, H, W), each channel by the product of two lines of weights."""
    kernel = (rows[:, None] * columns).expand(pictures.shape[1], 1, 3, 3)
    return F.conv2d(pictures, kernel, groups=pictures.shape[1])


def _cutout(views: ObjectViews, encoder: EncoderConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The object as prepared for the encoder (1, 3, S, S), and its mask (1, S, S): whole numbers up to 255."""
    picture, mask = views.pictures[0], views.masks[0]
    how = encoder.image_size, encoder.object_margin
    picture = cut_out(picture, mask, *how, encoder.surroundings, encoder.fit, encoder.resize)
    inside = cut_out(mask[:, None], mask, *how, "kept", encoder.fit, encoder.resize)[:, 0]
    return (picture * 255).round(), (inside * 255).round()


def _object_box(views: ObjectViews, crop: Crop, encoder: EncoderConfig) -> tuple[int, int, int, int] | None:
    """The box of the square where a placed object's cut-out lies.

    The hole's box is the object's, or that with more around it where that was too small to draw in.
    """
    placement, box = crop.placement, bounding_boxes(views.masks[0])[0].cpu()
    if views.corner is not None:
        box = box + torch.tensor(views.corner * 2)
    else:
        rows, columns = placement.area
        hole = bounding_boxes(crop.hole.mask[None])[0].cpu() + torch.tensor([rows.start, columns.start] * 2)
        is_hole = tuple((box[2:] - box[:2]).tolist()) == crop.hole.drawn and bool(
            (box[:2] >= hole[:2]).all() and (box[2:] <= hole[2:]).all()
        )
        if views.pictures[0].shape[2:] != (placement.height, placement.width) or not is_hole:
            return None
    half = float((box[2:] - box[:2]).max()) * (0.5 + encoder.object_margin)
    centre, scale = (box[:2] + box[2:]) / 2, crop.picture.shape[-1] / placement.side
    corner = torch.tensor([placement.top, placement.left])
    return tuple(((torch.cat([centre - half, centre + half]) - corner.repeat(2)) * scale).round().int().tolist())


def _draw_edges(collage: torch.Tensor, edges: torch.Tensor, box: tuple, lies: tuple) -> None:
    """Make a box of the collage black and draw the edges in it, stretched to the box `lies`; in place."""
    if lies[2] <= lies[0] or lies[3] <= lies[1]:  # of a background so narrow that the square shows no row of it
        return
    edges = resize_in_8_bits(edges, lies[2] - lies[0], lies[3] - lies[1])
    collage[:, :, box[0] : box[2], box[1] : box[3]] = 0
    start = max(box[0], lies[0]), max(box[1], lies[1])
    end = min(box[2], lies[2]), min(box[3], lies[3])
    seen = edges[:, :, start[0] - lies[0] : end[0] - lies[0], start[1] - lies[1] : end[1] - lies[1]]
    collage[:, :, start[0] : end[0], start[1] : end[1]] = seen


def _frame_box(crop: Crop) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the background's part of the square."""
    (rows, columns), scale = crop.placement.inside, crop.picture.shape[-1] / crop.placement.side
    return tuple(round(edge * scale) for edge in (rows.start, columns.start, rows.stop, columns.stop))


def _collage_box(hole: torch.Tensor, frame: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The box that the object's edges are stretched into: slightly larger than the box of a hole (1, R, R)."""
    box = bounding_boxes(hole)[0].tolist()
    starts, ends = [], []
    for axis in (0, 1):
        centre, half = (box[axis] + box[axis + 2] - 1) / 2, _COLLAGE * (box[axis + 2] - box[axis]) / 2
        starts.append(max(frame[axis], int(centre - half)))
        ends.append(min(frame[axis + 2], int(centre + half)))
    return (*starts, *ends)


def _filled(box: tuple[int, int, int, int], like: torch.Tensor) -> torch.Tensor:
    """(1, 1, R, R) of 0 and 1, 1 in the box."""
    filled = torch.zeros_like(like)[:, None]
    top, left, bottom, right = box
    filled[:, :, top:bottom, left:right] = 1
    return filled
