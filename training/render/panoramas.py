"""HDR panoramas as the surroundings and the light of rendered objects.

Directions are unit vectors with y up. A panorama's rows go from straight up to straight down, its columns once around.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imprint.errors import ImprintError, from_extra

LEVEL_SIZES = ((64, 128), (32, 64), (16, 32), (8, 16))  # rows and columns of a panorama's blurred copies
LEVEL_EXPONENTS = (400, 40, 8, 1)  # exponents of the blurs' cosine lobes; 1 is a matt surface's
KEY_REACH = math.radians(12)  # radius of the strongest light around its brightest pixel
KEY_THRESHOLD = 8.0  # times the mean: darker pixels do not count as a separate light
MIDDLE_GREY = 0.13  # linear geometric mean of an exposed view
WHITEST = 1.2  # linear limit for a white object's brightest side: a camera exposes for the object, too
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green and blue (ITU-R BT.709)
PANORAMAS_KEPT = 16  # per process, in memory; one of 1024 x 512 takes 10 MB
STEEPEST = 2.5  # times the object's height: longer shadows are cut


@dataclass(frozen=True, eq=False)
class Panorama:
    """Linear radiance (H, W, 3) float32, and its split for rendering: the strongest light and everything else."""

    radiance: np.ndarray
    key_direction: np.ndarray
    """(3,) towards the strongest light."""
    key_light: np.ndarray
    """(3,) the part of this light that a white matt surface facing it returns."""
    levels: tuple[np.ndarray, ...]
    """Everything else, in `LEVEL_SIZES`, increasingly blurred; the last is what a white matt surface returns."""


@functools.lru_cache(maxsize=PANORAMAS_KEPT)
def read_panorama(path: Path) -> Panorama:
    """Read a .hdr or .exr file and split its light. Raises `ImprintError` for anything else."""
    return take_apart(read_radiance(path))


def read_radiance(path: Path) -> np.ndarray:
    """Read a .hdr or .exr file: linear (H, 2 * H, 3) float32, never below 0. Raises `ImprintError` for other files."""
    pixels = _read_exr(path) if path.suffix.lower() == ".exr" else _read_hdr(path)
    if pixels is None or pixels.ndim != 3 or pixels.dtype != np.float32 or pixels.shape[1] != 2 * pixels.shape[0]:
        found = "no picture" if pixels is None else f"{pixels.dtype} of {' x '.join(map(str, pixels.shape))}"
        raise ImprintError(
            f"{path} is {found}; a panorama is a .hdr picture of true intensities, twice as wide as high "
            "(equirectangular)"
        )
    return np.nan_to_num(pixels).clip(0)


def _read_hdr(path: Path) -> np.ndarray | None:
    cv2 = from_extra("cv2", "train", f"reading {path}")
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return None if pixels is None or pixels.ndim != 3 else np.ascontiguousarray(pixels[..., 2::-1])


def _read_exr(path: Path) -> np.ndarray | None:
    """Read it with Mitsuba, since OpenCV's wheels cannot read OpenEXR. Compressed files can have values below 0."""
    mitsuba = from_extra("mitsuba", "light", f"{path}, unless you convert it to .hdr,")
    if mitsuba.variant() is None:
        mitsuba.set_variant("scalar_rgb")
    try:
        picture = mitsuba.Bitmap(str(path))
    except RuntimeError:
        return None
    return np.array(picture.convert(mitsuba.Bitmap.PixelFormat.RGB, mitsuba.Struct.Type.Float32, srgb_gamma=False))


def take_apart(radiance: np.ndarray) -> Panorama:
    """Split linear radiance (H, W, 3) into a `Panorama`."""
    rays, solid = directions(radiance.shape[:2]), solid_angles(radiance.shape[:2])
    bright = radiance @ LUMINANCE
    mean = (bright * solid).sum() / (4 * math.pi)
    towards = rays.reshape(-1, 3)[bright.argmax()]
    lamp = (rays @ towards > math.cos(KEY_REACH)) & (bright > KEY_THRESHOLD * mean)
    rest = radiance * np.where(lamp, KEY_THRESHOLD * mean / np.maximum(bright, 1e-9), 1)[..., None]
    power = ((radiance - rest) * solid[..., None]).sum((0, 1))
    middle = (rays * (((radiance - rest) @ LUMINANCE) * solid)[..., None]).sum((0, 1))
    length = np.linalg.norm(middle)
    direction = middle / length if length > 0 else towards
    return Panorama(radiance, direction, power / math.pi, _blurred(rest))


def directions(shape: tuple[int, int]) -> np.ndarray:
    """Unit vectors (H, W, 3) of a panorama's pixels."""
    high, wide = shape
    elevation = (0.5 - (np.arange(high) + 0.5) / high)[:, None] * math.pi
    azimuth = ((np.arange(wide) + 0.5) / wide - 0.5)[None] * 2 * math.pi
    return np.stack(
        np.broadcast_arrays(
            np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)
        ),
        axis=-1,
    )


def solid_angles(shape: tuple[int, int]) -> np.ndarray:
    """Solid angles (H, W) of a panorama's pixels in steradians; they add up to the sphere's."""
    high, wide = shape
    edges = np.sin((0.5 - np.arange(high + 1) / high) * math.pi)
    return np.repeat(((edges[:-1] - edges[1:]) * 2 * math.pi / wide)[:, None], wide, 1)


def _blurred(radiance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means around each direction, weighted by powers of the cosine."""
    high, wide = LEVEL_SIZES[1]
    step = radiance.shape[0] // high
    if step < 1 or radiance.shape[0] % high:
        raise ImprintError(f"a panorama has {radiance.shape[0]} rows; {high} or a multiple of it were expected")
    small = radiance.reshape(high, step, wide, step, 3).mean((1, 3)).reshape(-1, 3)
    weights, rays = solid_angles((high, wide)).reshape(-1, 1), directions((high, wide)).reshape(-1, 3)
    levels = []
    for shape, exponent in zip(LEVEL_SIZES, LEVEL_EXPONENTS):
        lobes = (directions(shape).reshape(-1, 3) @ rays.T).clip(0) ** exponent
        levels.append((lobes @ (small * weights) / (lobes @ weights)).reshape(*shape, 3).astype(np.float32))
    return tuple(levels)


def look(panorama: Panorama, rotation: np.ndarray, turn: float, field: float, side: int) -> np.ndarray:
    """View a panorama through a camera: (side, side, 3) linear radiance.

    rotation: (3, 3), rows right, up and backwards. turn: the panorama's rotation about the vertical, in whole turns.
    field: the camera's field of view, in radians.
    """
    line = ((np.arange(side) + 0.5) / side * 2 - 1) * math.tan(field / 2)
    x, y = np.meshgrid(line, -line)
    rays = np.stack([x, y, -np.ones_like(x)], -1) @ rotation
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    high, wide = panorama.radiance.shape[:2]
    column = (np.arctan2(rays[..., 0], rays[..., 2]) / (2 * math.pi) + 0.5 + turn) * wide - 0.5
    row = (0.5 - np.arcsin(rays[..., 1].clip(-1, 1)) / math.pi) * high - 0.5
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    across, down = (column - left)[..., None], (row - top)[..., None]
    corners = [panorama.radiance[(top + dy).clip(0, high - 1), (left + dx) % wide] for dy in (0, 1) for dx in (0, 1)]
    upper, lower = (corners[i] * (1 - across) + corners[i + 1] * across for i in (0, 2))
    return upper * (1 - down) + lower * down


def draw_exposure(rng: np.random.Generator, panorama: Panorama, radiance: np.ndarray) -> float:
    """Draw a camera's exposure factor for a view (H, W, 3) of the panorama, give or take half a stop."""
    middle = np.exp(np.log((radiance @ LUMINANCE).clip(1e-5)).mean())
    matt = panorama.levels[-1]
    facing = (directions(matt.shape[:2]) @ panorama.key_direction).clip(0)
    brightest = ((matt + facing[..., None] * panorama.key_light) @ LUMINANCE).max()
    return min(MIDDLE_GREY / middle * math.exp(rng.normal(0, 0.35)), WHITEST / brightest)


def to_photo(radiance: np.ndarray) -> Image.Image:
    """Convert exposed linear radiance to a picture as the renderer does: a soft shoulder, then sRGB."""
    c = np.where(radiance > 0.7, 1 - 0.3 * np.exp((0.7 - np.minimum(radiance, 50)) / 0.3), radiance)
    c = np.where(c > 0.0031308, 1.055 * np.maximum(c, 0) ** (1 / 2.4) - 0.055, 12.92 * c)
    return Image.fromarray(np.rint(c.clip(0, 1) * 255).astype(np.uint8))


def cast_shadow(
    direction: np.ndarray, key_light: np.ndarray, ambient: np.ndarray, rotation: np.ndarray
) -> tuple[float, float, float]:
    """The key light's shadow on level ground: (lean, rise, depth), as described in `training.data.shards.Record`.

    direction: (3,), towards the light. key_light, ambient: (3,), what level white ground returns of the key light at
    normal incidence, and of all other light. rotation: as in `look`.
    """
    key = max(direction[1], 0.0) * float(key_light @ LUMINANCE)
    depth = 1 - (1 - key / max(key + float(ambient @ LUMINANCE), 1e-9)) ** (1 / 2.2)
    tip = -direction[[0, 2]] / max(direction[1], 1e-3)
    tip *= min(1.0, STEEPEST / max(float(np.hypot(*tip)), 1e-9))
    right, up, _ = rotation
    height = math.copysign(max(abs(up[1]), 0.3), up[1])  # it would be close to 0 when seen from above
    lean = (tip @ right[[0, 2]]) / height
    rise = (tip @ up[[0, 2]]) / height
    return (
        float(np.clip(lean, -1.5, 1.5)),
        float(math.copysign(np.clip(abs(rise), 0.06, 0.8), rise)),
        float(np.clip(depth, 0.12, 0.8)),
    )
