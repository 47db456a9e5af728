"""Pictures from files, Pillow and tensors, and back.

Tensors are BCHW in [0, 1]. Every result is upright, finite and in range; anything else raises `ImprintError`. Masks are
read by `imprint.mask_reading`.
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
        return _pixels(convert_profile(to_rgb(image), profile))
    return _checked_picture(image).float().cpu()


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


def _checked_picture(image: torch.Tensor) -> torch.Tensor:
    require_shape(image, "a picture", *_PICTURE)
    require_range(image, "a picture")
    return image


def require_shape(values: torch.Tensor, what: str, shape: tuple[int | None, ...], expected: str) -> None:
    """Raise `ImprintError` unless these are a tensor's values in a shape, where None is any length.

    what, expected: the names of the values and of the shape, for messages.
    """
    if not isinstance(values, torch.Tensor):
        raise ImprintError(f"{what} is a {type(values).__name__}; expected a Pillow picture or a tensor {expected}")
    fits = values.ndim == len(shape) and all(want in (None, got) for got, want in zip(values.shape, shape))
    if not fits or not values.numel():
        raise ImprintError(f"{what} has shape {tuple(values.shape)}; expected {expected} or a Pillow picture")


def picture_size(image: Picture) -> tuple[int, int]:
    """Height and width in pixels. Raises `ImprintError` for a tensor of another shape."""
    if isinstance(image, Image.Image):
        return upright(image).size[::-1]
    require_shape(image, "a picture", *_PICTURE)
    return tuple(image.shape[2:])


def picture_profile(image: Picture) -> bytes | None:
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
    return _pixels(to_rgb(image), device)


def _pixels(image: Image.Image, device: torch.device | str = "cpu") -> torch.Tensor:
    """An RGB picture -> (1, 3, H, W) in [0, 1] on the device, to which they are moved as bytes."""
    return torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None].float() / 255


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
        if is_deep(image):
            image = _in_8_bits(image)
        if image.mode == "P" and image.has_transparency_data:
            image = image.convert("RGBA")  # straight to RGB, Pillow prints a warning
        made = image.copy() if image.mode == "RGB" else image.convert("RGB")
    made.info = {"icc_profile": profile} if profile else {}
    return made


def alpha_channel(image: Image.Image) -> Image.Image:
    """The transparency, mode L, of an upright picture that has any by Pillow's `has_transparency_data`."""
    return (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")


def to_srgb(image: Image.Image) -> Image.Image:
    """`to_rgb`'s result in sRGB and without a profile, for use as plain numbers. Raises `ImprintError` as it does."""
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


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits: whole numbers up to 65,535 or, in mode F, floating-point ones."""
    return image.mode.startswith("I") or image.mode == "F"
