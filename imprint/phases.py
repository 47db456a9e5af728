"""The phases of a picture, each a method that can be called by itself, and the values that go from one to the next.

`imprint.pipeline` puts them in their order.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from .blending import BLENDS
from .config import require_change
from .crop import Crop, Layers, around, inner, paste_all
from .detail import restore_detail
from .errors import ImprintError, require_finite, require_number, require_same_size
from .hint import control_hint
from .hole import Placement
from .images import Picture, as_mask, as_mask_in_place, colours_of, picture_part, picture_size
from .light import Lit, relight, require_strengths, square_around
from .lightnet import LightNet, load_light
from .matte import matte_pixels
from .noise import with_timesteps
from .parts import Parts
from .place import PlacedObject
from .preprocess import black_picture
from .unet import evaluated
from .vae import decode, encode
from .views import ObjectViews

MOST_FEATHER = 2**16
"""Pixels of a soft edge."""
_PRECISION = "its weights are broken, or too large for this precision: run it in fp32"
_SAMPLED = "take another scheduler or guidance, and fp32 if it ran in less"

_log = logging.getLogger(__name__)


@dataclass
class ImprintPipelineOutput(BaseOutput):
    """images: `num_results` Pillow pictures, or a (B, 3, H, W) tensor in [0, 1] for `output_type="pt"`, or the final
    (B, C, h, w) latents for `"latent"`. placement: the square of the background that the model worked in. alpha,
    shadow: what was laid over the background, in that square: each (B, resolution, resolution) in [0, 1], alpha with
    the outline that detail gave it; None without a matte. lit: for an object that was placed, its layers of shadow,
    object and light, in `lit.area` of the background; None where the model drew it.
    """

    images: list[Image.Image] | torch.Tensor
    placement: Placement
    alpha: torch.Tensor | None = None
    shadow: torch.Tensor | None = None
    lit: Lit | None = None


@dataclass(frozen=True)
class Finish:
    """How the drawing is put into the background. Raises `ImprintError` for a value that cannot be used."""

    feather_pixels: int | None = None
    """Width of the soft edge outside the mask, in pixels of the background; by default `crop.FEATHER` pixels of the
    crop. Beyond it the background stays bit for bit."""
    feather_inwards: int = 0
    """Width of the soft edge inside the mask, in pixels of the background."""
    blend_method: str = "feather"
    """How the soft edge mixes, one of `blending.BLENDS`."""
    colour_match: float = 0.0
    """From 0 to 1, how far the crop's colours are moved to the background's around the hole."""
    matte: bool = True
    """Keep the background, bit for bit, wherever there is neither the object nor its shadow, also inside the mask (see
    `imprint.matte`); without effect for checkpoints that predict no matte."""
    detail: float = 1.0
    """From 0 to 1, how far the object's own photo, in the light of the drawing, takes its place where both show the
    same (see `imprint.detail`); without effect for checkpoints that predict no matte."""
    shadow: float = 1.0
    softness: float = 0.0
    light_from: str | float = "auto"
    """Of the shadow that the object throws, within the mask and beyond it, as `imprint.light.relight` takes them; there
    is none without a matte."""

    def __post_init__(self) -> None:
        require_number("colour match", self.colour_match, 0, 1)
        require_number("detail", self.detail, 0, 1)
        require_number("shadow", self.shadow)
        require_number("softness", self.softness)
        require_strengths(0, self.shadow, self.softness, self.light_from)
        for name, width in (("feather", self.feather_pixels or 0), ("feather inwards", self.feather_inwards)):
            require_number(name, width, 0, MOST_FEATHER, whole=True)
        if self.blend_method not in BLENDS:
            raise ImprintError(f"the blend method is {self.blend_method!r}; it must be one of {', '.join(BLENDS)}")


@dataclass(frozen=True)
class Prepared:
    """What `denoise` and `finish` need of the object and the background."""

    background: Picture
    views: ObjectViews
    crop: Crop
    context: torch.Tensor
    """(1, N, C) from the adapter."""
    latents: torch.Tensor
    """(1, C, h, w) float32: the background's, with its hole painted grey."""
    hole: torch.Tensor
    """(1, 1, h, w) of 0 and 1: `crop.latent_mask` on the model's device."""
    blend_mask: torch.Tensor
    """Of `crop.frame`, (1, h, w): where the drawing is put."""
    seen: torch.Tensor | None = None
    """(1, H, W) in [0, 1]: how much of the shadow shows, where a blend mask was given."""
    local: torch.Tensor | None = None
    """(1, M, D) local tokens, of a model with local blocks."""
    hint: torch.Tensor | None = None
    """(1, 4, R, R) from `control_hint`, for a model with a ControlNet."""


class Phases(Parts):
    """A model that makes a picture step by step."""

    @torch.no_grad()
    def encode_object(
        self, images: Picture | Sequence[Picture], masks: Picture | Sequence[Picture] | None = None
    ) -> torch.Tensor:
        """One or several views of one object -> (1, V, N, C) tokens; arguments and errors as of `ObjectViews.of`.

        Local tokens, if the model has them, are among them: see `IDEncoder.forward`.
        """
        return self._encode_views(ObjectViews.of(images, masks))

    def _encode_views(self, views: ObjectViews) -> torch.Tensor:
        pixels, _ = views.prepared(self.model_config.encoder)
        return self.encoder(pixels.to(self._execution_device, self.encoder.dtype))[None]

    @torch.no_grad()
    def prepare(
        self,
        object_image: Picture | Sequence[Picture] | ObjectViews,
        object_mask: Picture | Sequence[Picture] | None,
        background: Picture,
        mask: Picture,
        blend_mask: Picture | None = None,
        context: float | None = None,
        resolution: int | None = None,
    ) -> Prepared:
        """Both halves of the model's input, the object's context and the background's latents.

        object_image, object_mask: the object, or a list of several views of it; see `ObjectViews.of`. background:
        Pillow picture or (1, 3, H, W) tensor in [0, 1]. mask: Pillow or (1, H, W), white = 1 where the object goes, of
        the background's size; its shape steers the pose. blend_mask: where to put the drawing, if not in `mask`; at
        most the crop is put back. context: side of the model's square crop over the longer side of the mask's box; by
        default the checkpoint's. resolution: side at which the model sees that crop, by default what it was trained at.
        """
        config, device = self.model_config, self._execution_device
        crop = Crop.of(background, mask, config, resolution, context)
        if crop.hole.enlarged:
            _log.warning(
                "the hole of %dx%d pixels is too small to generate in: enlarged around its centre to %dx%d",
                *crop.hole.drawn[::-1],
                *crop.hole.size[::-1],
            )
        if crop.hole.areas > 1:
            _log.warning("%d separate areas: one object will span them", crop.hole.areas)
        blend = crop.frame_mask if blend_mask is None else crop.part(blend_mask, "blend mask")
        given = isinstance(object_image, ObjectViews)
        views = object_image if given else ObjectViews.of(object_image, object_mask, colours_of(background))
        tokens = self._encode_views(views)
        latents = encode(self.vae, crop.painted.to(device, self.vae.dtype), config.latent).float()
        tokens = require_finite(tokens, "what the encoder sees of the object", _PRECISION)
        latents = require_finite(latents, "the background's latents", _PRECISION)
        hole = crop.latent_mask.to(device)
        seen = None if blend_mask is None else as_mask_in_place(blend_mask)
        hint = control_hint(views, crop, config.encoder).to(device) if config.background == "control" else None
        tokens, local = config.encoder.split(tokens)
        local = None if local is None else local[:, 0]
        return Prepared(background, views, crop, self.adapter(tokens), latents, hole, blend, seen, local, hint)

    @torch.no_grad()
    def null_context(self, context: torch.Tensor) -> torch.Tensor:
        """The context without an object, in the shape of one with it, (B, N, C)."""
        encoder = self.model_config.encoder
        if encoder.nothing == "learned":
            return self.adapter.null_context(context)
        pixels = black_picture(encoder).to(self._execution_device, self.encoder.dtype)
        return self.adapter(self.encoder(pixels)[None]).to(context).expand_as(context)

    @torch.no_grad()
    def denoise(
        self,
        context: torch.Tensor,
        background: torch.Tensor,
        hole: torch.Tensor,
        noise: torch.Tensor,
        steps: int | None = None,
        guidance: float | None = None,
        scheduler_arguments: dict | None = None,
        callback: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_inputs: Sequence[str] = ("latents",),
        local: torch.Tensor | None = None,
        change: str | None = None,
        hint: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sampling loop: (B, C, h, w) standard normal noise -> latents, the background's own outside the hole, and
        the matte's logits (B, 2 * matte**2, h, w) of the last evaluation, without guidance; see `imprint.matte`.

        context (B, N, C') from the adapter; background (B, C, h, w) latents with the hole painted grey; hole (B, 1, h,
        w) of 0 and 1; local (B, M, D) local tokens, of a model with local blocks, which see the object also where the
        context is null; hint (1, 4, R, R) from `control_hint`, of a model with a ControlNet; the rest as in `__call__`.
        IMPRINT's blend (arXiv 2403.10701, figure 2) with classifier-free guidance (arXiv 2207.12598, equation 6)
        against `null_context`. Raises `ImprintError` for a hint or local tokens that are missing.
        """
        config = self.model_config
        require_change(change, config)
        if config.background == "control" and hint is None:
            raise ImprintError("this model sees the background by a ControlNet; give the hint that `prepare` made")
        if config.unet.local_levels and local is None:
            raise ImprintError("this model also sees the object's local tokens; give those that `prepare` found")
        guidance = config.sampling.guidance_scale if guidance is None else guidance
        contexts = context if guidance == 1 else torch.cat([self.null_context(context), context])
        contexts = contexts.to(self.unet.dtype)
        if local is not None:
            local = local.repeat(len(contexts) // len(local), 1, 1)
        scheduler = with_timesteps(self.scheduler, config.sampling.steps if steps is None else steps)
        if config.background == "blend":
            # z_T as in training and in ComfyUI: even at sigma 4,518 it holds a trace of the picture, the background's.
            latents = scheduler.add_noise(background, noise, scheduler.timesteps[:1])
        else:  # noise alone, and of variance 1 at the UNet: in latent diffusion's samplers and in ComfyUI
            latents = noise / scheduler.scale_model_input(torch.ones_like(noise), scheduler.timesteps[0])
        accepted = inspect.signature(scheduler.step).parameters
        extra = {name: value for name, value in (scheduler_arguments or {}).items() if name in accepted}
        # The schedule stays on the CPU: asking it there for a step's numbers waits for no device.
        times = scheduler.timesteps.to(noise.device).unbind()
        evaluate = self._compiled or evaluated
        more = {"change": change or "both", "local": local, "control": self.control, "hint": hint}
        with self.progress_bar(total=len(scheduler.timesteps)) as progress:
            for index, timestep in enumerate(scheduler.timesteps):
                noisy = scheduler.scale_model_input(latents, timestep)
                seen = background, hole, contexts, guidance
                prediction, logits = evaluate(self.unet, noisy, times[index], *seen, config=config, **more)
                latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
                if callback is not None:
                    given = {"latents": latents} if "latents" in callback_inputs else {}
                    latents = callback(self, index, timestep, given).get("latents", latents)
                progress.update()
        latents = require_finite(torch.where(hole > 0, latents, background), "what was sampled", _SAMPLED)
        return latents, require_finite(logits, "the matte that was predicted", _SAMPLED)

    @torch.no_grad()
    def finish(
        self,
        scene: Prepared,
        latents: torch.Tensor,
        logits: torch.Tensor,
        settings: Finish = Finish(),
        output_type: str = "pil",
    ) -> ImprintPipelineOutput:
        """From what `denoise` gives to the composites; output_type: as in `__call__`."""
        config, crop = self.model_config, scene.crop
        if output_type == "latent":
            return ImprintPipelineOutput(latents, crop.placement)
        drawings = decode(self.vae, latents.to(self.vae.dtype), config.latent).float().cpu()
        require_finite(drawings, "the decoded picture", _PRECISION)
        if settings.colour_match:
            drawings = crop.matched(drawings, settings.colour_match)
        maps = [each.cpu() for each in matte_pixels(logits, scene.hole, config)] if config.matte else []
        layers = self._layers(scene, drawings, maps[0] if maps else None, settings)
        frames, lost, area = self._shaded(scene, layers, settings)
        outwards = crop.feather if settings.feather_pixels is None else settings.feather_pixels
        here = (..., *inner(area, crop.area))
        edge = settings.feather_inwards, outwards, settings.blend_method
        frames[here] = crop.composite(frames[here], layers, scene.blend_mask, *edge)
        images = paste_all(scene.background, frames, area, output_type)
        if layers.alpha is None:
            return ImprintPipelineOutput(images, crop.placement)
        # Detail changes alpha: the one that was used is given, if need be on the way back.
        kept = torch.equal(layers.alpha, crop.put_back_maps(maps[0]))
        alpha = maps[0] if kept else crop.taken(layers.alpha)
        return ImprintPipelineOutput(images, crop.placement, alpha, crop.taken(lost[here][:, 0]))

    @staticmethod
    def _layers(scene: Prepared, drawings: torch.Tensor, alpha: torch.Tensor | None, settings: Finish) -> Layers:
        """What is laid over the frame, from drawings of the square (B, 3, R, R) and their alpha (B, R, R), if any."""
        crop, picture = scene.crop, scene.crop.put_back(drawings)
        if alpha is None:
            return Layers(picture)
        picture, alpha, _ = restore_detail(picture, crop.put_back_maps(alpha), scene.views, settings.detail)
        for values in (picture, alpha):
            require_finite(values, "the picture with the object's own detail", "switch detail off (0) for this object")
        return Layers(picture, alpha if settings.matte else None)

    def _shaded(
        self, scene: Prepared, layers: Layers, settings: Finish
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[slice, slice]]:
        """The background's part (B, 3, h, w) that composites may change, with the shadows that the drawn objects throw,
        the share of light that it lost (B, 1, h, w), and the part's rows and columns.
        """
        crop, lit = scene.crop, []
        if layers.alpha is not None and settings.shadow:
            lit = [self._thrown(scene, *each, settings) for each in zip(layers.picture, layers.alpha)]
        area = around(crop.area, *(each.area for each in lit if each))
        frames = picture_part(scene.background, area).repeat(len(layers.picture), 1, 1, 1)
        lost = torch.zeros_like(frames[:, :1])
        for frame, share, each in zip(frames, lost, lit):
            if each:
                here = (slice(None), *inner(area, each.area))
                frame[here], share[here] = each.ground()[0], each.shadow[0]
        return frames, lost, area

    def _thrown(self, scene: Prepared, picture: torch.Tensor, alpha: torch.Tensor, settings: Finish) -> Lit | None:
        """The shadow of an object that was drawn, (3, h, w) with alpha (h, w) in the crop's frame; None without one."""
        if not bool(alpha.any()):
            return None
        rows, columns = scene.crop.area
        placed = PlacedObject.from_layer(picture, alpha, (rows.start, columns.start), picture_size(scene.background))
        lit = relight(
            self._light_net(), scene.background, placed, 0.0, settings.shadow, settings.softness, settings.light_from
        )
        if scene.seen is not None:
            lit.shadow = lit.shadow * scene.seen[(slice(None), *lit.area)][None].to(lit.shadow)
        return lit

    def _light_net(self) -> LightNet:
        """The shipped one, unless there is another; loaded when it is first used."""
        if self.light is None:
            self.register_modules(light=load_light().to(self.device))
        if self.device.type == "cpu":
            self.light.float()  # half precision takes a hundred times as long there
        return self.light

    @torch.no_grad()
    def finish_placed(
        self,
        background: Picture,
        placed: PlacedObject,
        light: float = 1.0,
        shadow: float = 1.0,
        softness: float = 0.0,
        light_from: str | float = "auto",
        blend_mask: Picture | None = None,
        num_results: int = 1,
        output_type: str = "pil",
    ) -> ImprintPipelineOutput:
        """An object whose place is known, lit and with its shadow.

        placed: as `place_object` gives it, of the background's size. light, shadow, softness, light_from: see
        `relight`. blend_mask: Pillow or (1, H, W) in [0, 1], how much of object and shadow shows; by default all. The
        results are alike, for nothing is random; output_type: "pil" or "pt". Raises `ImprintError` for another, and for
        sizes that differ.
        """
        if output_type == "latent":
            raise ImprintError("a placed object is never in the model's latents; give output_type 'pil' or 'pt'")
        net = self._light_net()
        square = square_around(net, placed)
        lit = relight(net, background, placed, light, shadow, softness, light_from)
        if blend_mask is not None:
            blend = as_mask(blend_mask)
            require_same_size("the background", placed.size, "its blend mask", blend.shape[1:])
            share = blend[(slice(None), *square.area)][None]
            if not bool((lit.alpha * share).any()):
                raise ImprintError(
                    "the blend mask is empty where the object lies, so that nothing of it would be seen; paint it "
                    "white there, or leave it out"
                )
            lit.alpha, lit.shadow = lit.alpha * share, lit.shadow * share
        part = require_finite(lit.composite(), "the object in the scene's light", _PRECISION)
        images = paste_all(background, part.expand(num_results, -1, -1, -1), square.area, output_type)
        alpha, lost = (square.within(square.area).extract(each)[:, 0] for each in (lit.alpha, lit.shadow))
        return ImprintPipelineOutput(images, square, alpha, lost, lit)
