"""Encode Object and Condition on Object: from pictures of an object to the UNet's conditioning."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..imprint.changes import CHANGES
from ..imprint.errors import ImprintError, require_finite
from ..imprint.preprocess import black_picture
from . import local, models, sockets
from .clip_vision import encode_views, encoder_config
from .control import VIEWS_KEY
from .messages import tell
from .objects import marks_input, object_views
from .tensors import PRECISION, to_bhwc


class ImprintIDEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintIDEncoder",
            display_name="Imprint: Encode Object",
            category="imprint/conditioning",
            description="Turns one or several pictures of one object into its identity, and shows the cut-out it saw.",
            search_aliases=[
                "dinov2 id encoder",
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
                    "clip_vision", tooltip="From the same Imprint: Load Checkpoint as Condition on Object's adapter."
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
                    tooltip="The object: what the encoder sees of it, and its pictures. For Condition on Object, and "
                    "for Restore Detail.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip_vision: Any, image: torch.Tensor, mask: torch.Tensor, mask_marks: str) -> io.NodeOutput:
        views, white = object_views(image, mask, mask_marks)
        tell(cls, f"White in the object's mask: the {white}.")
        config = encoder_config(clip_vision)
        pixels, cutouts = views.prepared(config)
        learned = config.nothing == "learned"
        pixels = pixels if learned else torch.cat([pixels, black_picture(config)])
        tokens = require_finite(encode_views(clip_vision, pixels), "what the encoder sees of the object", PRECISION)
        tokens, nothing = (tokens, None) if learned else (tokens[:, :-1], tokens[:, -1:])
        return io.NodeOutput(sockets.Subject(tokens, views, nothing), ui=ui.PreviewImage(to_bhwc(cutouts), cls=cls))


class ImprintContentAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintContentAdapter",
            display_name="Imprint: Condition on Object",
            category="imprint/conditioning",
            description="Turns the object's identity into conditioning for the sampler.",
            search_aliases=[
                "content adapter",
                "imprint adapter",
                "identity conditioning",
                "object conditioning",
                "ip adapter",
                "image prompt",
            ],
            inputs=[
                sockets.Adapter.Input(
                    "adapter", tooltip="From the Imprint: Load Checkpoint that gave the clip_vision."
                ),
                sockets.Identity.Input("identity", tooltip="The object, from Encode Object."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much of the object's identity is used, 0 to 2: 0 none, 1 as trained (default), above "
                    "1 exaggerated. Try 1.1 to 1.3 when the object comes out pale, 0.8 when its colours are too harsh.",
                ),
                io.Combo.Input(
                    "change",
                    options=list(CHANGES),
                    default="both",
                    optional=True,
                    advanced=True,
                    tooltip="What a ControlCom checkpoint may change of the object: both (default) its light and its "
                    "pose, only one of them, or keep it as it is. For keep and light, give Encode Object and Draw "
                    "Object the object as it lies in the background. Other checkpoints have no such choice: leave it "
                    "at both.",
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
    def execute(
        cls, adapter: models.Adapter, identity: sockets.Subject, strength: float, change: str = "both"
    ) -> io.NodeOutput:
        (count, width), encoder = identity.tokens.shape[2:], adapter.encoder
        takes = encoder.tokens + encoder.local_tokens
        if (count, width) != (takes, encoder.width):
            raise ImprintError(
                f"Encode Object gives {count} tokens of width {width} for each view, but Condition on Object takes "
                f"{takes} of width {encoder.width}; use the CLIP_VISION and the adapter of the same Imprint: Load "
                "Checkpoint"
            )
        if encoder.nothing == "black" and identity.nothing is None:
            raise ImprintError(
                "Encode Object does not give the tokens of no object that this checkpoint needs; use the CLIP_VISION "
                "and the adapter of the same Imprint: Load Checkpoint"
            )
        if change != "both" and not adapter.changes:
            raise ImprintError(
                f"change is {change}, but this checkpoint has no choice of what to change, as ControlCom's has; set "
                "it to both, or load one of ControlCom's"
            )
        tokens, seen = encoder.split(identity.tokens)
        told = {local.CHANGE_KEY: torch.tensor([CHANGES[change]])} if adapter.changes else {}
        if seen is not None:
            told[local.LOCAL_KEY] = seen[:, 0]
        if adapter.controlled:
            told[VIEWS_KEY] = identity.views
        positive, negative = adapter.contexts(tokens, strength, identity.nothing)
        return io.NodeOutput([[positive, told]], [[negative, dict(told)]])
