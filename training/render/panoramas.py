"""The light of scenes: panoramas of true intensities, as what surrounds an object and throws its shadow.

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
LEVEL_EXPONENTS = (400, 40, 8, 1)  # of the cosine that each is blurred with; 1 is what a matt surface sees
KEY_REACH = math.radians(12)  # how far around its brightest pixel the strongest light reaches
KEY_THRESHOLD = 8.0  # times the mean: what is darker is no light of its own
MIDDLE_GREY = 0.13  # linear geometric mean of what a camera shows
WHITEST = 1.2  # linear, what the best lit side of a white object may return: a camera exposes for the object, too
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
PANORAMAS_KEPT = 16  # in each process's memory; one of 1024 x 512 takes 10 MB
STEEPEST = 2.5  # times the object's height: longer shadows are cut


@dataclass(frozen=True, eq=False)
class Panorama:
    """Linear radiance (H, W, 3) float32, and the same taken apart for rendering: its strongest light, and all else."""

    radiance: np.ndarray
    key_direction: np.ndarray
    """(3,) towards the strongest light."""
    key_light: np.ndarray
    """(3,) what a white matt surface that faces it returns of it."""
    levels: tuple[np.ndarray, ...]
    """All but that light, of `LEVEL_SIZES`, each blurred more; the last is what a white matt surface returns."""


@functools.lru_cache(maxsize=PANORAMAS_KEPT)
def read_panorama(path: Path) -> Panorama:
    """A .hdr or .exr file, taken apart. Raises `ImprintError` for anything else."""
    return take_apart(read_radiance(path))


def read_radiance(path: Path) -> np.ndarray:
    """A .hdr or .exr file: (H, 2 * H, 3) float32, linear, nowhere below 0. Raises `ImprintError` for anything else."""
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
    """By Mitsuba: OpenCV's wheels read no OpenEXR. Compressed ones may dip below 0."""
    mitsuba = from_extra("mitsuba", "light", f"{path}, unless you convert it to .hdr,")
    if mitsuba.variant() is None:
        mitsuba.set_variant("scalar_rgb")
    try:
        picture = mitsuba.Bitmap(str(path))
    except RuntimeError:
        return None
    return np.array(picture.convert(mitsuba.Bitmap.PixelFormat.RGB, mitsuba.Struct.Type.Float32, srgb_gamma=False))


def take_apart(radiance: np.ndarray) -> Panorama:
    """(H, W, 3) linear radiance as a `Panorama`."""
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
    """(H, W, 3) unit vectors of a panorama's pixels."""
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
    """(H, W) steradians of a panorama's pixels; their sum is that of the sphere."""
    high, wide = shape
    edges = np.sin((0.5 - np.arange(high + 1) / high) * math.pi)
    return np.repeat(((edges[:-1] - edges[1:]) * 2 * math.pi / wide)[:, None], wide, 1)


def _blurred(radiance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Each direction's mean, weighed by powers of the cosine to it."""
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
    """(side, side, 3) linear radiance through a camera.

    rotation (3, 3): rows right, up and backwards; turn: of the panorama about the vertical, in whole turns; field: the
    camera's, in radians.
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
    """What a camera would multiply a view (H, W, 3) of it by, give or take half a stop."""
    middle = np.exp(np.log((radiance @ LUMINANCE).clip(1e-5)).mean())
    matt = panorama.levels[-1]
    facing = (directions(matt.shape[:2]) @ panorama.key_direction).clip(0)
    brightest = ((matt + facing[..., None] * panorama.key_light) @ LUMINANCE).max()
    return min(MIDDLE_GREY / middle * math.exp(rng.normal(0, 0.35)), WHITEST / brightest)


def to_photo(radiance: np.ndarray) -> Image.Image:
    """Linear radiance, exposed, as the renderer shows it: a soft shoulder, then sRGB."""
    c = np.where(radiance > 0.7, 1 - 0.3 * np.exp((0.7 - np.minimum(radiance, 50)) / 0.3), radiance)
    c = np.where(c > 0.0031308, 1.055 * np.maximum(c, 0) ** (1 / 2.4) - 0.055, 12.92 * c)
    return Image.fromarray(np.rint(c.clip(0, 1) * 255).astype(np.uint8))


def cast_shadow(
    direction: np.ndarray, key_light: np.ndarray, ambient: np.ndarray, rotation: np.ndarray
) -> tuple[float, float, float]:
    """The key light's shadow on level ground: (lean, rise, depth), as `training.data.shards.Record` describes it.

    direction (3,): to the light; key_light, ambient (3,): what level white ground returns of the light when it falls
    straight, and of all else; rotation as in `look`.
    """
    key = max(direction[1], 0.0) * float(key_light @ LUMINANCE)
    depth = 1 - (1 - key / max(key + float(ambient @ LUMINANCE), 1e-9)) ** (1 / 2.2)
    tip = -direction[[0, 2]] / max(direction[1], 1e-3)
    tip *= min(1.0, STEEPEST / max(float(np.hypot(*tip)), 1e-9))
    right, up, _ = rotation
    height = math.copysign(max(abs(up[1]), 0.3), up[1])  # seen from above, things have hardly any
    lean = (tip @ right[[0, 2]]) / height
    rise = (tip @ up[[0, 2]]) / height
    return (
        float(np.clip(lean, -1.5, 1.5)),
        float(math.copysign(np.clip(abs(rise), 0.06, 0.8), rise)),
        float(np.clip(depth, 0.12, 0.8)),
    )
