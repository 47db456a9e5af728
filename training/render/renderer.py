"""Headless OpenGL rendering, on a GPU or on a CPU through Mesa."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
from PIL import Image

from imprint.errors import ImprintError, from_extra

from .meshes import Part
from .panoramas import LEVEL_SIZES, Panorama
from .shaders import DEPTH_FRAGMENT_SHADER, DEPTH_VERTEX_SHADER, FRAGMENT_SHADER, VERTEX_SHADER

SHADOW_SIZE = 512  # side of the shadow map in pixels
SUPERSAMPLING = 2


class Renderer:
    """A headless OpenGL context that draws parts into square RGBA pictures.

    Raises `ImprintError` if moderngl is not installed or the backend does not work.
    """

    def __init__(self, backend: str, resolution: int) -> None:
        # One thread per worker: llvmpipe's own threads would compete with the other workers.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        moderngl = from_extra("moderngl", "train", "rendering")
        try:
            self.context = context = moderngl.create_context(standalone=True, backend=backend)
        except Exception as error:  # each platform's loader raises different errors
            raise ImprintError(
                f"--backend {backend} gave '{error}'; OpenGL 3.3 was expected: install its driver (Debian: libegl1 "
                "libgl1-mesa-dri) or change --backend"
            ) from error
        context.gc_mode = "auto"
        context.enable_only(moderngl.DEPTH_TEST)
        self.program = context.program(vertex_shader=VERTEX_SHADER, fragment_shader=FRAGMENT_SHADER)
        self.depth_program = context.program(vertex_shader=DEPTH_VERTEX_SHADER, fragment_shader=DEPTH_FRAGMENT_SHADER)
        self.shadow_map = context.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self.shadow_map.compare_func = "<="
        self.shadow_map.repeat_x = self.shadow_map.repeat_y = False
        self.shadow_frame = context.framebuffer(depth_attachment=self.shadow_map)
        self.frame = context.simple_framebuffer((resolution * SUPERSAMPLING,) * 2, components=4)
        self.program["shadow_map"], self.program["panorama"] = 1, 2
        self.panoramas: dict[Panorama, Any] = {}

    def upload(self, parts: list[Part]) -> list[tuple[Any, Any, Any, dict[str, Any]]]:
        """Upload the parts: for each, its vertex array, that of the shadow map, its texture and its uniforms."""
        uploaded = []
        for part in parts:
            buffer, faces = self.context.buffer(part.vertices.tobytes()), self.context.buffer(part.faces.tobytes())
            layout = (buffer, "3f 3f 2f 3f", "in_position", "in_normal", "in_uv", "in_colour")
            image = part.texture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            texture = self.context.texture(image.size, 3, image.tobytes(), alignment=1)
            texture.build_mipmaps()
            centre, extent = part.bounds
            uniforms = {"triplanar": part.triplanar, "part_centre": tuple(centre), "part_scale": 1 / extent.max()}
            array = self.context.vertex_array(self.program, [layout], faces)
            shadow_layout = (buffer, "3f 32x", "in_position")
            uploaded.append(
                (array, self.context.vertex_array(self.depth_program, [shadow_layout], faces), texture, uniforms)
            )
        return uploaded

    def surround(self, panorama: Panorama) -> None:
        """Bind the panorama that the shader's `surroundings` samples."""
        texture = self.panoramas.get(panorama)
        if texture is None:
            high, wide = LEVEL_SIZES[0]
            texture = self.panoramas[panorama] = self.context.texture((wide, high), 3, dtype="f4")
            texture.build_mipmaps(0, len(panorama.levels) - 1)
            for level, values in enumerate(panorama.levels):
                texture.write(values.tobytes(), level=level)
            texture.repeat_y = False
        texture.use(2)

    def render(self, uploaded: list, camera: np.ndarray, eye: np.ndarray, uniforms: dict[str, Any]) -> Image.Image:
        """Render one view to a picture with straight alpha, black where alpha is 0."""
        self.depth_program["shadow_camera"] = uniforms["shadow_camera"]
        self.shadow_frame.use()
        self.shadow_frame.clear()
        for _, shadow_array, _, _ in uploaded:
            shadow_array.render()
        self.frame.use()
        self.frame.clear()
        self.shadow_map.use(1)
        for name, value in {**uniforms, "camera": tuple(camera.T.ravel()), "eye": tuple(eye)}.items():
            self.program[name] = value
        for array, _, texture, part_uniforms in uploaded:
            texture.use(0)
            for name, value in part_uniforms.items():
                self.program[name] = value
            array.render()
        picture = Image.frombytes("RGBA", self.frame.size, self.frame.read(components=4, alignment=1))
        # Pillow's reduce averages with premultiplied alpha and so keeps the edges free of black.
        return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).reduce(SUPERSAMPLING)


@functools.cache
def get_renderer(backend: str, resolution: int) -> Renderer:
    """This process's renderer for a backend and resolution."""
    return Renderer(backend, resolution)
