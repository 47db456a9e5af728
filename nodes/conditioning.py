"""DINOv2 ID Encoder and Content Adapter: from pictures of an object to the UNet's conditioning."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..imprint.errors import ImprintError, require_finite
from . import models, sockets
from .objects import marks_input, object_views
from .tensors import PRECISION, to_bhwc


class ImprintIDEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintIDEncoder",
            display_name="DINOv2 ID Encoder",
            category="imprint/conditioning",
            description="Turns one or several pictures of one object into its identity, and shows the cut-out it saw.",
            search_aliases=[
                "imprint encoder",
                "object identity",
                "reference object",
                "reference image",
                "subject",
                "image encoder",
                "dino",
                "dinov2",
            ],
            is_output_node=True,  # the front end shows previews of output nodes only
            inputs=[
                io.ClipVision.Input(
                    "clip_vision", tooltip="From the same Load Imprint Checkpoint as Content Adapter's adapter."
                ),
                io.Image.Input(
                    "image",
                    tooltip="The object, as large and sharp as you have it. One picture is enough. A batch of 2 to 5 "
                    "is views of one and the same object: they show sides that one picture hides, where the checkpoint "
                    "takes several.",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="Which part of the picture is the object: one mask for all views, or one for each. "
                    "A tight mask is best; check the cut-out on this node. Another size is stretched to the picture.",
                ),
                marks_input("Change it when the cut-out on this node shows the surroundings."),
            ],
            outputs=[
                sockets.Identity.Output(
                    display_name="identity",
                    tooltip="What the encoder sees of the object, in all views. For Content Adapter.",
                ),
            ],
        )

    @classmethod
    def execute(cls, clip_vision: Any, image: torch.Tensor, mask: torch.Tensor, mask_marks: str) -> io.NodeOutput:
        views = object_views(image, mask, mask_marks)
        pixels, cutouts = views.prepared(models.encoder_config(clip_vision))
        identity = require_finite(
            models.encode_views(clip_vision, pixels), "what the encoder sees of the object", PRECISION
        )
        return io.NodeOutput(identity, ui=ui.PreviewImage(to_bhwc(cutouts), cls=cls))


class ImprintContentAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintContentAdapter",
            display_name="Content Adapter",
            category="imprint/conditioning",
            description="Turns the object's identity into conditioning for the sampler.",
            search_aliases=[
                "imprint adapter",
                "identity conditioning",
                "object conditioning",
                "ip adapter",
                "image prompt",
            ],
            inputs=[
                sockets.Adapter.Input("adapter", tooltip="From the Load Imprint Checkpoint that gave the clip_vision."),
                sockets.Identity.Input("identity", tooltip="The object, from DINOv2 ID Encoder."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much of the object's identity is used, 0 to 2: 0 none, 1 as trained (default), above "
                    "1 exaggerated. Try 1.1 to 1.3 when the object comes out pale, 0.8 when its colours are too hard.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The object. For the sampler's positive."),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="No object: the learned null embedding, which cfg pushes away from. "
                    "For the sampler's negative.",
                ),
            ],
        )

    @classmethod
    def execute(cls, adapter: models.Adapter, identity: torch.Tensor, strength: float) -> io.NodeOutput:
        (tokens, width), config = identity.shape[2:], adapter.config
        if width != config.input_width:
            raise ImprintError(
                f"DINOv2 ID Encoder gives tokens of width {width}, but Content Adapter takes {config.input_width}; "
                "use the CLIP_VISION and the adapter of the same Load Imprint Checkpoint"
            )
        if tokens != config.input_tokens:
            raise ImprintError(
                f"DINOv2 ID Encoder gives {tokens} tokens per view, but Content Adapter takes {config.input_tokens}; "
                "use the CLIP_VISION and the adapter of the same Load Imprint Checkpoint"
            )
        positive, negative = adapter.contexts(identity, strength)
        return io.NodeOutput([[positive, {}]], [[negative, {}]])
