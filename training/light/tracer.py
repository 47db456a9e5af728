"""Path-trace groups with Mitsuba 3 (the extra `light`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from imprint.errors import ImprintError, from_extra

from ..render.panoramas import LUMINANCE
from .scenes import LIGHTS, Shape, View

BOUNCES = 4
"""Longest light path, in segments: light, object, ground, camera and one more."""
FLOOR = 30
"""Half of the ground's side, in object diameters."""
PHOTO_SAMPLES = 4
"""Samples per pixel where only a panorama is visible: aliasing is the only noise."""
NORMAL_SAMPLES = 16
LARGEST = 60000
"""Largest radiance: float16 can hold it."""


def resolve_variant(variant: str) -> str:
    """Resolve `auto` to a Mitsuba variant: the GPU's if there is one, else `scalar_rgb`, slow but always available."""
    import torch

    return ("cuda_ad_rgb" if torch.cuda.is_available() else "scalar_rgb") if variant == "auto" else variant


class Tracer:
    """Renders groups of one size. All tracers of a process must be of the same variant.

    variant: Mitsuba's, `cuda_ad_rgb` on a GPU, `llvm_ad_rgb` or `scalar_rgb` without one. panoramas: one or more,
    linear, (H, 2 * H, 3), all of the same size. side: in pixels. samples: rays per pixel. Raises `ImprintError` if
    Mitsuba is not installed, or cannot use the variant.
    """

    def __init__(self, variant: str, panoramas: list[np.ndarray], side: int, samples: int):
        mitsuba = from_extra("mitsuba", "light", "path tracing")
        try:
            mitsuba.set_variant(variant)
        except Exception as error:  # the variant is unknown, or its driver or LLVM is missing
            raise ImprintError(
                f"Mitsuba cannot use {variant} here ({error}); give --variant scalar_rgb, which works everywhere"
            ) from error
        self.mi, self.side, self.samples = mitsuba, side, samples
        # One light takes each panorama in turn: Mitsuba would compile new kernels for each separate light.
        self.environment = self._environment(panoramas[0])
        self.panoramas = [np.array(mitsuba.traverse(self._environment(each))["data"]) for each in panoramas]
        self.path = mitsuba.load_dict({"type": "path", "max_depth": BOUNCES, "hide_emitters": True})
        self.seen = mitsuba.load_dict({"type": "path", "max_depth": 2})
        self.geometry = mitsuba.load_dict({"type": "aov", "aovs": "n:sh_normal"})

    def render(self, shape: Shape, view: View, places: list[int], turns: list[float], seed: int) -> np.ndarray:
        """Render a group: (C, side, side) float16 as in `training.light.scenes.CHANNELS`, top row first.

        places, turns: `LIGHTS` + 1 panoramas by index, and their rotations about the vertical in degrees. All pictures
        use the same seed, so that rays that miss the object, and their noise, are the same with it and without it.
        """
        thing, camera = {"thing": self._thing(shape, view)}, self._camera(view)
        ground = {"floor": self._floor(view)} if view.grounded else {}
        lit, bare, photo = [], [], []
        for place, turn in zip(places[:LIGHTS], turns[:LIGHTS]):
            light = {"light": self.light(place, turn)}
            lit.append(self._shot(light | thing | ground, camera, self.path, self.samples, seed)[..., :3])
            if ground:
                empty = self._shot(light | ground, camera, self.path, self.samples, seed)
                bare.append(empty[..., :3] @ LUMINANCE)
            else:
                bare.append(np.zeros((self.side, self.side)))
            photo.append(self._shot(light, camera, self.seen, PHOTO_SAMPLES, seed)[..., :3])
        light = {"light": self.light(places[LIGHTS], turns[LIGHTS])}
        alone = self._shot(light | thing, camera, self.path, self.samples, seed)
        normal = self._shot(thing, camera, self.geometry, NORMAL_SAMPLES, seed)[..., -3:]
        alpha = alone[..., 3:].clip(0, 1)
        alone = alone[..., :3] / alpha.clip(1e-3)
        layers = [*lit, *(each[..., None] for each in bare), *photo, alone, alpha, normal]
        return np.concatenate(layers, -1).clip(-LARGEST, LARGEST).astype(np.float16).transpose(2, 0, 1)

    def _environment(self, panorama: np.ndarray) -> Any:
        return self.mi.load_dict({"type": "envmap", "bitmap": self.mi.Bitmap(np.array(panorama, np.float32))})

    def light(self, place: int, turn: float) -> Any:
        """The light of a panorama rotated by `turn` degrees about the vertical; the next call changes it again."""
        parameters = self.mi.traverse(self.environment)
        parameters["data"] = self.panoramas[place]
        parameters["to_world"] = self.mi.ScalarTransform4f().rotate([0, 1, 0], turn)
        parameters.update()
        return self.environment

    def _shot(self, parts: dict[str, Any], camera: Any, integrator: Any, samples: int, seed: int) -> np.ndarray:
        """Render a scene: (side, side, channels)."""
        scene = self.mi.load_dict({"type": "scene"} | parts)
        return np.array(self.mi.render(scene, sensor=camera, integrator=integrator, spp=samples, seed=seed))

    def _camera(self, view: View) -> Any:
        look = self.mi.ScalarTransform4f().look_at(origin=view.eye.tolist(), target=view.aim.tolist(), up=[0, 1, 0])
        film = {
            "type": "hdrfilm",
            "width": self.side,
            "height": self.side,
            "pixel_format": "rgba",
            "rfilter": {"type": "box"},
        }
        return self.mi.load_dict(
            {
                "type": "perspective",
                "fov": math.degrees(view.field),
                "to_world": look,
                "film": film,
                "sampler": {"type": "independent", "sample_count": self.samples},
            }
        )

    def _floor(self, view: View) -> Any:
        level = self.mi.ScalarTransform4f().rotate([1, 0, 0], -90).scale(FLOOR)
        surface = {"type": "diffuse", "reflectance": {"type": "rgb", "value": view.reflectance}}
        return self.mi.load_dict({"type": "rectangle", "to_world": level, "bsdf": surface})

    def _thing(self, shape: Shape, view: View) -> Any:
        """The object as a Mitsuba mesh in its pose."""
        mi = self.mi
        positions, normals = view.stood(shape)
        mesh = mi.Mesh("thing", len(positions), len(shape.faces), has_vertex_normals=True, has_vertex_texcoords=True)
        parameters = mi.traverse(mesh)
        parameters["vertex_positions"] = np.ascontiguousarray(positions, np.float32).ravel()
        parameters["vertex_normals"] = np.ascontiguousarray(normals, np.float32).ravel()
        parameters["vertex_texcoords"] = shape.uv.ravel()
        parameters["faces"] = shape.faces.ravel()
        parameters.update()
        # Disney's principled BSDF (Burley, SIGGRAPH 2012), two-sided since scans have faces that look inwards.
        surface = {
            "type": "principled",
            "base_color": {"type": "bitmap", "bitmap": mi.Bitmap(shape.atlas)},
            "roughness": view.roughness,
            "metallic": view.metallic,
            "specular": view.specular,
        }
        mesh.set_bsdf(mi.load_dict({"type": "twosided", "surface": surface}))
        return mesh
