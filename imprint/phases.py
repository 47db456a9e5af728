"""The phases up to the drawing, each a method that can be called on its own, and the values passed between them.

`imprint.pipeline` runs them in order; `imprint.finishing` holds the rest.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from .changes import require_change
from .crop import MOST_PIXELS, Crop
from .errors import PRECISION, ImprintError, require_finite
from .hint import control_hint
from .images import Picture, picture_profile
from .mask_reading import as_mask_in_place
from .model_pipeline import ModelPipeline
from .noise import with_timesteps
from .preprocess import black_picture
from .vae import encode
from .views import ObjectViews

_SAMPLED = "take another scheduler or guidance, and fp32 if it ran in less"

_log = logging.getLogger(__name__)


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
    """(1, h, w), of `crop.frame`: where to put the drawing."""
    whole_blend_mask: torch.Tensor | None = None
    """(1, H, W) in [0, 1], of the background, if one was given: how much of the shadow is visible."""
    local: torch.Tensor | None = None
    """(1, M, D) local tokens, for a model with local blocks."""
    hint: torch.Tensor | None = None
    """(1, 4, R, R) from `control_hint`, for a model with a ControlNet."""


class Phases(ModelPipeline):
    """The phases up to the drawing."""

    @property
    def _pixels_device(self) -> torch.device:
        """Where pictures are worked on: CUDA has all operations that this takes, and MPS lacks some."""
        device = self._execution_device
        return device if device.type == "cuda" else torch.device("cpu")

    @torch.no_grad()
    def encode_object(
        self, images: Picture | Sequence[Picture], masks: Picture | Sequence[Picture] | None = None
    ) -> torch.Tensor:
        """One or several views of one object -> (1, V, N, C) tokens; arguments and errors as for `ObjectViews.of`.

        They include local tokens if the model has them: see `IDEncoder.forward`.
        """
        pixels, _ = ObjectViews.of(images, masks).prepared(self.model_config.encoder)
        return self._encode_views(pixels)

    def _encode_views(self, pixels: torch.Tensor) -> torch.Tensor:
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
        """The two halves of the model's input: the object's context and the background's latents.

        object_image, object_mask: the object, or lists of several views; see `ObjectViews.of`. background: Pillow
        picture or (1, 3, H, W) tensor in [0, 1]. mask: Pillow or (1, H, W) of the background's size, white = 1 where
        the object goes; its shape determines the pose. blend_mask: where to put the drawing, if not in `mask`; never
        more than the crop. context: side of the model's square crop relative to the longer side of the mask's box; by
        default the checkpoint's. resolution: side of the crop as the model sees it; by default the training resolution.
        Raises `ImprintError` for input that cannot be used, and if encoder or autoencoder return values that are not
        finite.
        """
        config, device = self.model_config, self._execution_device
        crop = Crop.of(background, mask, config, resolution, context, self._pixels_device)
        if crop.hole.enlarged:
            _log.warning(
                "the hole of %dx%d pixels is too small to draw in: enlarged around its centre to %dx%d",
                *crop.hole.drawn[::-1],
                *crop.hole.size[::-1],
            )
        if crop.hole.areas > 1:
            _log.warning("%d separate areas: one object will span them", crop.hole.areas)
        blend = crop.frame_mask if blend_mask is None else crop.blend_part(blend_mask)
        given = isinstance(object_image, ObjectViews)
        views = object_image if given else ObjectViews.of(object_image, object_mask, picture_profile(background))
        if all(each.numel() <= MOST_PIXELS for each in views.masks):
            views = views.to(self._pixels_device)
        pixels, _ = views.prepared(config.encoder)
        # First what takes a GPU longer than Python, then what takes Python longer.
        latents = encode(self.vae, crop.painted.to(device, self.vae.dtype), config.latent).float()
        tokens = require_finite(self._encode_views(pixels), "what the encoder sees of the object", PRECISION)
        latents = require_finite(latents, "the background's latents", PRECISION)
        hole = crop.latent_mask.to(device)
        whole_blend = None if blend_mask is None else as_mask_in_place(blend_mask)
        hint = control_hint(views, crop, config.encoder).to(device) if config.background == "control" else None
        tokens, local = config.encoder.split(tokens)
        local = None if local is None else local[:, 0]
        return Prepared(background, views, crop, self.adapter(tokens), latents, hole, blend, whole_blend, local, hint)

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
        """The sampling loop: (B, C, h, w) standard normal noise -> latents, outside the hole the background's own, and
        the last evaluation's matte logits (B, 2 * matte**2, h, w), without guidance; see `imprint.matte`.

        context (B, N, C') from the adapter; background (B, C, h, w) latents with the hole painted grey; hole (B, 1, h,
        w) of 0 and 1; local (B, M, D) local tokens, for a model with local blocks, which see the object even if the
        context is null; hint (1, 4, R, R) from `control_hint`, for a model with a ControlNet; the rest as in
        `__call__`.
        IMPRINT's blend (arXiv 2403.10701, figure 2) with classifier-free guidance (arXiv 2207.12598, equation 6)
        against `null_context`. Raises `ImprintError` if the hint or local tokens are missing.
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
            # z_T as in training and in ComfyUI: even at sigma 4,518 it contains a trace of the background.
            latents = scheduler.add_noise(background, noise, scheduler.timesteps[:1])
        else:  # noise alone, and of variance 1 at the UNet: in latent diffusion's samplers and in ComfyUI
            latents = noise / scheduler.scale_model_input(torch.ones_like(noise), scheduler.timesteps[0])
        accepted = inspect.signature(scheduler.step).parameters
        extra = {name: value for name, value in (scheduler_arguments or {}).items() if name in accepted}
        # The schedule stays on the CPU, so that reading a step's numbers does not synchronise.
        times = scheduler.timesteps.to(noise.device).unbind()
        evaluate = self._step()
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
