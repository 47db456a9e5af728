"""Restore Detail and Blend into Background."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..imprint.blending import BLENDS, blend_pictures, match_colour
from ..imprint.detail import restore_detail
from ..imprint.errors import ImprintError
from ..imprint.mask_reading import full_strength
from . import sockets
from .messages import tell
from .objects import marks_input, object_views
from .tensors import broadcast, fit_mask, to_bchw, to_bhwc


class ImprintRestoreDetail(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintRestoreDetail",
            display_name="Imprint: Restore Detail",
            category="imprint/image",
            description="Lays the object's own photo over what was generated, warped to its shape and in its light, "
            "wherever both show the same side: lettering, faces and fabrics come out as they are.",
            search_aliases=[
                "restore detail",
                "imprint detail",
                "detail transfer",
                "preserve text",
                "preserve logo",
                "sharpen object",
                "identity restore",
                "high frequency",
                "frequency separation",
            ],
            inputs=[
                io.Image.Input("generated", tooltip="The image of Draw Object."),
                io.Mask.Input("alpha", tooltip="Where the object is, from Draw Object."),
                marks_input("Of the mask that is connected here; an identity brings its own."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the photo takes the place of what was generated, in its light, 0 to 1; 1 "
                    "(default) is wholly, 0 changes nothing. Lower it when the object looks pasted.",
                ),
                sockets.Identity.Input(
                    "identity",
                    optional=True,
                    tooltip="The object, from Encode Object: its pictures come with it. Of several views the one that "
                    "fits best is taken.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Instead of identity: the object's picture, as large and sharp as you have it, with its "
                    "mask.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Which part of the picture is the object; goes with image."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The sampler's picture with detail. For Blend into Background."
                ),
                io.Mask.Output(
                    display_name="alpha",
                    tooltip="The alpha with the object's own outline, where the photo fits. For Blend into Background.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        generated: torch.Tensor,
        alpha: torch.Tensor,
        mask_marks: str,
        strength: float,
        identity: sockets.Subject | None = None,
        image: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        frames, transparency = to_bchw(generated)
        frames, alphas = broadcast(generated=frames, alphas=fit_mask(alpha, frames, "alpha"))
        lines = []
        if image is not None and mask is not None:
            views, white = object_views(image, mask, mask_marks)
            lines.append(f"White in the object's mask: the {white}.")
        elif image is not None or mask is not None or identity is None:
            raise ImprintError(
                "the object is missing: connect the identity of Encode Object or, instead of it, the object's image "
                "and mask"
            )
        else:
            views = identity.views
        made, outlines, laid = restore_detail(frames, alphas, views, strength)
        tell(cls, "\n".join([*(_words(share, strength) for share in laid), *lines]))
        return io.NodeOutput(to_bhwc(made, transparency), outlines)


def _words(share: float, strength: float) -> str:
    if not strength:
        return "strength is 0: nothing changed"
    if not share:
        return "the photo does not fit what was drawn: nothing changed"
    return f"the photo is laid over {max(1, round(100 * share))} % of the object"


class ImprintBackgroundBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintBackgroundBlend",
            display_name="Imprint: Blend into Background",
            category="imprint/image",
            description="Puts the generated picture into the background through a soft mask. "
            "Beyond the soft edge the background's pixels are unchanged, bit for bit.",
            search_aliases=[
                "background blend",
                "paste back",
                "stitch",
                "composite",
                "feather",
                "seamless",
                "colour match",
                "color match",
                "laplacian blend",
                "imprint blend",
            ],
            inputs=[
                io.Image.Input(
                    "background", tooltip="The untouched picture that was used for sampling. Its transparency is kept."
                ),
                io.Image.Input(
                    "generated", tooltip="The image of Draw Object, made from this background: of the same size."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="Where to put the generated picture: values above 0.5, in a fainter mask those above half "
                    "of its brightest. The mask that was used for sampling, or a tighter one; then connect the first "
                    "to generation_mask.",
                ),
                io.Int.Input(
                    "feather_out",
                    default=4,
                    min=0,
                    max=512,
                    tooltip="Width in pixels of the soft edge outside the mask, 0 to 512; default 4. Beyond it not a "
                    "bit changes. Raise it (16 to 64 on large photos) when the edge shows.",
                ),
                io.Int.Input(
                    "feather_in",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Width in pixels of the soft edge within the mask, 0 to 512; default 0. Use it instead of "
                    "feather_out when nothing outside the mask may change.",
                ),
                io.Float.Input(
                    "colour_match",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the generated colours are moved to agree with the background's on a ring just "
                    "outside the mask, 0 to 1; 0 (default) is off. Raise it when the place looks tinted as a whole.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(BLENDS),
                    default="feather",
                    optional=True,
                    tooltip="How the soft edge mixes. feather (default): all detail alike. multiband: broad colours "
                    "over the whole edge, fine detail in its middle only; take it with wide edges (16 and more "
                    "pixels).",
                ),
                io.Mask.Input(
                    "generation_mask",
                    optional=True,
                    tooltip="The mask that was used for sampling, if 'mask' is another one: colour_match compares "
                    "outside this one, where both pictures show the same place.",
                ),
                io.Int.Input(
                    "match_from",
                    default=0,
                    min=0,
                    max=4095,
                    optional=True,
                    advanced=True,
                    tooltip="colour_match compares from this many pixels outside the mask on; default 0. On large "
                    "photos about 5 % of the mask's longer side: nearer the object may still reach.",
                ),
                io.Int.Input(
                    "match_to",
                    default=16,
                    min=1,
                    max=4096,
                    optional=True,
                    advanced=True,
                    tooltip="colour_match compares up to this many pixels outside the mask; default 16. More on large "
                    "photos; it must be above match_from, and within the sampler's crop.",
                ),
                io.Mask.Input(
                    "alpha",
                    optional=True,
                    tooltip="Where the object is, from Draw Object. Within the mask, what is neither "
                    "object nor shadow then stays the background, bit for bit. Without it, all within the "
                    "mask is replaced.",
                ),
                io.Mask.Input(
                    "shadow",
                    optional=True,
                    tooltip="How much the background is darkened beside the object, from Draw Object; "
                    "needs alpha. Without it there is no shadow on the background.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The finished picture, of the background's size.")],
        )

    @classmethod
    def execute(
        cls,
        background: torch.Tensor,
        generated: torch.Tensor,
        mask: torch.Tensor,
        feather_out: int,
        feather_in: int,
        colour_match: float,
        method: str = "feather",
        generation_mask: torch.Tensor | None = None,
        match_from: int = 0,
        match_to: int = 16,
        alpha: torch.Tensor | None = None,
        shadow: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        frames, transparency = to_bchw(background)
        made, _ = to_bchw(generated)
        if made.shape[2:] != frames.shape[2:]:
            raise ImprintError(
                f"the generated picture is {made.shape[3]}x{made.shape[2]}, but the background {frames.shape[3]}x"
                f"{frames.shape[2]}; connect the whole frame that Draw Object made from this background"
            )
        if alpha is None and shadow is not None:
            raise ImprintError("shadow is connected without alpha; connect both, from Draw Object")
        masks = full_strength(fit_mask(mask, frames, "mask"))
        if not bool(masks.any()):
            raise ImprintError("the mask is empty, so nothing would be blended; connect the mask of Draw Object")
        batches = {"backgrounds": frames, "generated": made, "masks": masks}
        batches["generation_masks"] = (
            masks if generation_mask is None else full_strength(fit_mask(generation_mask, frames, "generation mask"))
        )
        if alpha is not None:
            batches["alphas"] = fit_mask(alpha, frames, "alpha")
            batches["shadows"] = torch.zeros_like(masks[:1]) if shadow is None else fit_mask(shadow, frames, "shadow")
        frames, made, masks, holes, *matte = broadcast(**batches)
        if colour_match:
            made = match_colour(made, frames, holes, match_to, colour_match, match_from)
        blended = blend_pictures(frames, made, masks, feather_in, feather_out, method, matte or None)
        return io.NodeOutput(to_bhwc(blended, transparency))
