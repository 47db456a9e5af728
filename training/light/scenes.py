"""What a group shows: an object as one mesh, its pose and the camera, and the group's channels.

A group holds what training needs to know about light and shadow: the object on its ground in the light of several
panoramas, the ground without it, what a photo of each place would show, and the object alone in yet another light. All
values are linear radiance, so that exposures and white balances can be drawn anew every time a group is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..render.meshes import Part

LIGHTS = 3
"""Panoramas per group that light object and ground; one more lights only the object."""
CHANNELS = {"lit": 3 * LIGHTS, "bare": LIGHTS, "photo": 3 * LIGHTS, "alone": 3, "alpha": 1, "normal": 3}
"""A group's float16 channels per pixel, in this order. `bare` is luminance."""
TILE = 256
"""Side in pixels of a part's tile in the atlas; half of it if there are many parts."""
PALETTE_LEVELS = 4
"""Levels per colour channel to which vertex colours are quantised."""


def channels(name: str) -> slice:
    """The slice of a group's channels with this name in `CHANNELS`."""
    names = list(CHANNELS)
    start = sum(CHANNELS[before] for before in names[: names.index(name)])
    return slice(start, start + CHANNELS[name])


@dataclass(frozen=True)
class Shape:
    """A whole object as one mesh of diameter 1; faces share no vertices."""

    positions: np.ndarray
    """(V, 3) float32."""
    normals: np.ndarray
    """(V, 3) float32, of length 1."""
    uv: np.ndarray
    """(V, 2) float32, as in Mitsuba: v runs down the atlas."""
    faces: np.ndarray
    """(F, 3) uint32."""
    atlas: np.ndarray
    """(H, W, 3) uint8, sRGB."""


@dataclass(frozen=True)
class View:
    """A group's pose, camera and materials. Lengths are in object diameters, angles in radians."""

    rotation: np.ndarray
    """(3, 3): the object's rotation, before it is put on the ground."""
    lift: float
    """How far it floats above the ground."""
    grounded: bool
    """Whether there is a ground; without one nothing receives a shadow."""
    elevation: float
    """The camera's elevation above `aim`."""
    distance: float
    """The camera's distance from `aim`."""
    field: float
    """Field of view."""
    aim: np.ndarray
    """(3,): the point that the camera looks at."""
    roughness: float
    metallic: float
    specular: float
    reflectance: float
    """The ground's albedo."""

    @property
    def eye(self) -> np.ndarray:
        """(3,): where the camera is, above the ground if there is one."""
        eye = self.aim + self.distance * np.array([0, math.sin(self.elevation), math.cos(self.elevation)])
        if self.grounded:
            eye[1] = max(eye[1], 0.05)
        return eye

    @property
    def horizon(self) -> float:
        """Row where the ground ends, relative to the picture's height, 0 at the top; infinite without a ground."""
        if not self.grounded:
            return math.inf
        across, up, away = self.eye - self.aim
        return 0.5 - up / math.hypot(across, away) / (2 * math.tan(self.field / 2))

    def stood(self, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """Positions and normals (V, 3) of the shape, rotated, centred above the origin, and at its height."""
        turned = self.rotation.T.astype(np.float32)
        positions = shape.positions @ turned
        low, high = positions.min(0), positions.max(0)
        middle = (low + high) / 2
        positions -= np.array([middle[0], low[1] - self.lift, middle[2]], np.float32)
        return positions, shape.normals @ turned


# --- an object as one mesh -------------------------------------------------------------------------------------------


def merge_parts(parts: list[Part]) -> Shape:
    """Merge a mesh's parts into one, with their textures as tiles of one atlas."""
    columns = math.ceil(math.sqrt(len(parts)))
    tile = TILE if columns <= 3 else TILE // 2
    atlas = np.zeros((columns * tile, columns * tile, 3), np.uint8)
    positions, normals, uvs = [], [], []
    for index, part in enumerate(parts):
        row, column = divmod(index, columns)
        corners = part.vertices[part.faces]  # (F, 3, 11)
        texture, uv = _texture(part, corners)
        filter = Image.Resampling.NEAREST if texture.width <= 8 else Image.Resampling.BICUBIC
        picture = np.asarray(texture.convert("RGB").resize((tile, tile), filter))
        atlas[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile] = picture
        inside = np.clip(uv, 0.5 / tile, 1 - 0.5 / tile)
        # Mitsuba's v runs down its bitmaps, the parts' v runs up.
        uvs.append(np.stack([column + inside[..., 0], row + 1 - inside[..., 1]], -1).reshape(-1, 2) / columns)
        positions.append(corners[..., :3].reshape(-1, 3))
        normals.append(_corner_normals(corners).reshape(-1, 3))
    normal = np.concatenate(normals)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-9)
    count = sum(map(len, positions))
    return Shape(
        (np.concatenate(positions) / 2).astype(np.float32),  # parts have a radius of 1
        normal.astype(np.float32),
        np.concatenate(uvs).astype(np.float32),
        np.arange(count, dtype=np.uint32).reshape(-1, 3),
        atlas,
    )


def _face_normals(corners: np.ndarray) -> np.ndarray:
    """(F, 3): the faces' normals, with lengths proportional to the faces' areas."""
    return np.cross(corners[:, 1, :3] - corners[:, 0, :3], corners[:, 2, :3] - corners[:, 0, :3])


def _corner_normals(corners: np.ndarray) -> np.ndarray:
    """(F, 3, 3): the corners' normals, or their face's where they have none."""
    normals = corners[..., 3:6].copy()
    missing = ~(np.linalg.norm(normals, axis=-1) > 1e-6)
    normals[missing] = np.broadcast_to(_face_normals(corners)[:, None], normals.shape)[missing]
    return normals


def _texture(part: Part, corners: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """A part's texture, and its corners' coordinates (F, 3, 2) in it, from 0 to 1, v upwards."""
    if part.triplanar:
        return part.texture, _triplanar(part, corners)
    if part.texture.width > 1:
        uv = corners[..., 6:8]
        return part.texture, uv - np.floor(uv.min(1, keepdims=True))  # a face that crosses the border is clamped there
    return _palette(corners)


def _triplanar(part: Part, corners: np.ndarray) -> np.ndarray:
    """(F, 3, 2): coordinates in the texture, projected onto each face along the axis closest to its normal."""
    centre, extent = part.bounds
    local = (corners[..., :3] - centre) / max(float(extent.max()), 1e-4)
    side = np.abs(_face_normals(corners)).argmax(1)
    axes = np.array([2, 0, 0])[side], np.array([1, 2, 1])[side]
    return np.stack([np.take_along_axis(local, axis[:, None, None], 2)[..., 0] for axis in axes], -1) + 0.5


def _palette(corners: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Turn plain or vertex colours into a texture of 8 x 8 colours and each face's coordinates in it, (F, 3, 2)."""
    colour = corners[..., 8:11].mean(1)
    levels = np.rint(colour.clip(0, 1) * (PALETTE_LEVELS - 1)).astype(int)
    cell = levels @ np.array([PALETTE_LEVELS**2, PALETTE_LEVELS, 1])
    palette = np.full((64, 3), 0.5)
    for each in np.unique(cell):
        palette[each] = colour[cell == each].mean(0)
    picture = Image.fromarray(np.rint(palette.clip(0, 1).reshape(8, 8, 3) * 255).astype(np.uint8))
    uv = np.stack([cell % 8 + 0.5, 7.5 - cell // 8], -1) / 8
    return picture, np.repeat(uv[:, None], 3, 1)


# --- a view ----------------------------------------------------------------------------------------------------------


def draw_view(rng: np.random.Generator, shape: Shape) -> View:
    """Draw a camera that sees an object and the ground around it, as in a person's photo."""
    rotation = _about([0, 1, 0], rng.uniform(0, 2 * math.pi))
    if rng.uniform() < 0.15:  # lying or leaning
        rotation = _about(rng.normal(size=3), rng.uniform(0, 2 * math.pi)) @ rotation
    kind = rng.uniform()
    grounded = kind < 0.975
    lift = rng.uniform(0.03, 0.6) if kind < 0.025 else 0.0
    height = float(np.ptp(shape.positions @ rotation.T[:, 1]))
    elevation = rng.uniform(6, 40) if rng.uniform() < 0.85 else rng.uniform(40, 65)
    if not grounded:  # in front of the sky or a wall
        elevation = rng.uniform(-35, 5)
    return View(
        rotation=rotation,
        lift=lift,
        grounded=grounded,
        elevation=math.radians(elevation),
        distance=rng.uniform(1.8, 3.0),
        field=math.radians(rng.uniform(30, 50)),
        aim=np.array([rng.uniform(-0.35, 0.35), lift + height * 0.5 + rng.uniform(-0.15, 0.28), 0.0]),
        roughness=rng.uniform(0.12, 0.95),
        metallic=rng.uniform(0.3, 1) if rng.uniform() < 0.1 else 0.0,
        specular=rng.uniform(0.15, 0.6),
        reflectance=rng.uniform(0.12, 0.65),
    )


def _about(axis: np.ndarray | list[float], angle: float) -> np.ndarray:
    """Rotation (3, 3) by an angle about an axis (Rodrigues)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
