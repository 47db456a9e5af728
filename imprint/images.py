"""Reading pictures and masks from files, Pillow and tensors.

Tensors are BCHW in [0, 1], masks BHW in [0, 1] with 1 = hole or object. Every result is upright, finite and in range;
anything else raises `ImprintError`. A mask that is not empty reaches 1.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from io import BytesIO
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from . import files
from .errors import ImprintError, not_finite
from .profiles import convert_profile, grey_or_cmyk_to_srgb, rgb_profile_of

Picture: TypeAlias = "Image.Image | torch.Tensor"
"""Accepted as a picture: any Pillow picture, or a tensor in [0, 1], (1, 3, H, W), or (1, H, W) for a mask."""

_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    value: Image.Transpose[name]
    for value, name in enumerate(
        "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(), 2
    )
}
"""What makes a picture upright, by the tag's value."""
_SAYS_ORIENTATION = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # parts of a picture's info
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # modes, and their counterparts without premultiplied alpha
_PICTURE = (1, 3, None, None), "(1, 3, H, W)"  # a picture's shape, and its name in messages
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")  # others, such as MPO, hold one picture in several sizes
_ONE_COLOUR = 12  # levels of 255: how far lossy compression spreads a single colour
_MOST_LABELS = 32  # the highest label of a label map; a mask with larger values is a soft mask

_log = logging.getLogger(__name__)

MAX_PIXELS = 1 << 27
"""Larger pictures (134 megapixels) are refused before they are decoded; Pillow's own limit is a little higher."""


def open_image(path: str | os.PathLike, data: bytes | None = None) -> Image.Image:
    """Open a picture file, rotated as its EXIF says.

    data: its bytes, if it is not a file of its own; path is then its name. Raises `ImprintError` for a file that is
    missing, not a picture, broken or too large.
    """
    if data is None:
        files.require_file(path, "a picture (PNG, JPEG, WebP, ...)")
        files.require_no_lfs_pointer(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path if data is None else BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImprintError(
                        f"{path} is {image.width}x{image.height}; at most {MAX_PIXELS / 1e6:.0f} megapixels are "
                        "handled: make it smaller"
                    )
                if getattr(image, "is_animated", False) and image.format in _ANIMATED:
                    _log.warning("%s has %d pictures: the first is used", path, image.n_frames)
                image.load()
                return _turned(image).copy()  # a copy no longer needs the file
    except ImprintError:
        raise
    except Image.DecompressionBombError as error:
        raise ImprintError(f"{path} is too large to decode ({error}); make it smaller") from error
    except Exception as error:  # Pillow's decoders raise errors of any class
        raise ImprintError(f"{path} cannot be read as a picture ({error}); save it again as PNG or JPEG") from error


def upright(image: Image.Image) -> Image.Image:
    """The picture rotated as its EXIF says, without that tag; the picture itself if there is nothing to do.

    Raises `ImprintError` for a picture without pixels or one that cannot be decoded: Pillow reads files lazily.
    """
    if not image.width * image.height:
        raise ImprintError(f"the picture is {image.width}x{image.height}: it has no pixels; give another")
    try:
        image.load()
        if image.mode in _PREMULTIPLIED:  # Pillow cannot convert these to any other
            image = image.convert(_PREMULTIPLIED[image.mode])
        return _turned(image)
    except Exception as error:  # Pillow's decoders raise errors of any class
        raise ImprintError(f"the picture cannot be decoded ({error}); save it again as PNG or JPEG") from error


def _turned(image: Image.Image) -> Image.Image:
    """The picture rotated as its EXIF says, without EXIF; the picture itself if EXIF says nothing or cannot be read."""
    try:
        way = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # Pillow raises errors of any class; the picture itself is fine
        return image
    if way is None:
        return image
    turned = image.transpose(way)
    turned.info = {name: value for name, value in image.info.items() if name not in _SAYS_ORIENTATION}
    return turned


def as_picture(image: Picture, profile: bytes | None = None) -> torch.Tensor:
    """-> (1, 3, H, W) float32 on the CPU. Raises `ImprintError` for a tensor of another shape, kind or range.

    profile: the ICC profile to convert a Pillow picture to, None for sRGB; tensors are assumed to be in it already.
    """
    if isinstance(image, Image.Image):
        return image_to_tensor(convert_profile(to_rgb(image), profile))
    return _checked_picture(image).float().cpu()


def as_mask(mask: Picture) -> torch.Tensor:
    """-> (1, H, W) float32 on the CPU, at `full_strength`. Raises `ImprintError` as `as_picture` does."""
    return as_mask_in_place(mask).cpu()


def as_mask_in_place(mask: Picture) -> torch.Tensor:
    """As `as_mask`, on the mask's own device: of a large mask only a part may need to be moved."""
    if isinstance(mask, Image.Image):
        return mask_to_tensor(mask)
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
        mask = mask.float()
    _require_shape(mask, "a mask", (1, None, None), "(1, H, W)")
    return full_strength(in_range(mask, "a mask").float())


def require_range(values: torch.Tensor, what: str) -> tuple[float, float]:
    """The lowest and highest value of a picture or mask, of any shape, on any device and without copying it.

    Raises `ImprintError` unless they are finite floating-point numbers in [0, 1]. Sharpening and resizing overshoot, so
    values up to half the range outside are accepted.
    """
    if not values.is_floating_point():
        kind = str(values.dtype).removeprefix("torch.")
        raise ImprintError(
            f"{what} is a tensor of {kind}; give floating-point numbers in [0, 1], such as 0..255 divided by 255"
        )
    low, high = float(values.amin()), float(values.amax())  # `aminmax` would copy a view; both propagate NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        raise not_finite(what, "the step that made it failed: look at its picture, and try fp32")
    if low < -0.5 or high > 1.5:
        raise ImprintError(
            f"{what} has values from {low:g} to {high:g}, which must be in [0, 1]; divide 0..255 by 255, and map "
            "-1..1 to 0..1 by (x + 1) / 2"
        )
    return low, high


def in_range(values: torch.Tensor, what: str) -> torch.Tensor:
    """The values in [0, 1]: the tensor itself, or a clamped copy if it overshoots.

    Raises `ImprintError` as `require_range` does.
    """
    low, high = require_range(values, what)
    return values.clamp(0, 1) if low < 0 or high > 1 else values


def full_strength(masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, H, W) in [0, 1], each divided by its largest value, so that labels 0 and 1, grey 128 or a faint alpha
    count as white. Soft edges stay soft; an empty mask stays empty.
    """
    top = masks.amax((1, 2), keepdim=True)
    return masks if bool(((top == 1) | (top == 0)).all()) else masks / torch.where(top > 0, top, 1)


def _checked_picture(image: torch.Tensor) -> torch.Tensor:
    _require_shape(image, "a picture", *_PICTURE)
    require_range(image, "a picture")
    return image


def _require_shape(values: torch.Tensor, what: str, shape: tuple[int | None, ...], expected: str) -> None:
    if not isinstance(values, torch.Tensor):
        raise ImprintError(f"{what} is a {type(values).__name__}; expected a Pillow picture or a tensor {expected}")
    fits = values.ndim == len(shape) and all(want in (None, got) for got, want in zip(values.shape, shape))
    if not fits or not values.numel():
        raise ImprintError(f"{what} has shape {tuple(values.shape)}; expected {expected} or a Pillow picture")


def picture_size(image: Picture) -> tuple[int, int]:
    """Height and width in pixels. Raises `ImprintError` for a tensor of another shape."""
    if isinstance(image, Image.Image):
        return upright(image).size[::-1]
    _require_shape(image, "a picture", *_PICTURE)
    return tuple(image.shape[2:])


def colours_of(image: Picture) -> bytes | None:
    """The ICC profile of `to_rgb`'s result; None for sRGB, and for tensors."""
    return rgb_profile_of(image) if isinstance(image, Image.Image) else None


def picture_part(image: Picture, area: tuple[slice, slice], device: torch.device | str = "cpu") -> torch.Tensor:
    """Rows and columns of a picture -> (1, 3, h, w) on the device, in its own colour profile.

    The rest of the picture is neither converted nor moved. Raises `ImprintError` as `as_picture` does, for the whole
    picture.
    """
    rows, columns = area
    if isinstance(image, Image.Image):
        return image_to_tensor(upright(image).crop((columns.start, rows.start, columns.stop, rows.stop)), device)
    return _checked_picture(image)[:, :, rows, columns].float().to(device)


def image_to_tensor(image: Image.Image, device: torch.device | str = "cpu") -> torch.Tensor:
    """Any Pillow picture -> (1, 3, H, W) on the device; transparency is dropped, 16-bit grey is scaled."""
    pixels = torch.from_numpy(np.asarray(to_rgb(image)).copy()).to(device)  # while they are bytes
    return pixels.permute(2, 0, 1)[None].float() / 255


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
    labels, kinds = _labels(upright(image))
    return [torch.from_numpy((labels == kind).astype(np.float32))[None] for kind in kinds] if len(kinds) > 1 else []


def _brightness(image: Image.Image) -> np.ndarray:
    """(H, W) float32 from 0 to 1.

    Raises `ImprintError` for a map of several labels, and for values that are not finite.
    """
    _, kinds = _labels(image)
    if len(kinds) > 1:
        listed = ", ".join(f"{kind:g}" for kind in kinds[:8])
        raise ImprintError(
            f"the mask is a map of {len(kinds)} labels ({listed}{', ...' if len(kinds) > 8 else ''}); give a mask in "
            "which one object alone is white"
        )
    values, top = _values(image)
    return values / max(top, float(values.max()))


def _labels(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) values, and which of them are labels: more than one for a label map, which has a few colours that are not
    shades of one, or whole numbers too small to be brightness.
    """
    coloured = _colours(_without_hidden(image))
    if coloured is not None:
        return coloured
    values, top = _values(image)
    # Pure blue is dark but not a label: of a colour the largest channel counts.
    largest = values.max() if image.mode == "L" or _is_deep(image) else np.asarray(to_rgb(image)).max()
    small = largest <= _MOST_LABELS and (top > 1 or bool((values == values.round()).all()))
    return values, np.unique(values[values > 0]) if small else values[:0]


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
    if _is_deep(image) or image.mode in ("1", "L", "LA"):
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
    if _is_deep(image) or image.mode in ("1", "L") or image.getcolors(_MOST_LABELS) is not None:
        return False
    step = math.ceil(max(image.size) / 512)  # a sample of its pixels is enough
    pixels = np.asarray(to_rgb(image), dtype=np.float32)[::step, ::step]
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
    if not _is_deep(image):
        return np.asarray(image if image.mode == "L" else to_rgb(image).convert("L"), dtype=np.float32), 255.0
    values = np.asarray(image, dtype=np.float32)  # labels 0 and 1 of 65,535 would be lost in 8 bits
    if not np.isfinite(values).all():
        raise not_finite("the mask", "give numbers in [0, 1]")
    if image.mode == "F" and values.min() < -0.5:
        raise ImprintError(f"the mask has values from {values.min():g} to {values.max():g}, which must be in [0, 1]")
    return values.clip(0), 1.0 if image.mode == "F" else 65535.0


def alpha_to_tensor(image: Image.Image) -> torch.Tensor | None:
    """The alpha channel -> (1, H, W) at `full_strength`; None if the picture has none or is opaque everywhere."""
    alpha = _alpha(upright(image))
    return None if alpha is None else full_strength(alpha)


def _alpha(image: Image.Image) -> torch.Tensor | None:
    if not image.has_transparency_data:
        return None
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return None if alpha.min() == 255 else torch.from_numpy(alpha.copy())[None].float() / 255


def as_layer(part: Image.Image, whole: Image.Image, area: tuple[slice, slice]) -> Image.Image:
    """An RGBA picture of a part, `area` (rows, columns), pasted into an empty layer of the whole's size and profile."""
    layer = Image.new("RGBA", whole.size)
    rows, columns = area
    layer.paste(part, (columns.start, rows.start))
    profile = rgb_profile_of(whole)
    layer.info = {"icc_profile": profile} if profile else {}
    return layer


def tensor_to_image(tensor: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> Pillow RGB, rounded; (4, H, W) -> RGBA."""
    pixels = (tensor.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow picture -> an upright copy in 8-bit RGB; transparency is dropped, 16-bit grey is scaled.

    An RGB picture keeps its colour profile; grey or CMYK with a profile becomes sRGB. Raises `ImprintError` for a
    picture that cannot be decoded, and for deep grey outside 0 to 65,535 or, in floating point, [0, 1].
    """
    image = upright(image)
    profile = rgb_profile_of(image)
    made = grey_or_cmyk_to_srgb(image)
    if made is None:
        if _is_deep(image):
            image = _in_8_bits(image)
        made = image.copy() if image.mode == "RGB" else image.convert("RGB")
    made.info = {"icc_profile": profile} if profile else {}
    return made


def to_srgb(image: Image.Image) -> Image.Image:
    """As `to_rgb`, converted to sRGB and without a profile: for use as plain numbers. Raises `ImprintError` alike."""
    made = convert_profile(to_rgb(image), None)
    made.info.pop("icc_profile", None)  # another encoding of sRGB
    return made


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Deep grey, mode L: Pillow's own conversion clips instead of scaling."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise not_finite("the picture", "give numbers in [0, 1]")
        require_range(torch.from_numpy(values), "the picture")
        values = values * 255
    elif values.min() < 0 or values.max() > 65535:
        raise ImprintError(
            f"the picture's grey goes from {values.min():g} to {values.max():g}; expected 16 bits, 0 to 65535: "
            "save it that way"
        )
    else:
        values = values / 257
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"
