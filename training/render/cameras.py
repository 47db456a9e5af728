"""Cameras of rendered views."""

from __future__ import annotations

import math

import numpy as np


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector (3,), y up, for two angles in radians."""
    return np.array(
        [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
    )


def look_at(towards: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """Rotation (3, 3) into the frame of a camera at `towards` that looks at the origin. roll: in radians."""
    right = np.cross([0, 1, 0], towards)
    right /= np.linalg.norm(right)
    up = np.cross(towards, right)
    c, s = math.cos(roll), math.sin(roll)
    return np.stack([c * right + s * up, c * up - s * right, towards])


def draw_azimuths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw azimuths (count,) in radians; pairs of them are from close together (15 degrees) to opposite."""
    gaps = rng.permutation(np.resize([[15, 30], [30, 60], [15, 30], [60, 120], [40, 90]], (count, 2)))
    return np.radians(rng.uniform(0, 360) + np.cumsum(rng.uniform(gaps[:, 0], gaps[:, 1])))


def draw_camera(
    rng: np.random.Generator, azimuth: float, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the matrix (4, 4), eye (3,) and rotation (3, 3) of a camera; the points fill 70 to 95 % of its frame.

    azimuth: in radians. points: (N, 3).
    """
    extent = np.ptp(points, axis=0)
    lowest = 20 if extent[1] < 0.3 * extent.max() else -5  # a flat object seen edge-on shows nothing
    elevation = rng.uniform(lowest, 50) if rng.uniform() < 0.87 else rng.uniform(50, 75)
    roll = rng.uniform(-15, 15) if rng.uniform() < 0.9 else rng.uniform(-40, 40)
    distance = 1 / math.sin(math.radians(rng.uniform(20, 50)) / 2)
    towards = direction(azimuth, math.radians(elevation))
    rotation = look_at(towards, math.radians(roll))
    seen = points @ rotation.T
    image = seen[:, :2] / (distance - seen[:, 2:])
    low, high = image.min(0), image.max(0)
    fill = rng.uniform(0.7, 0.95)
    scale = 2 * fill / (high - low).max()
    shift = scale * (low + high) / 2 - rng.uniform(-0.5, 0.5, 2) * (1 - fill)
    near, far = distance - 1.01, distance + 1.01
    view = np.eye(4)
    view[:3, :3], view[2, 3] = rotation, -distance
    projection = np.array(
        [
            [scale, 0, shift[0], 0],
            [0, scale, shift[1], 0],
            [0, 0, -(far + near) / (far - near), -2 * far * near / (far - near)],
            [0, 0, -1, 0],
        ]
    )
    return projection @ view, distance * towards, rotation


def shadow_camera(towards: np.ndarray) -> tuple[float, ...]:
    """The matrix, in column order, that views the unit sphere from a light."""
    matrix = np.diag([1, 1, -1, 1]).astype(float)
    matrix[:3, :3] = matrix[:3, :3] @ look_at(towards)
    return tuple(matrix.T.ravel())
