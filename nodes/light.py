"""Light and Shadow, and Cast Shadow."""

from __future__ import annotations

import itertools

import torch
from comfy_api.latest import io

from ..imprint.directions import DIRECTIONS, require_strengths
from ..imprint.errors import require_same_size
from ..imprint.light import relight
from ..imprint.lightnet import SHIPPED_LIGHT
from ..imprint.place import PlacedObject
from . import models, sockets
from .loaders import file_of, light_model_input, state_of
from .tensors import broadcast, copy_image, fit_mask, lazy_zeros, to_bchw, to_bhwc


def _shadow_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "shadow",
            default=1.0,
            min=0.0,
            max=1.5,
            step=0.05,
            tooltip="How dark its shadow is, 0 to 1.5: 0 is none, 1 (default) is the model's estimate, more is darker.",
        ),
        io.Float.Input(
            "softness",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="How much softer the shadow is than the model's estimate, 0 (default) to 1. Raise it for an "
            "overcast sky or a large window.",
        ),
        light_model_input(),
        io.Combo.Input(
            "light_from",
            options=list(DIRECTIONS),
            default="auto",
            optional=True,
            tooltip="Where the scene's light comes from. auto (default): the model's estimate. Set it where the shadow "
            "falls to a side that the photo's other shadows do not: behind is behind the object, front the camera's "
            "side.",
        ),
    ]


class ImprintRelight(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintRelight",
            display_name="Imprint: Light and Shadow",
            category="imprint/image",
            description="Gives a placed object the light of the photo around it, and casts its shadow. Its lettering, "
            "faces and edges stay those of its own photo; where there is neither object nor shadow, the background "
            "stays as it is, bit for bit.",
            search_aliases=["harmonize", "harmonise", "relight", "shadow", "light", "insert", "composite", "imprint"],
            inputs=[
                sockets.Placed.Input(
                    "placed", tooltip="The background and the objects in their places, from Place Object."
                ),
                io.Float.Input(
                    "light",
                    default=1.0,
                    min=0.0,
                    max=1.5,
                    step=0.05,
                    tooltip="How far the object takes the scene's light, 0 to 1.5: 0 leaves its colours as they are, 1 "
                    "(default) is the model's estimate, more exaggerates it.",
                ),
                *_shadow_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The finished picture. For Save Image; or the background of a next Place Object.",
                ),
                io.Image.Output(
                    display_name="shadow_layer",
                    tooltip="The shadow by itself, with transparency, for an image editor: the lowest of three layers "
                    "over the background. Of several objects one each, from back to front; each object's three layers "
                    "lie over those of the one before.",
                ),
                io.Image.Output(
                    display_name="object_layer",
                    tooltip="The object in its own colours, with transparency: the layer over the shadow.",
                ),
                io.Image.Output(
                    display_name="light_layer",
                    tooltip="What the scene's light changes, with transparency: the uppermost layer.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, light_model: str, **_: object) -> tuple[str, int, int]:
        return state_of(light_model)

    @classmethod
    def execute(
        cls,
        placed: sockets.PlacedBatch,
        light: float,
        shadow: float,
        softness: float,
        light_model: str = SHIPPED_LIGHT.name,
        light_from: str = "auto",
    ) -> io.NodeOutput:
        require_strengths(light, shadow, softness, light_from)
        model = models.Light(file_of(light_model))
        net, frames = model.loaded(), placed.backgrounds
        image = copy_image(frames.movedim(1, -1), len(frames))
        total = len(frames) * len(placed.objects)
        layers = {name: lazy_zeros(total, *frames.shape[2:], 4) for name in ("shadow", "object", "light")}
        for index, each in enumerate(itertools.chain.from_iterable(placed.objects)):
            frame = index % len(frames)
            below = image[frame].movedim(-1, 0)[None]
            lit = relight(net, below, each, light, shadow, softness, light_from)
            for name, layer in lit.layers().items():
                layers[name][(index, *lit.area)] = layer[0].movedim(0, -1).to(layers[name])
            below[(..., *lit.area)] = lit.composite()  # last: the layers are worked out from what was there
        return io.NodeOutput(to_bhwc(image.movedim(-1, 1), placed.transparency), *layers.values())


class ImprintCastShadow(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintCastShadow",
            display_name="Imprint: Cast Shadow",
            category="imprint/image",
            description="Casts the shadow of a drawn object onto the background, before Blend into Background puts the "
            "object there. Where there is no shadow, the background stays as it is, bit for bit. Placed objects have "
            "theirs from Light and Shadow.",
            search_aliases=["shadow", "cast shadow", "drop shadow", "contact shadow", "ground", "imprint"],
            inputs=[
                io.Image.Input("background", tooltip="The picture that the object was drawn into."),
                io.Image.Input(
                    "generated", tooltip="The picture with the object: the image of Restore Detail or Draw Object."
                ),
                io.Mask.Input(
                    "alpha", tooltip="Where the object is, white: the alpha of the node that generated comes from."
                ),
                *_shadow_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The background with the shadow, without the object. For Blend into Background's "
                    "background, whose shadow then stays unconnected.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, light_model: str, **_: object) -> tuple[str, int, int]:
        return state_of(light_model)

    @classmethod
    def execute(
        cls,
        background: torch.Tensor,
        generated: torch.Tensor,
        alpha: torch.Tensor,
        shadow: float,
        softness: float,
        light_model: str = SHIPPED_LIGHT.name,
        light_from: str = "auto",
    ) -> io.NodeOutput:
        require_strengths(0, shadow, softness, light_from)
        frames, _ = to_bchw(background)
        pictures, _ = to_bchw(generated)
        require_same_size("generated", tuple(pictures.shape[2:]), "the background", tuple(frames.shape[2:]))
        frames, pictures, outlines = broadcast(
            backgrounds=frames, generated=pictures, alphas=fit_mask(alpha, frames, "alpha")
        )
        net, image = models.Light(file_of(light_model)).loaded(), copy_image(background, len(frames))
        for whole, frame, picture, outline in zip(image, frames, pictures, outlines):
            if shadow and bool(outline.any()):
                placed = PlacedObject.from_layer(picture, outline)
                lit = relight(net, frame[None], placed, 0.0, shadow, softness, light_from)
                whole[lit.area][..., :3] = lit.ground()[0].movedim(0, -1)
        return io.NodeOutput(image)
