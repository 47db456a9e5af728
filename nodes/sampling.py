"""Imprint Composite Sampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import node_helpers
import torch
from comfy_api.latest import io, ui

import nodes  # ComfyUI's own, not this package

from ..imprint.config import ImprintConfig
from ..imprint.errors import ImprintError
from ..imprint.masks import latent_hole, paint_hole
from ..imprint.placement import Hole, Placement
from .messages import tell
from .models import MatteReader, imprint_config
from .tensors import broadcast, copy_image, fit_mask, sparse_zeros, to_bchw, to_bhwc


class ImprintCompositeSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintCompositeSampler",
            display_name="Imprint Composite Sampler",
            category="imprint/sampling",
            description="Generates the object in the masked place: crops a square around the mask, samples there at "
            "the model's own resolution, and puts it back. Follow it with Background Blend for soft edges.",
            search_aliases=[
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
                io.Model.Input("model", tooltip="From Load Imprint Checkpoint, with LoRA or patches if you like."),
                io.Vae.Input("vae", tooltip="From Load Imprint Checkpoint; Load VAE if that file holds none."),
                io.Conditioning.Input("positive", tooltip="The object, from Content Adapter."),
                io.Conditioning.Input("negative", tooltip="No object, from Content Adapter."),
                io.Image.Input(
                    "background",
                    tooltip="The picture to put the object into, of any size. A batch gives one composite for each; "
                    "transparency is kept.",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="Where the object goes: values above 0.5; its outline steers the pose. Best from Mask Coarsener. "
                    "Another size is stretched to the background; too small a hole is enlarged, and the node says so.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The random start. The same seed and inputs give the same picture; try some when you do not "
                    "like the first.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=10000,
                    tooltip="Sampling steps; time grows with them. 20 (default) is enough with most samplers, 8 for a quick "
                    "look, 50 for ObjectStitch and Paint-by-Example; beyond that little changes.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance: how strongly to push towards the object. 1 (default) is none: the shipped checkpoint has "
                    "learned it. To 1.5: clearer, then hard colours, in twice the time. A checkpoint of your own takes 2, "
                    "ObjectStitch and Paint-by-Example 5.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="The sampling algorithm. euler (default) is what the model was measured with; "
                    "dpmpp_2m needs fewer steps. Those with 'ancestral' or 'sde' in their name give another picture for "
                    "every number of steps.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="How the noise levels are spread over the steps. simple (default) and sgm_uniform fit this "
                    "model, which starts from pure noise; ddim_uniform is ObjectStitch's and Paint-by-Example's; karras spends "
                    "most steps on detail.",
                ),
                io.Float.Input(
                    "context",
                    default=1.3,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    tooltip="Side of the square crop over the longer side of the mask's box, 1 to 8; default 1.3. "
                    "Raise it (2 to 3) when light or perspective do not fit the scene: the model sees more of it, with "
                    "fewer pixels for the object.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    advanced=True,
                    tooltip="Side in pixels at which the model sees the crop. 0 (default): the checkpoint's own, 256 for the "
                    "shipped one, which also knows 384 and 512: sharper in holes that are larger than 256 pixels, in two to "
                    "four times the time.",
                ),
                io.Boolean.Input(
                    "show_crop",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Show on this node the crop that the model works in: with its hole, and with the object. "
                    "Switch it on to see what the model sees.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The whole background with the generated square in its place, hard-edged. "
                    "For Background Blend's generated.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The mask that was generated in: the given one, enlarged where it was too small. "
                    "For Background Blend.",
                ),
                io.Mask.Output(
                    display_name="alpha",
                    tooltip="Where the object is, white, as the model sees it; the whole square for a checkpoint that "
                    "predicts no alpha. For Background Blend's alpha.",
                ),
                io.Mask.Output(
                    display_name="shadow",
                    tooltip="How much light the object takes from the scene: black none, white all of it; black for a "
                    "checkpoint that predicts no shadow. For Background Blend's shadow.",
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
    ) -> io.NodeOutput:
        config = imprint_config(model)
        _check_parts(config, vae, positive, negative)
        frames, _ = to_bchw(background)
        frames, masks = broadcast(backgrounds=frames, masks=fit_mask(mask, frames, "mask"))
        holes = _find_holes(masks, resolution or config.resolution, context, config)
        tell(cls, "\n".join(_describe(hole) for hole in holes))

        # From here on only the crops are touched: the frame may have 67 megapixels.
        places = [hole.placement.within(hole.placement.area) for hole in holes]
        areas = [(index, slice(None), *hole.placement.area) for index, hole in enumerate(holes)]
        crops = torch.cat([place.extract(frames[area][None]) for place, area in zip(places, areas)])
        crop_holes = torch.cat([place.extract_mask(hole.mask[None]) for place, hole in zip(places, holes)])

        hole = latent_hole(crop_holes, config.latent.downscale)
        painted = to_bhwc(paint_hole(crops, hole, config.hole_value))
        clean = vae.encode(painted)
        hole = hole.to(clean)
        latent = {"samples": clean}
        if config.background == "blend":
            latent["noise_mask"] = hole
        else:
            # This UNet was trained with noise everywhere, and has the background in channels of its own: no noise mask, and
            # an empty latent to start from, so that the first step sees noise alone.
            latent = {"samples": torch.zeros_like(clean)}
            channels = {"concat_latent_image": clean, "concat_mask": hole}
            positive, negative = (node_helpers.conditioning_set_values(each, channels) for each in (positive, negative))
        reader = MatteReader()
        model = reader.watch(model)
        (sampled,) = nodes.common_ksampler(model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent)
        matte = reader.read(hole, config) if config.matte else None
        made, _ = to_bchw(vae.decode(torch.where(hole > 0, sampled["samples"], clean)))

        result = copy_image(background, len(holes))
        colours, _ = to_bchw(result)  # a view: what is written into it is written into the result
        maps = sparse_zeros(len(holes), 2, *masks.shape[1:])
        _put_back(colours, made, places, areas)
        if matte:
            _put_back(maps, torch.stack(matte, 1), places, areas)
        else:
            alpha = maps[:, :1]
            for area in areas:
                alpha[area] = 1  # all that was generated counts as the object
        shown = ui.PreviewImage(torch.cat([painted, to_bhwc(made.to(painted))]), cls=cls) if show_crop else None
        return io.NodeOutput(result, _generated_in(masks, holes), *maps.unbind(1), ui=shown)


def _put_back(frames: torch.Tensor, crops: torch.Tensor, places: list[Placement], areas: list[tuple]) -> None:
    """Write each crop (C, R, R) into its area of a frame (B, C, H, W)."""
    for place, area, crop in zip(places, areas, crops.to(frames)):
        frames[area] = place.insert(frames[area][None], crop[None])[0]


def _find_holes(masks: torch.Tensor, resolution: int, context: float, config: ImprintConfig) -> list[Hole]:
    holes = []
    for index, mask in enumerate(masks):
        try:
            holes.append(Hole.find(mask, resolution, context, config.multiple, config.latent.downscale))
        except ImprintError as error:
            raise ImprintError(f"mask {index + 1} of {len(masks)}: {error}") from error
    return holes


def _describe(hole: Hole) -> str:
    side, resolution = hole.placement.side, hole.placement.resolution
    line = f"crop of {side}x{side} px, seen at {resolution}x{resolution}"
    if not hole.enlarged:
        return line
    (height, width), (new_height, new_width) = hole.drawn, hole.size
    return (
        f"{line}\nThe hole of {width}x{height} px is too small to generate in: enlarged around its centre to "
        f"{new_width}x{new_height} px. Connect this node's mask to Background Blend."
    )


def _generated_in(masks: torch.Tensor, holes: list[Hole]) -> torch.Tensor:
    if not any(hole.enlarged for hole in holes):
        return masks
    masks = masks.clone()
    for mask, hole in zip(masks, holes):
        mask[hole.placement.area] = torch.maximum(mask[hole.placement.area], hole.mask)
    return masks


def _check_parts(config: ImprintConfig, vae: Any, positive: list, negative: list) -> None:
    if vae is None:
        raise ImprintError(
            "the VAE is empty: this checkpoint holds no autoencoder; connect Load VAE with a VAE of SD 1.5"
        )
    if vae.latent_channels != config.latent.channels:
        raise ImprintError(
            f"the VAE has {vae.latent_channels} latent channels, but the MODEL takes {config.latent.channels}; "
            "connect the VAE of Load Imprint Checkpoint"
        )
    for name, conditioning in (("positive", positive), ("negative", negative)):
        for context, _ in conditioning:
            if context.shape[-1] != config.unet.context_width:
                raise ImprintError(
                    f"the {name} conditioning has width {context.shape[-1]}, but the MODEL takes "
                    f"{config.unet.context_width}; connect the Content Adapter of the same checkpoint"
                )
