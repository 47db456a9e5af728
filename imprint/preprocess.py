"""The ID encoder's input: the object cut out as its configuration says, tight, square and normalised.

One function, `prepare_object`, serves training, pipeline and node, so that a checkpoint sees at inference what it was
trained on. Tensors are BCHW; masks BHW with 1 = object.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .config import EncoderConfig
from .errors import ImprintError, require_finite

MEAN_AND_STD = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "dinov3": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Of colours in [0, 1], as each kind of encoder was trained: ImageNet's, and those of CLIP's own data."""


def bounding_boxes(masks: torch.Tensor, threshold: float = 0.5, what: str = "the mask") -> torch.Tensor:
    """(B, H, W) -> (B, 4) int64 boxes (top, left, bottom, right) in pixels, the last two exclusive.

    Boxes bound the values above the threshold or, if there are none, those above 0. Raises `ImprintError` for an empty
    mask, which the message calls `what`.
    """
    rows, columns = masks.amax(2), masks.amax(1)  # no copy of the frame's size is made: it may have 67 megapixels
    limit = (rows.amax(1, keepdim=True) > threshold) * threshold
    rows, columns = rows > limit, columns > limit
    if not bool(rows.any(1).all()):
        raise ImprintError(
            f"{what} is empty (size {masks.shape[-1]}x{masks.shape[-2]}, largest value {float(masks.max()):g}); "
            "draw the region in white, 1, on black"
        )
    return edges(rows, columns)


def edges(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Which rows (B, H) and columns (B, W), bool, the boxes contain -> the boxes, as `bounding_boxes` gives them.

    If there are none, the box is the whole picture.
    """
    (top, bottom), (left, right) = (
        (line.int().argmax(1), line.shape[1] - line.flip(1).int().argmax(1)) for line in (rows, columns)
    )
    return torch.stack([top, left, bottom, right], 1)


def resample(
    images: torch.Tensor, boxes: torch.Tensor, size: int, cropped: bool = False, corner: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """Cut a box out of each image and resize it, antialiased, to size x size; black beyond the image's border.

    images (B, C, H, W), boxes (B, 4) in pixels, which may be fractional and reach outside the image. cropped: nothing
    beyond the box or the image contributes to the result, as if the image had been cropped first. corner: row and
    column of the images' first pixel in the boxes' coordinates. The filter is a triangle as wide as the reduction, as
    in Pillow's BILINEAR; it is written as two matrix products, so that a batch of different boxes is one call on any
    device.
    """
    boxes = boxes.to(images)
    rows, columns = (
        _filter(boxes[:, axis], boxes[:, axis + 2], range(first, first + length), size, cropped)
        for axis, first, length in zip((0, 1), corner, images.shape[2:])
    )
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _filter(start: torch.Tensor, end: torch.Tensor, span: range, size: int, cropped: bool) -> torch.Tensor:
    """(B, size, len(span)): each output pixel's weights over these input pixels of one axis."""
    scale = ((end - start) / size)[:, None]
    support = scale.clamp(min=1)
    centre = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * scale - 0.5
    pixels = torch.arange(span.start, span.stop, device=start.device)
    weights = (1 - (pixels - centre[..., None]).abs() / support[..., None]).clamp(min=0)
    if cropped:
        weights = weights * ((pixels >= start[:, None].floor()) & (pixels < end[:, None].ceil()))[:, None]
        return weights / weights.sum(-1, keepdim=True)
    # Normalised over an infinite pixel grid, not over the image: beyond the border there is black, not nothing.
    reach = math.ceil(float(support.max())) + 1
    taps = torch.arange(-reach, reach + 1, device=start.device)
    total = (1 - (taps - centre.frac()[..., None]).abs() / support[..., None]).clamp(min=0).sum(-1)
    return weights / total[..., None]


def cut_out(
    images: torch.Tensor,
    masks: torch.Tensor,
    size: int,
    margin: float,
    surroundings: str = "black",
    fit: str = "pad",
    resize: str = "antialias",
) -> torch.Tensor:
    """The object, centred in a square with a margin: (B, C, H, W) in [0, 1], (B, H, W) -> (B, C, size, size).

    margin, surroundings, fit, resize: see `EncoderConfig`. It is black beyond the picture; a stretched box ends at the
    picture's border. Raises `ImprintError` for an empty mask.
    """
    boxes = bounding_boxes(masks, what="the object's mask")
    if resize == "opencv":
        views = zip(images.split(1), masks.split(1), boxes.tolist())
        return torch.cat([_cut_out_in_8_bits(*view, size, margin, surroundings) for view in views])
    boxes = boxes.to(images)
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    half = (sides.amax(1, keepdim=True) if fit == "pad" else sides) * (0.5 + margin)
    reach = torch.cat([centre - half, centre + half], 1)
    if fit == "stretch":
        height, width = images.shape[2:]
        reach = reach.clamp(min=0).minimum(reach.new_tensor([height, width, height, width]))
    rows, columns = _seen(reach, size, images.shape[2:])
    seen = images[:, :, rows, columns]
    if surroundings == "white":
        seen = 1 - seen  # and back, so that 0 is what surrounds the object
    if surroundings != "kept":
        seen = seen * masks[:, None, rows, columns].to(images)
    corner = rows.start, columns.start
    cutout = resample(seen, reach, size, cropped=fit == "stretch", corner=corner).clamp(0, 1)
    return 1 - cutout if surroundings == "white" else cutout


def _cut_out_in_8_bits(
    image: torch.Tensor, mask: torch.Tensor, box: list[int], size: int, margin: float, surroundings: str
) -> torch.Tensor:
    """As `cut_out`, of one picture and in whole pixels, with nothing of it around the box."""
    top, left, bottom, right = box
    seen, mask = image[:, :, top:bottom, left:right], mask[:, None, top:bottom, left:right].to(image)
    if surroundings != "kept":
        seen = seen * mask + (1 - mask) * (surroundings == "white")
    sides = bottom - top, right - left
    wider = [int(side * (1 + 2 * margin)) for side in sides]
    square, pads = max(wider), []
    for side, wide in reversed(list(zip(sides, wider))):
        before = (wide - side) // 2 + (square - wide) // 2
        pads += [before, square - side - before]
    seen = F.pad(seen, pads, value=float(surroundings == "white"))
    return resize_in_8_bits((seen * 255).round(), size, size) / 255


_ONE = 2048  # OpenCV's, in fixed point


def resize_in_8_bits(pictures: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Whole numbers up to 255, (B, C, H, W) -> (B, C, height, width): OpenCV's INTER_LINEAR, to the last bit."""
    values = pictures.int()
    (left, right), shares = _taps(pictures.shape[3], width, pictures.device)
    values = (values[..., left] * shares[0] + values[..., right] * shares[1]) >> 4
    rows, shares = _taps(pictures.shape[2], height, pictures.device)
    upper, lower = ((values[:, :, row] * share[:, None]) >> 16 for row, share in zip(rows, shares))
    return ((upper + lower + 2) >> 2).to(pictures)


def _taps(length: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each of `size` pixels the two of `length` that it lies between, and their shares in `_ONE`: (2, size) each."""
    places = ((torch.arange(size, dtype=torch.float64) + 0.5) * (length / size) - 0.5).float()
    first = places.floor()
    shares = torch.stack([1 - (places - first), places - first])
    pixels = torch.stack([first, first + 1]).long().clamp(0, length - 1)
    return pixels.to(device), (shares * _ONE).round().int().to(device)


def _seen(boxes: torch.Tensor, size: int, frame: torch.Size) -> tuple[slice, slice]:
    """Rows and columns of the frame that `resample` looks at for any of the boxes: the rest may have 67 megapixels."""
    support = ((boxes[:, 2:] - boxes[:, :2]) / size).clamp(min=1)
    first, last = (boxes[:, :2] - support).amin(0).tolist(), (boxes[:, 2:] + support).amax(0).tolist()
    rows, columns = (
        slice(max(0, math.floor(low)), min(length, math.ceil(high))) for low, high, length in zip(first, last, frame)
    )
    return rows, columns


def normalise(cutouts: torch.Tensor, config: EncoderConfig) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> of mean 0 and variance 1 over the encoder's training data."""
    mean, std = (cutouts.new_tensor(values)[:, None, None] for values in MEAN_AND_STD[config.kind])
    return (cutouts - mean) / std


def black_picture(config: EncoderConfig) -> torch.Tensor:
    """(1, 3, S, S): the encoder's input for no object, where that is a black picture."""
    return normalise(torch.zeros(1, 3, config.image_size, config.image_size), config)


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
            f"the object's {images.shape[0]} picture(s) of {images.shape[3]}x{images.shape[2]} and its "
            f"{masks.shape[0]} mask(s) of {masks.shape[2]}x{masks.shape[1]} differ; give one mask of the same size "
            "for every picture"
        )
    cutout = cut_out(
        images, masks, config.image_size, config.object_margin, config.surroundings, config.fit, config.resize
    )
    require_finite(cutout, "the object's picture", "give numbers in [0, 1]")
    return normalise(cutout, config), cutout
