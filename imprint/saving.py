"""Writing pictures: each file is complete or absent, and in a format that can hold the whole picture."""

from __future__ import annotations

import os
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from . import files
from .errors import ImprintError
from .mask_reading import alpha_to_tensor
from .profiles import convert_profile, profile_of

_FORMATS = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"quality": 95}, "TIFF": {}, "BMP": {}, "AVIF": {"quality": 90}}
"""The formats that keep a picture's size and colours, with the options to write them."""
_OPAQUE = ("JPEG", "BMP")
_NO_PROFILE = ("BMP",)


def require_writable(path: str | os.PathLike, like: Image.Image | None = None) -> None:
    """Raise `ImprintError` unless a picture of this name can be written; its folder may be missing and is not created.

    like: a picture of the same size and transparency, if they are known: not every format can hold them.
    """
    path = Path(path)
    files.require_writable(path)
    kind = _format(path)
    if like is not None and kind in _OPAQUE and alpha_to_tensor(like) is not None:
        raise ImprintError(
            f"{path} cannot hold the picture's transparency: {kind} has none; end the name in .png, or give an "
            "opaque background"
        )
    for sides in () if like is None else ((like.width, 1), (1, like.height)):
        try:
            Image.new("RGB", sides).save(BytesIO(), kind)
        except (OSError, ValueError, MemoryError) as error:
            raise ImprintError(
                f"{path} cannot be written: {kind} does not hold {like.width}x{like.height} pixels ({error}); end the "
                "name in .png"
            ) from error


def save_image(image: Image.Image, path: str | os.PathLike) -> None:
    """Write to a temporary name in the same folder, then rename. The file's ending determines the format.

    The colour profile is kept if it fits the picture's mode; a format without profiles gets sRGB. Raises
    `ImprintError` as `require_writable` does, and if writing fails.
    """
    path = Path(path)
    require_writable(path, image)
    kind = _format(path)
    if kind in _OPAQUE and image.mode != "RGB":
        image = image.convert("RGB")
    if kind in _NO_PROFILE:
        image = convert_profile(image, None)
    try:
        with files.replacing(path) as temporary:
            image.save(temporary, kind, icc_profile=profile_of(image), **_FORMATS[kind])
    except (OSError, ValueError, MemoryError) as error:
        raise ImprintError(f"{path} cannot be written ({error}); choose another place or format") from error


def save_computed(image: Image.Image, path: str | os.PathLike) -> None:
    """`save_image` for pictures that took time to make: see `files.save_or_keep`."""
    files.save_or_keep(partial(save_image, image), Path(path), ".png", "the picture that was made")


def _format(path: Path) -> str:
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ImprintError(f"{path}: '{path.suffix}' is not a picture format; end the name in .png, .jpg or .webp")
    if kind not in _FORMATS:
        raise ImprintError(
            f"{path}: {kind} may not keep the picture's size or colours; end the name in .png, .jpg, .webp or .tiff"
        )
    return kind
