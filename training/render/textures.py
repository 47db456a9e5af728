"""Random materials: colours, patterns, photos and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imprint.images import open_image, to_srgb

from .meshes import Part

TEXTURE_SIZE = 256  # side of a drawn texture in pixels
STYLES = {"original": 0.35, "colours": 0.1, "photo": 0.15, "pattern": 0.13, "label": 0.13, "mixed": 0.14}


def draw_palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw colours (count, 3), sRGB in [0, 1]: hues of one harmony, with some greys, blacks and whites among them."""
    hues = (rng.uniform() + rng.choice([[0, 0.08, -0.08], [0, 0.5, 0.05], [0, 1 / 3, 2 / 3]])) % 1
    hue, saturation, value = rng.choice(hues, count), rng.uniform(0.25, 0.95, count), rng.uniform(0.25, 0.95, count)
    grey = rng.uniform(size=count) < 0.25
    saturation[grey] = 0
    value[grey] = rng.choice([0.04, 0.3, 0.6, 0.95], grey.sum())
    channels = np.clip(np.abs((hue[:, None] + [0, 2 / 3, 1 / 3]) % 1 * 6 - 3) - 1, 0, 1)
    return value[:, None] * (1 + saturation[:, None] * (channels - 1))


def to_image(colours: np.ndarray) -> Image.Image:
    """Convert sRGB colours (H, W, 3) in [0, 1] to a picture."""
    return Image.fromarray(np.rint(colours * 255).astype(np.uint8))


def draw_clouds(rng: np.random.Generator) -> np.ndarray:
    """Draw smooth noise (S, S) in [0, 1]."""
    clouds = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE), np.float32)
    for octave in range(2, 7):
        noise = Image.fromarray(rng.uniform(size=(2**octave, 2**octave)).astype(np.float32))
        clouds += np.asarray(noise.resize(clouds.shape, Image.Resampling.BICUBIC)) / 2**octave
    return (clouds - clouds.min()) / np.ptp(clouds)


def draw_pattern(rng: np.random.Generator) -> Image.Image:
    """Draw stripes, dots, checks, a gradient, noise or marble in two to four colours."""
    y, x = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE] / TEXTURE_SIZE
    angle, frequency = rng.choice([0, math.pi / 2, rng.uniform(0, math.pi)]), rng.uniform(3, 14)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    match rng.integers(6):
        case 0:
            value = np.sin(2 * math.pi * frequency * u) > rng.uniform(-0.7, 0.7)
        case 1:
            value = np.hypot((u * frequency) % 1 - 0.5, (v * frequency) % 1 - 0.5) < rng.uniform(0.2, 0.4)
        case 2:
            value = (np.floor(u * frequency) + np.floor(v * frequency)) % 2
        case 3:
            value = (u - u.min()) / np.ptp(u)
        case 4:
            value = draw_clouds(rng)
        case _:
            value = 0.5 + 0.5 * np.sin(math.pi * frequency * u + rng.uniform(4, 12) * draw_clouds(rng))
    colours = draw_palette(rng, rng.integers(2, 5))
    stops = np.linspace(0, 1, len(colours))
    return to_image(np.stack([np.interp(value, stops, channel) for channel in colours.T], axis=-1))


def draw_photo(rng: np.random.Generator, photos: Sequence[Path]) -> Image.Image:
    """Draw a random square crop of a random photo; a pattern if there are no photos."""
    if not photos:
        return draw_pattern(rng)
    photo = to_srgb(open_image(photos[rng.integers(len(photos))]))
    side = rng.uniform(0.4, 1) * min(photo.size)
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    return photo.resize((TEXTURE_SIZE, TEXTURE_SIZE), box=(left, top, left + side, top + side))


def draw_word(rng: np.random.Generator) -> str:
    """Draw a number or a short pronounceable word."""
    if rng.uniform() < 0.25:
        return str(rng.integers(1, 10000))
    word = "".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(rng.integers(1, 4)))
    return str(rng.choice([word.upper(), word.capitalize()]))


def draw_label(rng: np.random.Generator, extent: np.ndarray) -> Image.Image:
    """Draw a label band with one to three lines of text, placed and sized for a bounding box of `extent` (3,)."""
    base, band, ink = (tuple(colour) for colour in np.rint(draw_palette(rng, 3) * 255).astype(int).tolist())
    if abs(sum(band) - sum(ink)) < 240:  # text must stand out
        ink = (250, 250, 250) if sum(band) < 380 else (10, 10, 10)
    texture = draw_pattern(rng) if rng.uniform() < 0.2 else Image.new("RGB", (TEXTURE_SIZE, TEXTURE_SIZE), base)
    draw = ImageDraw.Draw(texture)
    width, height = TEXTURE_SIZE * np.array([min(extent[0], extent[2]), extent[1]]) / extent.max()
    lines = rng.integers(1, 4)
    middle = TEXTURE_SIZE / 2 + rng.uniform(-0.15, 0.15) * height
    half = rng.uniform(0.2, 0.42) * height
    draw.rectangle((0, middle - half, TEXTURE_SIZE, middle + half), fill=band)
    for line in range(lines):
        text = draw_word(rng)
        pitch = 2 * half / lines
        size = max(6.0, min(0.9 * pitch, rng.uniform(0.9, 1.4) * width / len(text)))
        place = (TEXTURE_SIZE / 2, middle - half + (line + 0.5) * pitch)
        draw.text(place, text, fill=ink, font=ImageFont.load_default(size), anchor="mm")
    return texture


def retexture(parts: list[Part], style: str, rng: np.random.Generator, photos: Sequence[Path]) -> None:
    """Give the parts textures of a style, in place."""
    if style == "colours" and len(parts) == 1:
        style = "pattern"  # one plain colour hardly makes an identity
    largest = max(range(len(parts)), key=lambda i: np.prod(np.sort(parts[i].bounds[1])[1:]))
    colours = draw_palette(rng, len(parts))
    for i, part in enumerate(parts):
        kind = style
        if style == "mixed":
            kind = rng.choice(["original", "colours", "photo", "pattern", "label"])
        elif style in ("photo", "pattern", "label") and i != largest and rng.uniform() < 0.6:
            kind = "colours"
        if kind == "original":
            continue
        part.triplanar = True
        if kind == "colours":
            part.texture = to_image(colours[None, None, i])
        elif kind == "photo":
            part.texture = draw_photo(rng, photos)
        elif kind == "pattern":
            part.texture = draw_pattern(rng)
        else:
            part.texture = draw_label(rng, part.bounds[1])


def draw_material(rng: np.random.Generator, keep_colours: bool) -> dict[str, Any]:
    """Draw an identity's uniforms: roughness, metallic and a hue rotation of the mesh's own colours."""
    angle = 0.0 if keep_colours else rng.uniform(0, 2 * math.pi)
    c, s = math.cos(angle), math.sin(angle)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # Rodrigues' rotation about grey
    hue = c * np.eye(3) + s * axis + (1 - c) / 3
    metallic = rng.uniform(0.2, 0.7) if rng.uniform() < 0.15 else 0.0
    return {"roughness": rng.uniform(0.2, 0.95), "metallic": metallic, "recolour": tuple(hue.T.ravel())}
