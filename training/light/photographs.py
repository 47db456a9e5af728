"""Cut squares out of photos around annotated objects, for pairs from photos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from ..data.shards import Sample

LEAST_PIXELS = 1500
"""Smallest object, in pixels of the stored photo."""
LEAST_SIDE = 110
"""Smallest side of a square, in pixels of the stored photo; smaller squares are blurred."""
LEAST_SHARE = 0.25
"""Smallest fraction of its box that an object fills; one that fills less is scattered."""
FILLED = (0.35, 0.75)
"""Range of the object's longer side, relative to the square's side."""


def cut_squares(samples: Iterable[Sample], side: int, each: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Cut `each` squares, (4, side, side) uint8 of RGB and the object's mask, around each usable object of the samples.

    An object that is cut off by two or more of the photo's borders is not usable, nor is one without a mask.
    """
    for sample in samples:
        if sample.mask is None:
            continue
        picture = sample.picture.convert("RGB")
        for number in sorted(number for _, number in sample.mask.getcolors() if number):
            mask = sample.mask.point([255 * (value == number) for value in range(256)])
            box = mask.getbbox()
            if not _usable(mask, box):
                continue
            for _ in range(each):
                square = _draw_square(picture.size, box, rng)
                if square is not None:
                    yield _cut(picture, mask, square, side)


def _usable(mask: Image.Image, box: tuple[int, int, int, int]) -> bool:
    left, top, right, bottom = box
    area = mask.histogram()[255]
    cut = (left <= 1) + (top <= 1) + (right >= mask.width - 1) + (bottom >= mask.height - 1)
    return area >= LEAST_PIXELS and area >= LEAST_SHARE * (right - left) * (bottom - top) and cut <= 1


def _draw_square(
    size: tuple[int, int], box: tuple[int, int, int, int], rng: np.random.Generator
) -> tuple[float, float, float, float] | None:
    """Draw a square of the photo that contains the box; None if the size drawn does not allow one."""
    left, top, right, bottom = box
    longer = max(right - left, bottom - top)
    side = min(longer / rng.uniform(*FILLED), *size)
    if side < max(longer, LEAST_SIDE):
        return None
    x = rng.uniform(max(0, right - side), min(left, size[0] - side))
    y = rng.uniform(max(0, bottom - side), min(top, size[1] - side))
    return x, y, x + side, y + side


def _cut(picture: Image.Image, mask: Image.Image, square: tuple[float, float, float, float], side: int) -> np.ndarray:
    size = (side, side)
    colours = picture.resize(size, Image.Resampling.BICUBIC, box=square, reducing_gap=3)
    smaller = square[2] - square[0] > side
    outline = mask.resize(size, Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR, box=square)
    return np.concatenate([np.asarray(colours), np.asarray(outline)[..., None]], 2).transpose(2, 0, 1)
