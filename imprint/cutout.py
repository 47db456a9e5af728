"""Finding an object's mask in a plain photo with rembg, an optional extra, which downloads its own weights."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from PIL import Image

from .errors import ImprintError
from .images import alpha_channel, upright
from .mask_reading import alpha_to_tensor

WEIGHTS = "birefnet-general-lite"
"""The rembg model: BiRefNet (MIT), 224 MB."""


def mask_of(photo: Image.Image) -> Image.Image:
    """The object's mask, mode L: the photo's own transparency if it has any, otherwise `cut_out`."""
    return cut_out(photo) if alpha_to_tensor(photo) is None else alpha_channel(upright(photo))


def cut_out(photo: Image.Image) -> Image.Image:
    """The mask of a photo's object, mode L, white on the object, with soft edges; of the photo's size, turned upright.

    Raises `ImprintError` if rembg or its weights are missing, or if it finds no object.
    """
    try:
        from rembg import remove
    except ImportError as error:
        raise ImprintError(
            f"cutting the object out needs the package rembg ({error}); pip install 'imprint[cutout]', or give the "
            "object's mask or a picture with transparency"
        ) from error
    mask = remove(upright(photo).convert("RGB"), session=_session(), only_mask=True).convert("L")
    if mask.getextrema()[1] < 128:
        raise ImprintError(
            "no object was found in the photo; give the object's mask, or a photo in which it stands out from its "
            "background"
        )
    return mask


@lru_cache(maxsize=1)
def _session() -> Any:
    from rembg import new_session

    try:
        return new_session(WEIGHTS)
    except Exception as error:  # of the network, the disk or onnxruntime: in any case there is no model
        raise ImprintError(
            f"rembg cannot load its weights '{WEIGHTS}' ({error}); it downloads them once to ~/.u2net (or "
            "$U2NET_HOME): connect to the network, put the file there, or give the object's mask"
        ) from error
