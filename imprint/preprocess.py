"""The ID encoder's input: the object cut out on black, tight, square and normalised.

One function, `prepare_object`, serves training, pipeline and node, so that a checkpoint sees at inference what it was
trained on. Tensors are BCHW; masks BHW with 1 = object.
"""

from __future__ import annotations

import math

import torch

from .config import EncoderConfig
from .errors import ImprintError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def bounding_boxes(masks: torch.Tensor, threshold: float = 0.5, what: str = "the mask") -> torch.Tensor:
    """(B, H, W) -> (B, 4) int64 boxes (top, left, bottom, right) in pixels, the last two exclusive.

    Boxes bound what is above the threshold; where nothing is, what is above 0. Raises `ImprintError` for an empty mask,
    which it calls `what`.
    """
    rows, columns = masks.amax(2), masks.amax(1)  # nothing of the frame's size is made: it may have 67 megapixels
    limit = (rows.amax(1, keepdim=True) > threshold) * threshold
    rows, columns = rows > limit, columns > limit
    if not bool(rows.any(1).all()):
        raise ImprintError(
            f"{what} is empty (size {masks.shape[-1]}x{masks.shape[-2]}, largest value {float(masks.max()):g}); "
            "draw the region in white, 1, on black"
        )
    edges = []
    for line in (rows, columns):
        first = line.int().argmax(1)
        last = line.shape[1] - line.flip(1).int().argmax(1)
        edges.append((first, last))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], 1)


def resample(images: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a box out of each image and resize it, antialiased, to size x size; black beyond the image's border.

    images (B, C, H, W), boxes (B, 4) in pixels, fractions and places outside the image allowed. A triangle filter as wide
    as the reduction, as in Pillow's BILINEAR; written as two matrix products, so that a batch of different boxes is one
    call on any device.
    """
    boxes = boxes.to(images)
    rows = _filter(boxes[:, 0], boxes[:, 2], images.shape[2], size)
    columns = _filter(boxes[:, 1], boxes[:, 3], images.shape[3], size)
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _filter(start: torch.Tensor, end: torch.Tensor, length: int, size: int) -> torch.Tensor:
    """(B, size, length): each output pixel's weights over the input pixels of one axis."""
    scale = ((end - start) / size)[:, None]
    support = scale.clamp(min=1)
    centre = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * scale - 0.5
    pixels = torch.arange(length, device=start.device)
    weights = (1 - (pixels - centre[..., None]).abs() / support[..., None]).clamp(min=0)
    # Normalised over the endless pixel grid and not the image alone: beyond the border there is black, not nothing.
    reach = math.ceil(float(support.max())) + 1
    taps = torch.arange(-reach, reach + 1, device=start.device)
    total = (1 - (taps - centre.frac()[..., None]).abs() / support[..., None]).clamp(min=0).sum(-1)
    return weights / total[..., None]


def cut_out(images: torch.Tensor, masks: torch.Tensor, size: int, margin: float) -> torch.Tensor:
    """The object on black, centred in a square with a margin: (B, 3, H, W) in [0, 1], (B, H, W) -> (B, 3, size, size)."""
    boxes = bounding_boxes(masks, what="the object's mask").to(images)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) * (0.5 + margin)
    return resample(images * masks[:, None].to(images), torch.cat([centre - half, centre + half], 1), size).clamp(0, 1)


def normalise(cutouts: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> ImageNet-normalised, as DINOv2 expects."""
    mean, std = (cutouts.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (cutouts - mean) / std


def prepare_object(
    images: torch.Tensor, masks: torch.Tensor, config: EncoderConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder's input and the cut-out it shows.

    images (B, 3, H, W) in [0, 1], masks (B, H, W) in [0, 1] with 1 = object (soft edges are kept) -> normalised pixel
    values and the cut-out in [0, 1], both (B, 3, S, S) with S = `config.image_size`. Raises `ImprintError` for an empty
    mask, sizes that differ, or values that are not finite.
    """
    if images.ndim != 4 or masks.ndim != 3 or images.shape[1] != 3:
        raise ImprintError(
            f"the object's picture has shape {tuple(images.shape)} and its mask {tuple(masks.shape)}; "
            "expected (B, 3, H, W) and (B, H, W)"
        )
    if images.shape[0] != masks.shape[0] or images.shape[2:] != masks.shape[1:]:
        raise ImprintError(
            f"the object's {images.shape[0]} picture(s) of {images.shape[3]}x{images.shape[2]} and its {masks.shape[0]} "
            f"mask(s) of {masks.shape[2]}x{masks.shape[1]} differ; give one mask of the same size for every picture"
        )
    cutout = cut_out(images, masks, config.image_size, config.object_margin)
    if not bool(cutout.isfinite().all()):
        raise ImprintError("the object's picture holds values that are not finite; give numbers in [0, 1]")
    return normalise(cutout), cutout
