"""Groups by path tracing, with Mitsuba 3 (the extra `light`)."""

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
"""Half the ground's side, in object diameters."""
PHOTO_SAMPLES = 4
"""Per pixel, of what is seen of a panorama alone: there is no noise but its own aliasing."""
NORMAL_SAMPLES = 16
LARGEST = 60000
"""Radiance that float16 can hold."""


def resolve_variant(variant: str) -> str:
    """Mitsuba's variant that `auto` stands for: of the GPU if there is one. `scalar_rgb` works everywhere, slowly."""
    import torch

    return ("cuda_ad_rgb" if torch.cuda.is_available() else "scalar_rgb") if variant == "auto" else variant


class Tracer:
    """Renders groups of one size. A process can have tracers of one variant only.

    variant: of Mitsuba, `cuda_ad_rgb` on a GPU, `llvm_ad_rgb` or `scalar_rgb` without; panoramas: (H, 2 * H, 3) linear,
    one or more, all of one size; side: pixels; samples: rays per pixel. Raises `ImprintError` where Mitsuba is absent
    or lacks the variant.
    """

    def __init__(self, variant: str, panoramas: list[np.ndarray], side: int, samples: int):
        mitsuba = from_extra("mitsuba", "light", "path tracing")
        try:
            mitsuba.set_variant(variant)
        except Exception as error:  # of an unknown variant, or of one whose driver or LLVM is absent
            raise ImprintError(
                f"Mitsuba cannot use {variant} here ({error}); give --variant scalar_rgb, which works everywhere"
            ) from error
        self.mi, self.side, self.samples = mitsuba, side, samples
        # One light takes all panoramas by turns: for each light of its own, Mitsuba would compile kernels of its own.
        self.environment = self._environment(panoramas[0])
        self.panoramas = [np.array(mitsuba.traverse(self._environment(each))["data"]) for each in panoramas]
        self.path = mitsuba.load_dict({"type": "path", "max_depth": BOUNCES, "hide_emitters": True})
        self.seen = mitsuba.load_dict({"type": "path", "max_depth": 2})
        self.geometry = mitsuba.load_dict({"type": "aov", "aovs": "n:sh_normal"})

    def render(self, shape: Shape, view: View, places: list[int], turns: list[float], seed: int) -> np.ndarray:
        """(C, side, side) float16 as `training.light.scenes.CHANNELS` says, top row first.

        places, turns: `LIGHTS` + 1 panoramas and how far each is turned about the vertical, in degrees. One seed serves
        all: rays that the object does not touch are the same with it and without, and so is their noise.
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
        """A panorama, turned about the vertical by so many degrees, until the next call: there is one light for all."""
        parameters = self.mi.traverse(self.environment)
        parameters["data"] = self.panoramas[place]
        parameters["to_world"] = self.mi.ScalarTransform4f().rotate([0, 1, 0], turn)
        parameters.update()
        return self.environment

    def _shot(self, parts: dict[str, Any], camera: Any, integrator: Any, samples: int, seed: int) -> np.ndarray:
        """(side, side, channels) of a scene."""
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
        """The object as a mesh of Mitsuba, where and how it stands."""
        mi = self.mi
        positions, normals = view.stood(shape)
        mesh = mi.Mesh("thing", len(positions), len(shape.faces), has_vertex_normals=True, has_vertex_texcoords=True)
        parameters = mi.traverse(mesh)
        parameters["vertex_positions"] = np.ascontiguousarray(positions, np.float32).ravel()
        parameters["vertex_normals"] = np.ascontiguousarray(normals, np.float32).ravel()
        parameters["vertex_texcoords"] = shape.uv.ravel()
        parameters["faces"] = shape.faces.ravel()
        parameters.update()
        # Disney's principled BSDF (Burley, SIGGRAPH 2012); scans have faces that look inwards, hence both sides.
        surface = {
            "type": "principled",
            "base_color": {"type": "bitmap", "bitmap": mi.Bitmap(shape.atlas)},
            "roughness": view.roughness,
            "metallic": view.metallic,
            "specular": view.specular,
        }
        mesh.set_bsdf(mi.load_dict({"type": "twosided", "surface": surface}))
        return mesh
