"""Render the views of an identity, a mesh with a random material, under different cameras and lights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..data.settings import Render
from ..data.shards import SCENE_SCALE
from .cameras import draw_azimuths, draw_camera
from .light import draw_light, draw_scene
from .meshes import Identity, Part, is_plain
from .renderer import get_renderer
from .textures import STYLES, draw_material, retexture


@dataclass(frozen=True)
class View:
    """A rendering: a cut-out and, if it is lit by a scene, a photo of that scene."""

    number: int
    picture: Image.Image
    """RGBA, straight alpha."""
    scene: Image.Image | None = None
    """RGB."""
    shadow: tuple[float, float, float] | None = None
    """The shadow in that scene, as in `training.data.shards.Record`."""


def render_identity(identity: Identity, parts: list[Part], options: Render) -> list[View]:
    """Render all views of an identity; they depend only on the seed and the identity.

    Each of the first `options.relit` views is followed by the same view in the light of one of
    `options.panorama_files`.
    """
    rng = np.random.default_rng([options.seed, identity.index])
    # Separate, so that the other views do not depend on `options.relit`.
    scene_rng = np.random.default_rng([options.seed, identity.index, 1])
    style = rng.choice(list(STYLES), p=list(STYLES.values()))
    if is_plain(parts):
        style = rng.choice(["colours", "photo", "pattern", "label", "mixed"])
    elif identity.variant == 0:
        style = "original"
    retexture(parts, style, rng, options.texture_files)
    material = draw_material(rng, keep_colours=identity.variant == 0 or rng.uniform() < 0.5)
    points = np.concatenate([part.vertices[:, :3] for part in parts])
    renderer, views = get_renderer(options.backend, options.resolution), []
    scene_side = round(options.resolution * SCENE_SCALE)
    with renderer.context:  # OpenGL draws, and frees, in whichever context was last made current
        uploaded = renderer.upload(parts)
        for number, azimuth in enumerate(draw_azimuths(rng, options.views)):
            camera, eye, rotation = draw_camera(rng, azimuth, points)
            views.append(View(number, renderer.render(uploaded, camera, eye, material | draw_light(rng, azimuth))))
            if number < options.relit:
                panorama, light, scene, shadow = draw_scene(scene_rng, options.panorama_files, rotation, scene_side)
                renderer.surround(panorama)
                views.append(View(number, renderer.render(uploaded, camera, eye, material | light), scene, shadow))
        del uploaded
    return views
