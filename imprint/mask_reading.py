"""Masks from what users give: mask pictures, transparency, label maps and tensors.

Tensors are BHW in [0, 1] with 1 = hole or object. Every result is upright, finite and in range; anything else raises
`ImprintError`. A mask that is not empty reaches 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from .errors import ImprintError, not_finite
from .images import Picture, alpha_channel, in_range, is_deep, require_shape, to_rgb, upright

_ONE_COLOUR = 12  # levels of 255: how far lossy compression spreads a single colour
_MOST_LABELS = 32  # the highest label of a label map; a mask with larger values is a soft mask


def as_mask(mask: Picture) -> torch.Tensor:
    """-> (1, H, W) float32 on the CPU, at `full_strength`. Raises `ImprintError` as `as_picture` does."""
    return as_mask_in_place(mask).cpu()


def as_mask_in_place(mask: Picture) -> torch.Tensor:
    """As `as_mask`, on the mask's own device: of a large mask only a part may need to be moved."""
    if isinstance(mask, Image.Image):
        return mask_to_tensor(mask)
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
        mask = mask.float()
    require_shape(mask, "a mask", (1, None, None), "(1, H, W)")
    return full_strength(in_range(mask, "a mask").float())


def full_strength(masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, H, W) in [0, 1], each divided by its largest value, so that labels 0 and 1, grey 128 or a faint alpha
    count as white. Soft edges stay soft; an empty mask stays empty.
    """
    top = masks.amax((1, 2), keepdim=True)
    return masks if bool(((top == 1) | (top == 0)).all()) else masks / torch.where(top > 0, top, 1)


def alpha_to_tensor(image: Image.Image) -> torch.Tensor | None:
    """The alpha channel -> (1, H, W) at `full_strength`; None if the picture has none or is opaque everywhere."""
    alpha = _alpha(upright(image))
    return None if alpha is None else full_strength(alpha)


def _alpha(image: Image.Image) -> torch.Tensor | None:
    if not image.has_transparency_data:
        return None
    alpha = np.array(alpha_channel(image))
    return None if alpha.min() == 255 else torch.from_numpy(alpha)[None].float() / 255


def mask_to_tensor(image: Image.Image) -> torch.Tensor:
    """A mask picture, white = 1 -> (1, H, W) at `full_strength`: its brightness, times its alpha if it has one.

    For strokes of a single colour (even black) on transparency, and for a cut-out, the mask is the alpha. Raises
    `ImprintError` for a map of several labels, and for a photo.
    """
    image = upright(image)
    alpha = _alpha(image)
    if _is_photo(image, alpha):
        if alpha is None:
            raise ImprintError(
                "the mask is a picture of many colours, such as a photo; give one that is white on black"
            )
        return full_strength(alpha)
    white = torch.from_numpy(_brightness(image))[None]
    if alpha is None:
        return full_strength(white)
    seen = white[alpha >= max(0.5 * float(alpha.max()), 1 / 255)]
    painted = seen.numel() and float(seen.max() - seen.min()) <= _ONE_COLOUR / 255
    return full_strength(alpha if painted else white * alpha)


def label_masks(image: Image.Image) -> list[torch.Tensor]:
    """The mask (1, H, W) of each label of a map of several labels, lowest first; [] for any other mask picture.

    Raises `ImprintError` as `mask_to_tensor` does.
    """
    labels, kinds, _ = _labels(upright(image))
    return [torch.from_numpy((labels == kind).astype(np.float32))[None] for kind in kinds] if len(kinds) > 1 else []


def _brightness(image: Image.Image) -> np.ndarray:
    """(H, W) float32 from 0 to 1.

    Raises `ImprintError` for a map of several labels, and for values that are not finite.
    """
    values, kinds, white = _labels(image)
    if len(kinds) > 1:
        listed = ", ".join(f"{kind:g}" for kind in kinds[:8])
        raise ImprintError(
            f"the mask is a map of {len(kinds)} labels ({listed}{', ...' if len(kinds) > 8 else ''}); give a mask in "
            "which one object alone is white (the command line's --each-area puts an object into each label of --mask)"
        )
    return values / max(white, float(values.max()))


def _labels(image: Image.Image) -> tuple[np.ndarray, np.ndarray, float]:
    """(H, W) values; which of them are labels: more than one for a label map, which has a few colours that are not
    shades of one, or whole numbers too small to be brightness; and the value of white.
    """
    coloured = _colours(_without_hidden(image))
    if coloured is not None:
        return *coloured, math.nan
    values, white = _values(image)
    # Pure blue is dark but not a label: of a colour the largest channel counts.
    largest = values.max() if image.mode == "L" or is_deep(image) else np.asarray(to_rgb(image)).max()
    small = largest <= _MOST_LABELS and (white > 1 or bool((values == values.round()).all()))
    return values, np.unique(values[values > 0]) if small else values[:0], white


def _without_hidden(image: Image.Image) -> Image.Image:
    """Black where the picture is transparent: the colours stored there are arbitrary."""
    alpha = _alpha(image)
    if alpha is None or image.mode == "LA":
        return image
    seen = Image.fromarray((alpha[0] > 0).numpy().astype(np.uint8) * 255)
    return Image.composite(to_rgb(image), Image.new("RGB", image.size), seen)


def _colours(image: Image.Image) -> tuple[np.ndarray, np.ndarray] | None:
    """(H, W) of colour indices, and the indices of the colours that are not black; None if there are many colours, or
    only shades of one.
    """
    if is_deep(image) or image.mode in ("1", "L", "LA"):
        return None
    if image.mode == "P":
        pixels, numbers = np.asarray(image), sorted(number for _, number in image.getcolors())
        palette = (image.getpalette() or []) + [0] * 768  # it may be shorter than its highest index
        colours = np.array([palette[3 * number : 3 * number + 3] for number in numbers])
    else:
        rgb = to_rgb(image)
        found = rgb.getcolors(_MOST_LABELS + 1)
        if found is None:
            return None
        pixels, colours = np.zeros(rgb.size[::-1], np.uint8), np.array(sorted(colour for _, colour in found))
        numbers = list(range(len(colours)))
        for number, colour in enumerate(colours):
            pixels[(np.asarray(rgb) == colour).all(-1)] = number
    largest = colours.max(1)
    brightest = colours[largest.argmax()]
    shades = np.abs(colours * brightest.max() - largest[:, None] * brightest).max() <= _ONE_COLOUR * brightest.max()
    kinds = np.array(numbers)[largest > 0]
    return None if shades or len(kinds) > _MOST_LABELS else (pixels, kinds)


def _is_photo(image: Image.Image, alpha: torch.Tensor | None) -> bool:
    """Whether its visible pixels are mostly neither dark nor bright, as a mask's are only at its edges.

    Without alpha it must also have several hues: a wide soft brush of any one colour is a mask.
    """
    if is_deep(image) or image.mode in ("1", "L") or image.getcolors(_MOST_LABELS) is not None:
        return False
    step = math.ceil(max(image.size) / 512)  # a sample of its pixels is enough
    pixels = np.asarray(to_rgb(image))[::step, ::step].astype(np.float32)
    pixels = pixels[slice(None) if alpha is None else alpha[0, ::step, ::step].numpy() > 0.5].reshape(-1, 3)
    if not pixels.any():
        return False
    most = pixels.max(1)
    between = (most > 0.1 * most.max()) & (most < 0.9 * most.max())
    hue = pixels.mean(0) / np.linalg.norm(pixels.mean(0))
    beside = np.abs(pixels - (pixels @ hue)[:, None] * hue).max(1)
    return bool(between.mean() > 0.5 and (alpha is not None or (beside > _ONE_COLOUR).mean() > 0.1))


def _values(image: Image.Image) -> tuple[np.ndarray, float]:
    """(H, W) float32, 0 or more, and the value of white.

    Raises `ImprintError` for floating-point numbers that cannot be brightness.
    """
    if not is_deep(image):
        return np.asarray(image if image.mode == "L" else to_rgb(image).convert("L"), dtype=np.float32), 255.0
    values = np.asarray(image, dtype=np.float32)  # labels 0 and 1 of 65,535 would be lost in 8 bits
    if not np.isfinite(values).all():
        raise not_finite("the mask", "give numbers in [0, 1]")
    if image.mode == "F" and values.min() < -0.5:
        raise ImprintError(f"the mask has values from {values.min():g} to {values.max():g}, which must be in [0, 1]")
    return values.clip(0), 1.0 if image.mode == "F" else 65535.0
