"""Draw Object."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import node_helpers
import torch
from comfy_api.latest import io, ui

import nodes  # ComfyUI's own, not this package

from ..imprint.config import ImprintConfig
from ..imprint.crop import Crop
from ..imprint.errors import ImprintError, require_finite, require_number
from ..imprint.hole import Hole
from ..imprint.mask_reading import full_strength
from .control import apply_control, hints
from .local import CHANGE_KEY, CURE
from .matte import MatteReader
from .messages import tell
from .schedules import started_where_it_stands
from .tensors import PRECISION, broadcast, copy_image, fit_mask, lazy_zeros, to_bchw, to_bhwc
from .unet import imprint_config

_SEEDS = 2**64
_SAMPLED = "take another sampler, scheduler or cfg, or start ComfyUI with --force-fp32"


def context_input(default: float, tooltip: str) -> io.Input:
    """The widget for the crop's side, relative to the longer side of the mask's box."""
    return io.Float.Input("context", default=default, min=1.0, max=8.0, step=0.1, tooltip=tooltip)


def resolution_input(tooltip: str) -> io.Input:
    """The widget for the resolution at which the model sees the crop; 0: the checkpoint's."""
    return io.Int.Input("resolution", default=0, min=0, max=4096, step=8, advanced=True, tooltip=tooltip)


class ImprintCompositeSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintCompositeSampler",
            display_name="Imprint: Draw Object",
            category="imprint/sampling",
            description="Generates the object in the masked place: crops a square around the mask, samples there at "
            "the model's own resolution, and puts it back. Follow it with Blend into Background for soft edges.",
            search_aliases=[
                "imprint composite sampler",
                "imprint sampler",
                "inpaint",
                "inpaint crop",
                "object insertion",
                "insert object",
                "add object",
                "compositing",
                "crop and stitch",
                "ksampler",
            ],
            is_output_node=True,  # the front end shows previews of output nodes only
            inputs=[
                io.Model.Input("model", tooltip="From Imprint: Load Checkpoint, with LoRA or patches if you like."),
                io.Vae.Input("vae", tooltip="From Imprint: Load Checkpoint; Load VAE if that file holds none."),
                io.Conditioning.Input("positive", tooltip="The object, from Condition on Object."),
                io.Conditioning.Input("negative", tooltip="No object, from Condition on Object."),
                io.Image.Input(
                    "background",
                    tooltip="The picture to put the object into, of any size. A batch gives one composite for each; "
                    "transparency is kept.",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="Where the object goes: values above 0.5, in a fainter mask those above half of its "
                    "brightest; its outline steers the pose. Best from Coarsen Mask. Another size is stretched to "
                    "the background; too small a hole is enlarged, and the node says so.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The random start. The same seed and inputs give the same picture; try some when you do "
                    "not like the first.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=10000,
                    tooltip="Sampling steps; time grows with them. 20 (default) is enough with most samplers, 8 for a "
                    "quick look, 50 for ObjectStitch, Paint-by-Example, ControlCom and AnyDoor; beyond that little "
                    "changes.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance: how strongly to push towards the object. 1 (default) is none: the shipped "
                    "checkpoint has learned it. Up to 1.5: clearer, beyond that harsh colours, in twice the time. A "
                    "checkpoint of your own takes 2, ObjectStitch, Paint-by-Example, ControlCom and AnyDoor 5.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="The sampling algorithm. euler (default) is what the model was measured with; "
                    "dpmpp_2m needs fewer steps. Those with 'ancestral' or 'sde' in their name give another picture "
                    "for every number of steps.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="How the noise levels are spread over the steps. simple (default) and sgm_uniform fit this "
                    "model, which starts from pure noise; ddim_uniform is ObjectStitch's, Paint-by-Example's, "
                    "ControlCom's and AnyDoor's; karras spends most steps on detail.",
                ),
                context_input(
                    1.3,
                    "Side of the square crop over the longer side of the mask's box, 1 to 8; default 1.3. "
                    "Raise it (2 to 3) when light or perspective do not fit the scene: the model sees more of it, with "
                    "fewer pixels for the object.",
                ),
                resolution_input(
                    "Side in pixels at which the model sees the crop. 0 (default): the checkpoint's own, 256 "
                    "for the shipped one, which also knows 384 and 512: sharper in holes that are larger than 256 "
                    "pixels, in two to four times the time.",
                ),
                io.Boolean.Input(
                    "show_crop",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Show on this node the crop that the model works in: with its hole, and with the object. "
                    "Switch it on to see what the model sees.",
                ),
                io.Int.Input(
                    "variations",
                    default=1,
                    min=1,
                    max=8,
                    optional=True,
                    tooltip="How many pictures to draw in one run, 1 (default) to 8: the first with the seed, each "
                    "further one with the next higher seed, so that you can draw the one you like again. For one "
                    "background at a time.",
                ),
                io.Boolean.Input(
                    "same_noise",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="For the frames of a video: each picture of the batch starts from the same noise, so that "
                    "an object that stands still does not flicker; off by default. Take a sampler without 'ancestral' "
                    "or 'sde' in its name, since those add noise of their own.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The whole background with the generated square in its place, hard-edged. "
                    "For Blend into Background's generated.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The mask used for drawing: the given one, enlarged if it was too small. For Blend into "
                    "Background.",
                ),
                io.Mask.Output(
                    display_name="alpha",
                    tooltip="Where the object is, white, as the model sees it; the whole square for a checkpoint that "
                    "predicts no alpha. For Blend into Background's alpha.",
                ),
                io.Mask.Output(
                    display_name="shadow",
                    tooltip="How much of the scene's light the object blocks: black none, white all of it; black for a "
                    "checkpoint that predicts no shadow. For Blend into Background's shadow.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        positive: list,
        negative: list,
        background: torch.Tensor,
        mask: torch.Tensor,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        context: float,
        resolution: int,
        show_crop: bool = False,
        variations: int = 1,
        same_noise: bool = False,
    ) -> io.NodeOutput:
        config = imprint_config(model)
        _check_parts(config, vae, positive, negative)
        require_number("cfg", cfg)  # ComfyUI's own check lets NaN through
        frames, _ = to_bchw(background)
        frames, masks = broadcast(backgrounds=frames, masks=full_strength(fit_mask(mask, frames, "mask")))
        _check_variations(variations, len(frames))
        crops = crops_of(frames, masks, config, resolution or None, context)
        tell(cls, "\n".join(_describe(crop.hole) for crop in crops))

        # From here on only the crops are touched: the frame may have 67 megapixels.
        painted = to_bhwc(torch.cat([crop.painted for crop in crops]))
        clean = require_finite(vae.encode(painted), "the background's latents", PRECISION)
        hole = torch.cat([crop.latent_mask for crop in crops]).to(clean)
        positive, negative, latent = _inputs(config, positive, negative, clean, hole)
        if config.background == "control":
            positive, negative = apply_control(model, positive, negative, hints(config, positive, crops))
        if same_noise:
            latent["batch_index"] = [0] * len(crops)  # ComfyUI's key for which of the seed's noises each uses
        model = started_where_it_stands(model, sampler_name, scheduler, steps)
        settings = (steps, cfg, sampler_name, scheduler, positive, negative, latent)
        drawn = [_draw(model, vae, clean, hole, (seed + index) % _SEEDS, *settings) for index in range(variations)]
        drawings = torch.cat([pictures for pictures, _ in drawn])
        mattes = torch.cat([maps for _, maps in drawn]) if config.matte else None
        image, maps = _put_back(background, crops * variations, drawings, mattes)
        shown = ui.PreviewImage(torch.cat([painted, to_bhwc(drawings).to(painted)]), cls=cls) if show_crop else None
        return io.NodeOutput(image, _generated_in(masks, crops, config), *maps.unbind(1), ui=shown)


def crops_of(
    frames: torch.Tensor, masks: torch.Tensor, config: ImprintConfig, resolution: int | None, context: float
) -> list[Crop]:
    """A crop for each of the frames (B, 3, H, W) and masks (B, H, W)."""
    crops = []
    for index in range(len(masks)):
        one = slice(index, index + 1)
        try:
            crops.append(Crop.of(frames[one], masks[one], config, resolution, context))
        except ImprintError as error:
            raise ImprintError(f"mask {index + 1} of {len(masks)}: {error}") from error
    return crops


def _inputs(
    config: ImprintConfig, positive: list, negative: list, clean: torch.Tensor, hole: torch.Tensor
) -> tuple[list, list, dict[str, torch.Tensor]]:
    """Both conditionings and the initial LATENT, depending on how the model sees the background.

    clean (B, C, h, w): the background's latents with the hole painted grey; hole (B, 1, h, w) of 0 and 1.
    """
    if config.background == "blend":
        return positive, negative, {"samples": clean, "noise_mask": hole}
    # This UNet was trained with noise everywhere, and gets the background in separate channels or through a ControlNet.
    # So there is no noise mask, and the initial latent is empty, so that the first step sees only noise.
    if config.background == "control":
        return positive, negative, {"samples": torch.zeros_like(clean)}
    channels = {"concat_latent_image": clean, "concat_mask": hole}
    positive, negative = (node_helpers.conditioning_set_values(each, channels) for each in (positive, negative))
    return positive, negative, {"samples": torch.zeros_like(clean)}


def _draw(
    model: Any, vae: Any, clean: torch.Tensor, hole: torch.Tensor, seed: int, *settings: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One drawing of each crop (B, 3, R, R); its alpha and shadow (B, 2, R, R), None if the model predicts none.

    clean, hole: as in `_inputs`; settings: the arguments of `common_ksampler` after the seed.
    """
    config, reader = imprint_config(model), MatteReader()
    (made,) = nodes.common_ksampler(reader.watch(model), seed, *settings)
    sampled = require_finite(torch.where(hole > 0, made["samples"], clean), "what was sampled", _SAMPLED)
    drawings, _ = to_bchw(require_finite(vae.decode(sampled), "the decoded picture", PRECISION))
    return drawings, torch.stack(reader.read(hole, config), 1) if config.matte else None


def _put_back(
    background: torch.Tensor, crops: list[Crop], drawings: torch.Tensor, mattes: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The background (IMAGE) with each drawing in its crop, and alpha and shadow in maps of its size (B, 2, H, W)."""
    image = copy_image(background, len(crops))
    colours = image[..., :3].movedim(-1, 1)  # a view: writing to it writes to the image
    maps = lazy_zeros(len(crops), 2, *colours.shape[2:])
    for index, crop in enumerate(crops):
        one = slice(index, index + 1)
        crop.write(colours[one], drawings[one])
        if mattes is None:
            maps[(index, 0, *crop.placement.area)] = 1  # everything generated counts as the object
        else:
            crop.write(maps[one], mattes[one])
    return image, maps


def _describe(hole: Hole) -> str:
    side, resolution = hole.placement.side, hole.placement.resolution
    line = f"crop of {side}x{side} px, seen at {resolution}x{resolution}"
    if hole.areas > 1:
        line = f"{line}\n{hole.areas} separate areas: one object will span them."
    if not hole.enlarged:
        return line
    (height, width), (new_height, new_width) = hole.drawn, hole.size
    return (
        f"{line}\nThe hole of {width}x{height} px is too small to generate in: enlarged around its centre to "
        f"{new_width}x{new_height} px. Connect this node's mask to Blend into Background."
    )


def _generated_in(masks: torch.Tensor, crops: list[Crop], config: ImprintConfig) -> torch.Tensor:
    """The masks (B, H, W), enlarged where they were too small to generate in; boxes for a model that draws in them."""
    if config.hole_shape == "outline" and not any(crop.hole.enlarged for crop in crops):
        return masks
    masks = masks.clone()
    for mask, crop in zip(masks, crops):
        mask[crop.placement.area] = torch.maximum(mask[crop.placement.area], crop.hole.mask.to(mask))
    return masks


def _check_parts(config: ImprintConfig, vae: Any, positive: list, negative: list) -> None:
    if vae is None:
        base = "SDXL" if config.unet.pooled_width else "SD 1.5"
        raise ImprintError(
            f"the VAE is empty: this checkpoint holds no autoencoder; connect Load VAE with a VAE of {base}"
        )
    if vae.latent_channels != config.latent.channels:
        raise ImprintError(
            f"the VAE has {vae.latent_channels} latent channels, but the MODEL takes {config.latent.channels}; "
            "connect the VAE of Imprint: Load Checkpoint"
        )
    for name, conditioning in (("positive", positive), ("negative", negative)):
        for context, told in conditioning:
            if config.changes and CHANGE_KEY not in told:
                raise ImprintError(f"the {name} conditioning does not say what to change of the object; {CURE}")
            if context.shape[-1] != config.unet.context_width:
                raise ImprintError(
                    f"the {name} conditioning has width {context.shape[-1]}, but the MODEL takes "
                    f"{config.unet.context_width}; {CURE}"
                )


def _check_variations(variations: int, count: int) -> None:
    if variations > 1 < count:
        raise ImprintError(
            f"variations is {variations}, which draws one place {variations} times, but {count} came in a batch; "
            "set variations to 1, or connect one background and one mask"
        )
