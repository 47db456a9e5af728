"""The light of a view: random, or from a panorama."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .cameras import direction, shadow_camera
from .panoramas import Panorama, cast_shadow, draw_exposure, look, read_panorama, to_photo


def draw_tint(rng: np.random.Generator) -> np.ndarray:
    """Draw a light's linear colour (3,), between warm and cool; its largest channel is 1."""
    warmth = np.clip(rng.normal(0, 0.5), -1, 1)
    end = np.array([1, 0.68, 0.4]) if warmth > 0 else np.array([0.6, 0.78, 1])
    return 1 + abs(warmth) * (end - 1)


def draw_light(rng: np.random.Generator, azimuth: float) -> dict[str, Any]:
    """Draw the uniforms of a view's light; a white surface facing the key light returns 0.55 (dim) to 1.4 (bright)."""
    exposure = math.exp(rng.uniform(math.log(0.55), math.log(1.4)))
    ambient = rng.uniform(0.2, 0.65)
    key = direction(azimuth + math.radians(rng.uniform(-120, 120)), math.radians(rng.uniform(15, 75)))
    rim = direction(azimuth + math.radians(rng.uniform(120, 240)), math.radians(rng.uniform(-10, 50)))
    sky = exposure * ambient * draw_tint(rng)
    return {
        "panoramic": False,
        "turn": 0.0,
        "exposure": 1.0,
        "key_direction": tuple(key),
        "key_light": tuple(exposure * (1 - ambient) * draw_tint(rng)),
        "rim_direction": tuple(rim),
        "rim_light": tuple((rng.uniform() < 0.35) * exposure * rng.uniform(0.2, 0.7) * draw_tint(rng)),
        "sky": tuple(sky),
        "ground": tuple(sky * rng.uniform(0.25, 0.8) * draw_tint(rng)),
        "shadow_camera": shadow_camera(key),
    }


def turned(direction: np.ndarray, turn: float) -> np.ndarray:
    """Convert a panorama's direction (3,) to world coordinates. turn: of the panorama, in whole turns."""
    (x, y, z), angle = direction, -2 * math.pi * turn
    return np.array([x * math.cos(angle) + z * math.sin(angle), y, z * math.cos(angle) - x * math.sin(angle)])


def draw_scene(
    rng: np.random.Generator, files: Sequence[Path], rotation: np.ndarray, side: int
) -> tuple[Panorama, dict[str, Any], Image.Image, tuple[float, float, float]]:
    """Draw a randomly rotated panorama, its light's uniforms, the camera's view of it, and how shadows fall."""
    panorama, turn = read_panorama(files[rng.integers(len(files))]), rng.uniform()
    radiance = look(panorama, rotation, turn, math.radians(rng.uniform(60, 100)), side)
    exposure = draw_exposure(rng, panorama, radiance)
    key = turned(panorama.key_direction, turn)
    if key[1] < 0.05:  # a lamp at eye height casts no shadow on the ground; it is raised slightly
        key = np.array([key[0], 0.05, key[2]]) / np.linalg.norm([key[0], 0.05, key[2]])
    light = {
        "panoramic": True,
        "turn": turn,
        "exposure": exposure,
        "key_direction": tuple(key),
        "key_light": tuple(exposure * panorama.key_light),
        "rim_direction": tuple(key),
        "rim_light": (0.0, 0.0, 0.0),
        "sky": (0.0, 0.0, 0.0),
        "ground": (0.0, 0.0, 0.0),
        "shadow_camera": shadow_camera(key),
    }
    above = panorama.levels[-1][0].mean(0)  # the light on level ground without the key light
    return panorama, light, to_photo(exposure * radiance), cast_shadow(key, panorama.key_light, above, rotation)
