"""Path-traced groups: one object on the ground, seen by one camera, in the light of several panoramas (Mitsuba 3).

A group is what training needs to know of light and shadow: the object with its ground in each panorama's light, the
ground without it, what a photo of that place would show, and the object alone in yet another light. All is linear
radiance, so that exposures and white balances are drawn anew every time a group is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.render import Part

LIGHTS = 3
"""Panoramas per group that light object and ground; one more lights the object alone."""
CHANNELS = {"lit": 3 * LIGHTS, "bare": LIGHTS, "photo": 3 * LIGHTS, "alone": 3, "alpha": 1, "normal": 3}
"""What a group holds, in this order: channels of float16 per pixel."""
TILE = 256
"""Pixels a side of one part's tile in the atlas."""
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


@dataclass(frozen=True)
class Shape:
    """A whole object as one mesh: `positions`, `normals` (V, 3), `uv` (V, 2), `faces` (F, 3), atlas picture."""

    positions: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    faces: np.ndarray
    atlas: np.ndarray


@dataclass(frozen=True)
class View:
    """How a group is seen. All lengths in object diameters, angles in radians."""

    rotation: np.ndarray
    """(3, 3): the object's, before it is stood on the ground."""
    lift: float
    """How far it floats above the ground."""
    grounded: bool
    """Whether there is a ground at all; without one nothing takes a shadow."""
    elevation: float
    distance: float
    field: float
    aim: np.ndarray
    """(3,) what the camera looks at."""
    roughness: float
    metallic: float
    specular: float
    reflectance: float
    """Of the ground."""


def merge_parts(parts: list[Part]) -> Shape:
    """The parts of a mesh as one, with their textures in one atlas; every face has its own corners."""
    columns = math.ceil(math.sqrt(len(parts)))
    tile = TILE if columns <= 3 else TILE // 2
    atlas = np.zeros((columns * tile, columns * tile, 3), np.uint8)
    positions, normals, uvs = [], [], []
    for index, part in enumerate(parts):
        row, column = divmod(index, columns)
        corners = part.vertices[part.faces]  # (F, 3, 11)
        face = np.cross(corners[:, 1, :3] - corners[:, 0, :3], corners[:, 2, :3] - corners[:, 0, :3])
        normal = corners[..., 3:6].copy()
        missing = ~(np.linalg.norm(normal, axis=-1) > 1e-6)
        normal[missing] = np.broadcast_to(face[:, None], normal.shape)[missing]
        if part.triplanar:
            centre, extent = part.bounds
            local = (corners[..., :3] - centre) / max(float(extent.max()), 1e-4)
            axis = np.abs(face).argmax(1)
            across, up = np.array([2, 0, 0])[axis], np.array([1, 2, 1])[axis]
            uv = (
                np.stack([np.take_along_axis(local, each[:, None, None], 2)[..., 0] for each in (across, up)], -1) + 0.5
            )
            texture = part.texture
        elif part.texture.width > 1:
            uv = corners[..., 6:8]
            uv = uv - np.floor(uv.min(1, keepdims=True))  # a face that crosses the border is cut off there
            texture = part.texture
        else:  # plain or painted vertices: a palette of 8 x 8 colours
            colour = corners[..., 8:11].mean(1)
            levels = np.rint(colour.clip(0, 1) * 3).astype(int)
            cell = levels[:, 0] * 16 + levels[:, 1] * 4 + levels[:, 2]
            palette = np.full((64, 3), 0.5)
            for each in np.unique(cell):
                palette[each] = colour[cell == each].mean(0)
            texture = Image.fromarray(np.rint(palette.clip(0, 1).reshape(8, 8, 3) * 255).astype(np.uint8))
            uv = np.stack([cell % 8 + 0.5, 7.5 - cell // 8], -1)[:, None] / 8 * np.ones((1, 3, 1))
        filter = Image.Resampling.NEAREST if texture.width <= 8 else Image.Resampling.BICUBIC
        picture = np.asarray(texture.convert("RGB").resize((tile, tile), filter))
        atlas[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile] = picture
        inside = np.clip(uv, 0.5 / tile, 1 - 0.5 / tile)
        # Mitsuba's v runs down its bitmaps, the parts' v runs up.
        uvs.append(np.stack([column + inside[..., 0], row + 1 - inside[..., 1]], -1).reshape(-1, 2) / columns)
        positions.append(corners[..., :3].reshape(-1, 3))
        normals.append(normal.reshape(-1, 3))
    normal = np.concatenate(normals)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-9)
    count = sum(map(len, positions))
    return Shape(
        np.concatenate(positions).astype(np.float32) / 2,  # a diameter of 1
        normal.astype(np.float32),
        np.concatenate(uvs).astype(np.float32),
        np.arange(count, dtype=np.uint32).reshape(-1, 3),
        atlas,
    )


def draw_view(rng: np.random.Generator, shape: Shape) -> View:
    """A camera that sees an object and the ground around it, as a person would take the photo."""
    turn = rng.uniform(0, 2 * math.pi)
    rotation = _about([0, 1, 0], turn)
    if rng.uniform() < 0.2:  # it lies or leans
        rotation = _about(rng.normal(size=3), rng.uniform(0, 2 * math.pi)) @ rotation
    kind = rng.uniform()
    grounded = kind < 0.92
    lift = rng.uniform(0.03, 0.6) if kind < 0.07 else 0.0
    heights = shape.positions @ rotation.T[:, 1]
    height = float(np.ptp(heights))
    elevation = rng.uniform(6, 40) if rng.uniform() < 0.85 else rng.uniform(40, 65)
    if not grounded:  # before the sky or a wall
        elevation = rng.uniform(-35, 5)
    return View(
        rotation=rotation,
        lift=lift,
        grounded=grounded,
        elevation=math.radians(elevation),
        distance=rng.uniform(1.35, 2.9),
        field=math.radians(rng.uniform(30, 50)),
        aim=np.array([rng.uniform(-0.38, 0.38), lift + height * 0.5 + rng.uniform(-0.15, 0.28), 0.0]),
        roughness=rng.uniform(0.12, 0.95),
        metallic=rng.uniform(0.3, 1) if rng.uniform() < 0.1 else 0.0,
        specular=rng.uniform(0.15, 0.6),
        reflectance=rng.uniform(0.12, 0.65),
    )


class Tracer:
    """Renders groups at one size. variant: of Mitsuba, `cuda_ad_rgb` on a GPU, `llvm_ad_rgb` or `scalar_rgb` without."""

    def __init__(self, variant: str, panoramas: list[np.ndarray], side: int, samples: int):
        import mitsuba

        mitsuba.set_variant(variant)
        self.mi, self.side, self.samples = mitsuba, side, samples
        self.lights = [
            mitsuba.load_dict({"type": "envmap", "bitmap": mitsuba.Bitmap(np.ascontiguousarray(each, np.float32))})
            for each in panoramas
        ]
        self.path = mitsuba.load_dict({"type": "path", "max_depth": 4, "hide_emitters": True})
        self.seen = mitsuba.load_dict({"type": "path", "max_depth": 2})
        self.geometry = mitsuba.load_dict({"type": "aov", "aovs": "n:sh_normal"})

    def render(self, shape: Shape, view: View, places: list[int], turns: list[float], seed: int) -> np.ndarray:
        """(C, side, side) float16 as `CHANNELS` says, bottom row last.

        places, turns: `LIGHTS` + 1 panoramas and how far each is turned about the vertical, in degrees.
        """
        mi, transform = self.mi, self.mi.ScalarTransform4f
        positions = shape.positions @ view.rotation.T.astype(np.float32)
        positions[:, 0] -= (positions[:, 0].min() + positions[:, 0].max()) / 2
        positions[:, 2] -= (positions[:, 2].min() + positions[:, 2].max()) / 2
        positions[:, 1] += view.lift - positions[:, 1].min()
        thing = self._mesh(positions, shape.normals @ view.rotation.T.astype(np.float32), shape)
        thing.set_bsdf(
            mi.load_dict(
                {
                    "type": "twosided",
                    "surface": {
                        "type": "principled",
                        "base_color": {"type": "bitmap", "bitmap": mi.Bitmap(shape.atlas)},
                        "roughness": view.roughness,
                        "metallic": view.metallic,
                        "specular": view.specular,
                    },
                }
            )
        )
        floor = mi.load_dict(
            {
                "type": "rectangle",
                "to_world": transform().rotate([1, 0, 0], -90).scale(30),
                "bsdf": {"type": "diffuse", "reflectance": {"type": "rgb", "value": view.reflectance}},
            }
        )
        eye = view.aim + view.distance * np.array([0, math.sin(view.elevation), math.cos(view.elevation)])
        if view.grounded:
            eye[1] = max(eye[1], 0.05)
        camera = mi.load_dict(
            {
                "type": "perspective",
                "fov": math.degrees(view.field),
                "to_world": transform().look_at(origin=eye.tolist(), target=view.aim.tolist(), up=[0, 1, 0]),
                "film": {
                    "type": "hdrfilm",
                    "width": self.side,
                    "height": self.side,
                    "pixel_format": "rgba",
                    "rfilter": {"type": "box"},
                },
                "sampler": {"type": "independent", "sample_count": self.samples},
            }
        )

        # One seed for all: rays that the object does not touch are the same with it and without, and so is their noise.
        def shot(parts: dict, samples: int, integrator) -> np.ndarray:
            scene = mi.load_dict({"type": "scene", **parts})
            return np.array(mi.render(scene, sensor=camera, integrator=integrator, spp=samples, seed=seed))

        lit, bare, photo = [], [], []
        ground = {"floor": floor} if view.grounded else {}
        for place, turn in zip(places[:LIGHTS], turns):
            light = self._light(place, turn)
            lit.append(shot({"light": light, "thing": thing, **ground}, self.samples, self.path)[..., :3])
            empty = {"light": light, **ground}
            bare.append(
                shot(empty, self.samples, self.path)[..., :3] @ LUMINANCE if ground else np.zeros(lit[0].shape[:2])
            )
            photo.append(shot({"light": light}, 4, self.seen)[..., :3])
        light = self._light(places[LIGHTS], turns[LIGHTS])
        alone = shot({"light": light, "thing": thing}, self.samples, self.path)
        normal = shot({"thing": thing}, 16, self.geometry)[..., -3:]
        alpha = alone[..., 3:].clip(0, 1)
        alone = alone[..., :3] / alpha.clip(1e-3)
        layers = [*lit, *(each[..., None] for each in bare), *photo, alone, alpha, normal]
        return np.concatenate(layers, -1).clip(-60000, 60000).astype(np.float16).transpose(2, 0, 1)

    def _light(self, place: int, turn: float):
        light = self.lights[place]
        parameters = self.mi.traverse(light)
        parameters["to_world"] = self.mi.ScalarTransform4f().rotate([0, 1, 0], turn)
        parameters.update()
        return light

    def _mesh(self, positions: np.ndarray, normals: np.ndarray, shape: Shape):
        mi = self.mi
        mesh = mi.Mesh("thing", len(positions), len(shape.faces), has_vertex_normals=True, has_vertex_texcoords=True)
        parameters = mi.traverse(mesh)
        parameters["vertex_positions"] = np.ascontiguousarray(positions, np.float32).ravel()
        parameters["vertex_normals"] = np.ascontiguousarray(normals, np.float32).ravel()
        parameters["vertex_texcoords"] = shape.uv.ravel()
        parameters["faces"] = shape.faces.ravel()
        parameters.update()
        return mesh


def _about(axis, angle: float) -> np.ndarray:
    """Rotation (3, 3) by an angle about an axis (Rodrigues)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
