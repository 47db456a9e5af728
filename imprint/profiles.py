"""ICC colour profiles. A picture without one is sRGB."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}  # ICC's colour space by mode; all others are RGB
_NAMELESS = ("1", "I", "F", "LAB", "HSV", "YCbCr")  # prefixes of modes that have no profiles
_ALIKE = 2  # of 255: profiles that differ by less are equivalent
_PROBES = np.stack(np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 3), -1).reshape(1, -1, 3)


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of a picture, if it has a readable one for its mode."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode.startswith(_NAMELESS):
        return None
    return profile if _space(profile) == _SPACES.get(image.mode, "RGB") else None


def rgb_profile_of(image: Image.Image) -> bytes | None:
    """The profile of the picture after `images.to_rgb`; None: sRGB."""
    return None if image.mode in _SPACES else profile_of(image)


def convert_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert RGB or RGBA pixels from their own profile to another, None for sRGB; unchanged if both are equivalent."""
    own = profile_of(image)
    if own == profile or _alike(own, profile):
        return image
    converted = _converted(image.convert("RGB"), own, profile)
    if "A" in image.getbands():
        converted.putalpha(image.getchannel("A"))
    return _tagged(converted, profile)


def grey_or_cmyk_to_srgb(image: Image.Image) -> Image.Image | None:
    """L, LA or CMYK with a profile of its own -> RGB in sRGB; None where there is no such profile."""
    own = profile_of(image)
    if own is None or image.mode not in _SPACES:
        return None
    return _tagged(_converted(image.convert("L") if image.mode == "LA" else image, own, None), None)


def _tagged(image: Image.Image, profile: bytes | None) -> Image.Image:
    image.info.pop("icc_profile", None)
    if profile:
        image.info["icc_profile"] = profile
    return image


def _converted(image: Image.Image, own: bytes | None, other: bytes | None) -> Image.Image:
    return ImageCms.profileToProfile(image, _read(own), _read(other), outputMode="RGB")


def _read(profile: bytes | None) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(BytesIO(profile) if profile else ImageCms.createProfile("sRGB"))


@lru_cache(32)
def _space(profile: bytes) -> str | None:
    """A profile's colour space in ICC's terms; None for anything that is not a profile."""
    try:
        return _read(profile).profile.xcolor_space.strip()
    except (OSError, ValueError, TypeError):
        return None


@lru_cache(32)
def _alike(one: bytes | None, other: bytes | None) -> bool:
    """Whether two RGB profiles encode colours alike."""
    probes = Image.fromarray(_PROBES)
    moved = np.asarray(_converted(probes, one, other)).astype(int)
    return int(np.abs(moved - _PROBES).max()) <= _ALIKE
