"""Pictures in and out: files, Pillow and tensors.

Tensors are BCHW in [0, 1], masks BHW in [0, 1] with 1 = hole or object.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps

from . import files
from .errors import ImprintError

Picture: TypeAlias = "Image.Image | torch.Tensor"
"""What the package takes: any Pillow picture, or a tensor in [0, 1]: (1, 3, H, W), and (1, H, W) for a mask."""

MAX_PIXELS = 1 << 27
"""Larger pictures (134 megapixels) are refused before they are decoded; Pillow's own limit is a little higher."""


def open_image(path: str | os.PathLike) -> Image.Image:
    """A picture file, turned as its EXIF says.

    Raises `ImprintError` if it is absent, no picture, broken, or too large.
    """
    if not os.path.isfile(path):
        raise ImprintError(f"{path}: no such file; give the path of a picture (PNG, JPEG, WebP, ...)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImprintError(
                        f"{path} is {image.width}x{image.height}; at most {MAX_PIXELS / 1e6:.0f} megapixels are "
                        "handled: make it smaller"
                    )
                image.load()
                return ImageOps.exif_transpose(image)
    except ImprintError:
        raise
    except Image.DecompressionBombError as error:
        raise ImprintError(f"{path} is too large to decode ({error}); make it smaller") from error
    except Exception as error:  # Pillow's decoders let errors of any class through
        raise ImprintError(f"{path} cannot be read as a picture ({error}); save it again as PNG or JPEG") from error


def as_picture(image: Picture) -> torch.Tensor:
    """-> (1, 3, H, W) float32 on the CPU. Raises `ImprintError` for a tensor of another shape."""
    if isinstance(image, Image.Image):
        return image_to_tensor(image)
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ImprintError(f"a picture has shape {tuple(image.shape)}; expected (1, 3, H, W) or a Pillow picture")
    return image.float().cpu()


def as_mask(mask: Picture) -> torch.Tensor:
    """-> (1, H, W) float32 on the CPU. Raises `ImprintError` for a tensor of another shape."""
    if isinstance(mask, Image.Image):
        return mask_to_tensor(mask)
    if mask.ndim != 3 or len(mask) != 1:
        raise ImprintError(f"a mask has shape {tuple(mask.shape)}; expected (1, H, W) or a Pillow picture")
    return mask.float().cpu()


def picture_size(image: Picture) -> tuple[int, int]:
    """Height and width in pixels."""
    return image.size[::-1] if isinstance(image, Image.Image) else tuple(as_picture(image).shape[2:])


def picture_part(image: Picture, area: tuple[slice, slice]) -> torch.Tensor:
    """Rows and columns of a picture -> (1, 3, h, w); of a Pillow picture the rest is not converted."""
    rows, columns = area
    if isinstance(image, Image.Image):
        return image_to_tensor(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
    return as_picture(image)[:, :, rows, columns]


def require_writable(path: str | os.PathLike) -> None:
    """Make the folder if need be; raise `ImprintError` unless a picture of this name can be written there."""
    path = Path(path)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ImprintError(f"{path}: '{path.suffix}' is no picture format; end the name in .png, .jpg or .webp")
    files.require_writable(path)


def save_image(image: Image.Image, path: str | os.PathLike) -> None:
    """Write beside the place under a temporary name, then rename. The format follows the file's ending.

    Raises `ImprintError` where `require_writable` does, and for a picture that its format cannot hold.
    """
    path = Path(path)
    require_writable(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        image = image.convert("RGB")
    kind = Image.registered_extensions()[path.suffix.lower()]
    quality = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    try:
        with files.replacing(path) as temporary:
            image.save(temporary, kind, **quality)
    except (OSError, ValueError) as error:
        raise ImprintError(f"{path} cannot be written ({error}); choose another place or format") from error


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """Any Pillow picture -> (1, 3, H, W); transparency is dropped, 16-bit grey is scaled."""
    return torch.from_numpy(np.asarray(to_rgb(image)).copy()).permute(2, 0, 1)[None].float() / 255


def mask_to_tensor(image: Image.Image) -> torch.Tensor:
    """A mask picture, white = 1 -> (1, H, W): its brightness, times its alpha where it has one."""
    grey = image if image.mode == "L" else to_rgb(image).convert("L")
    white = torch.from_numpy(np.asarray(grey).copy())[None].float().div_(255)
    alpha = alpha_to_tensor(image)
    return white if alpha is None else white * alpha


def alpha_to_tensor(image: Image.Image) -> torch.Tensor | None:
    """The alpha channel -> (1, H, W), or None where the picture has none or it is opaque everywhere."""
    if not image.has_transparency_data:
        return None
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return None if alpha.min() == 255 else torch.from_numpy(alpha.copy())[None].float() / 255


def tensor_to_image(tensor: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> Pillow RGB, rounded."""
    array = (tensor.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow picture -> a copy in 8-bit RGB; transparency is dropped, 16-bit grey is scaled."""
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: Pillow's own conversion clips instead of scaling
        grey = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((grey / (257 if image.mode != "F" else 1 / 255)).clip(0, 255).round().astype(np.uint8))
    return image.copy() if image.mode == "RGB" else image.convert("RGB")
