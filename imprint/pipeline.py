"""`ImprintPipeline`: an object's photo and a photo with a hole in, the composite out."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .adapter import ContentAdapter
from .blending import BLENDS, blend_pictures, match_colour
from .checkpoint import SHIPPED, Checkpoint, load_checkpoint, save_checkpoint
from .config import ImprintConfig
from .detail import restore_detail
from .encoder import IDEncoder
from .errors import ImprintError
from .images import alpha_to_tensor, image_to_tensor, mask_to_tensor, tensor_to_image, to_rgb
from .masks import hole_pixels, latent_hole, paint_hole
from .matte import matte_pixels, split_matte
from .noise import make_scheduler
from .placement import Hole, Placement
from .preprocess import prepare_object, require_masks, require_views
from .unet import build_autoencoder, build_unet, decode, encode, unet_input

_log = logging.getLogger(__name__)

Picture: TypeAlias = "Image.Image | torch.Tensor"

FEATHER = 4
"""Default width of the soft edge around the hole, in pixels of the model's crop."""


@dataclass
class ImprintPipelineOutput(BaseOutput):
    """images: `num_results` Pillow pictures, or a (B, 3, H, W) tensor in [0, 1] for `output_type="pt"`, or the final
    (B, C, h, w) latents for `"latent"`. placement: the square of the background that the model worked in. alpha, shadow:
    the matte in that square, each (B, resolution, resolution) in [0, 1]; None without one."""

    images: list[Image.Image] | torch.Tensor
    placement: Placement
    alpha: torch.Tensor | None = None
    shadow: torch.Tensor | None = None


class ImprintPipeline(StableDiffusionLoraLoaderMixin, DiffusionPipeline):
    """Put an object into a background (IMPRINT, arXiv 2403.10701).

    Build it with `from_checkpoint`. Works with any diffusers scheduler on CPU, CUDA and MPS in fp32, fp16 and bf16, and
    with LoRA files for its UNet as every Stable Diffusion pipeline (`load_lora_weights`; needs peft).
    """

    model_cpu_offload_seq = "encoder->adapter->unet->vae"
    text_encoder = None  # the LoRA loader asks for it
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(self, vae, encoder: IDEncoder, adapter: ContentAdapter, unet, scheduler, model_config: ImprintConfig):
        super().__init__()
        self.register_modules(
            vae=vae, encoder=encoder, adapter=adapter, unet=unet, scheduler=scheduler, model_config=model_config
        )

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike = SHIPPED,
        torch_dtype: torch.dtype = torch.float32,
        vae: torch.nn.Module | None = None,
    ) -> ImprintPipeline:
        """Load a checkpoint; without a path, the one that comes with the package.

        vae: an autoencoder of the configuration's kind for a checkpoint that holds none. Raises `ImprintError` as
        `load_checkpoint` does, and when there is no autoencoder.
        """
        checkpoint = load_checkpoint(path)
        config = checkpoint.config
        if vae is None and "vae" not in checkpoint.parts:
            raise ImprintError(
                f"{path} holds no autoencoder (kind '{config.latent.autoencoder}'); pass one as `vae=`, for example "
                "diffusers' AutoencoderKL.from_pretrained(...)"
            )
        modules = build_modules(config, with_vae=vae is None)
        load_modules(modules, checkpoint)
        modules.setdefault("vae", vae)
        for module in modules.values():
            # Not module.to(): diffusers warns there of modules to keep in fp32 even where the list of them is empty.
            torch.nn.Module.to(module, torch_dtype).eval().requires_grad_(False)
        return cls(**modules, scheduler=make_scheduler(config.noise), model_config=config)

    def save_checkpoint(self, path: str | os.PathLike) -> None:
        """Write all parts in their present precision; see `imprint.checkpoint`."""
        modules = {part: getattr(self, part) for part in ("encoder", "adapter", "unet", "vae")}
        save_checkpoint(path, Checkpoint(self.model_config, module_tensors(modules)))

    @classmethod
    def load_lora_into_text_encoder(cls, *_args, **_kwargs) -> None:
        """There is none."""

    def save_pretrained(self, *_args, **_kwargs) -> None:
        """An Imprint model is one file, not a folder."""
        raise ImprintError("an Imprint model is saved as one file; call save_checkpoint('name.safetensors') instead")

    def encode_object(
        self, images: Picture | Sequence[Picture], masks: Picture | Sequence[Picture] | None = None
    ) -> torch.Tensor:
        """One or several views of one object -> (1, V, N, C) encoder tokens.

        images: Pillow pictures or (1, 3, H, W) tensors in [0, 1]; views may differ in size. masks: as many, Pillow or
        (1, H, W); without them each picture's alpha channel is its mask. Raises `ImprintError` for an empty mask, sizes
        or counts that differ, or a picture without mask and alpha.
        """
        return self._encode_views(*_views(images, masks))

    def _encode_views(self, pictures: list[torch.Tensor], masks: list[torch.Tensor]) -> torch.Tensor:
        config = self.model_config.encoder
        require_views(len(pictures), config)
        pixels = torch.cat([prepare_object(*view, config)[0] for view in zip(pictures, masks)])
        return self.encoder(pixels.to(self._execution_device, self.encoder.dtype))[None]

    @torch.no_grad()
    def __call__(
        self,
        object_image: Picture | Sequence[Picture],
        object_mask: Picture | Sequence[Picture] | None,
        background: Picture,
        mask: Picture,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        *,
        num_results: int = 1,
        context: float | None = None,
        resolution: int | None = None,
        feather_pixels: int | None = None,
        feather_inwards: int = 0,
        blend_mask: Picture | None = None,
        blend_method: str = "feather",
        colour_match: float = 0.0,
        matte: bool = True,
        detail: float = 1.0,
        latents: torch.Tensor | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImprintPipelineOutput | tuple:
        """Composite the object into the background's hole.

        Args:
            object_image, object_mask: the object, or a list of several views of it; see `encode_object`.
            background: Pillow picture or (1, 3, H, W) tensor in [0, 1].
            mask: the hole, Pillow or (1, H, W), white = 1, of the background's size; its shape steers the pose.
            num_inference_steps, guidance_scale: by default the checkpoint's recommendation; guidance 1 switches it off.
            generator: for reproducible noise; a CPU generator gives the same picture on every device.
            num_results: composites to make at once.
            context: side of the model's square crop over the longer side of the hole's box; by default the checkpoint's.
            resolution: side at which the model sees that crop, by default what it was trained at.
            feather_pixels: width of the soft edge outside the hole, in pixels of the background; by default
                `FEATHER` pixels of the crop. Beyond it the background stays bit for bit.
            feather_inwards: width of the soft edge within the hole, in pixels of the background.
            blend_mask: where to put what was generated, if not in `mask`; like `mask`, and at most the crop is put back.
            blend_method: how the soft edge mixes, one of `blending.BLENDS`.
            colour_match: from 0 to 1, how far the crop's colours are moved to the background's around the hole.
            matte: keep the background, bit for bit, wherever the model sees neither the object nor its shadow, also within
                the hole (see `imprint.matte`); without effect for checkpoints that predict no matte.
            detail: from 0 to 1, how far the object's own photo, in the light of what was generated, takes its place where
                it shows the same (see `imprint.detail`); without effect for checkpoints that predict no matte.
            latents: (num_results, C, h, w) standard normal noise to start from, instead of drawing it.
            eta: for schedulers that take it (DDIM).
            output_type: "pil", "pt" or "latent".
            callback_on_step_end: called as in every diffusers pipeline; it may change the latents it is given.

        Raises:
            ImprintError: for input that cannot be used; the message says what to change.
        """
        config, device = self.model_config, self._execution_device
        steps = config.sampling.steps if num_inference_steps is None else num_inference_steps
        guidance = config.sampling.guidance_scale if guidance_scale is None else guidance_scale
        if steps < 1 or num_results < 1:
            raise ImprintError(f"got {steps} steps and {num_results} results; both must be 1 or more")
        if output_type not in ("pil", "pt", "latent"):
            raise ImprintError(f"output type is {output_type!r}; it must be 'pil', 'pt' or 'latent'")

        if not (math.isfinite(guidance) and 0 <= colour_match <= 1 and 0 <= detail <= 1):
            raise ImprintError(
                f"guidance is {guidance:g}, colour match {colour_match:g} and detail {detail:g}; the first must be finite, the "
                "others from 0 to 1"
            )
        if min(feather_pixels or 0, feather_inwards) < 0 or blend_method not in BLENDS:
            raise ImprintError(
                f"feather is {feather_pixels} pixels outwards and {feather_inwards} inwards, which must be 0 or more, and "
                f"the blend method {blend_method!r}, which must be one of {', '.join(BLENDS)}"
            )
        height, width = _size(background)
        hole = Hole.find(
            _fitting(mask, "mask", height, width)[0],
            config.resolution if resolution is None else resolution,
            config.sampling.context if context is None else context,
            config.multiple,
            config.latent.downscale,
        )
        if hole.enlarged:
            _log.warning(
                "the hole of %dx%d pixels is too small to generate in: enlarged around its centre to %dx%d",
                *hole.drawn[::-1],
                *hole.size[::-1],
            )
        placement = hole.placement
        # All that follows needs the square and one pixel around it, where a hole that fills the square has its edge.
        rows, columns = area = tuple(
            slice(max(0, part.start - 1), min(length, part.stop + 1))
            for part, length in zip(placement.area, (height, width))
        )
        local, frame = placement.within(area), _part(background, area)
        drawn = torch.zeros(1, *frame.shape[2:])
        drawn[(0, *local.area)] = hole.mask
        blend = drawn if blend_mask is None else _fitting(blend_mask, "blend mask", height, width)[:, rows, columns]
        views = _views(object_image, object_mask)
        tokens = self._encode_views(*views)

        scene, inside = local.extract(frame), local.extract_mask(drawn)
        latent_mask = latent_hole(inside, config.latent.downscale).to(device)
        painted = paint_hole(scene.to(device), latent_mask, config.hole_value)
        clean = encode(self.vae, painted.to(self.vae.dtype), config.latent).float()
        # The latents stay in fp32 whatever the models' precision: the first sigma of a zero-terminal-SNR schedule is 4,518.
        shape = (num_results, *clean.shape[1:])
        noise = randn_tensor(shape, generator, device, torch.float32) if latents is None else latents.to(device).float()
        if tuple(noise.shape) != shape:
            raise ImprintError(f"the given latents have shape {tuple(noise.shape)}; expected {shape}")
        latents, logits = self.denoise(
            self.adapter(tokens).expand(num_results, -1, -1),
            clean.expand(shape),
            latent_mask.expand(num_results, -1, -1, -1),
            noise,
            steps,
            guidance,
            {"eta": eta, "generator": generator},
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )

        maps = None
        if output_type == "latent":
            images = latents
        else:
            crops = decode(self.vae, latents.to(self.vae.dtype), config.latent).float().cpu()
            if colour_match:
                generated = hole_pixels(latent_mask, config.latent.downscale)[:, 0].cpu()
                crops = match_colour(
                    crops, scene.expand_as(crops), generated.expand(num_results, -1, -1), strength=colour_match
                )
            if feather_pixels is None:
                feather_pixels = round(FEATHER * placement.side / placement.resolution)
            frames = frame.expand(num_results, -1, -1, -1)
            generated, placed = local.insert(frames, crops), None
            if config.matte and (matte or detail):
                maps = [each.cpu() for each in matte_pixels(logits, latent_mask, config)]
                alpha, shadow = (local.insert(torch.zeros_like(frames[:, :1]), each[:, None])[:, 0] for each in maps)
                generated, alpha = restore_detail(generated, alpha, *views, detail)
                maps, placed = (maps, (alpha, shadow)) if matte else (None, None)
            parts = blend_pictures(
                frames,
                generated,
                blend.expand(num_results, -1, -1),
                feather_inwards,
                feather_pixels,
                blend_method,
                placed,
            )
            # Everything beyond stays as it was.
            if output_type == "pil":
                images = [_like(background, part, (columns.start, rows.start)) for part in parts]
            else:
                images = _picture(background).repeat(num_results, 1, 1, 1)
                images[:, :, rows, columns] = parts
        self.maybe_free_model_hooks()
        output = ImprintPipelineOutput(images, placement, *(maps or ()))
        return output if return_dict else output.to_tuple()

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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sampling loop: (B, C, h, w) standard normal noise -> latents, the background's own outside the hole, and the
        matte's logits (B, 2 * matte**2, h, w) of the last evaluation, without guidance; see `imprint.matte`.

        context (B, N, C') from the adapter; background (B, C, h, w) latents with the hole painted grey; hole (B, 1, h, w)
        of 0 and 1; the rest as in `__call__`. IMPRINT's blend (arXiv 2403.10701, figure 2) with classifier-free guidance
        (arXiv 2207.12598, equation 6) against the null embedding.
        """
        config = self.model_config
        guidance = config.sampling.guidance_scale if guidance is None else guidance
        contexts = context if guidance == 1 else torch.cat([self.adapter.null_context(context), context])
        contexts = contexts.to(self.unet.dtype)
        self.scheduler.set_timesteps(config.sampling.steps if steps is None else steps, device=noise.device)
        if config.background == "blend":
            # z_T as in training and in ComfyUI: even at sigma 4,518 it holds a trace of the picture, here the background's.
            latents = self.scheduler.add_noise(background, noise, self.scheduler.timesteps[:1])
        else:  # noise alone, and of variance 1 at the UNet: in latent diffusion's samplers and in ComfyUI
            latents = noise / self.scheduler.scale_model_input(torch.ones_like(noise), self.scheduler.timesteps[0])
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {name: value for name, value in (scheduler_arguments or {}).items() if name in accepted}
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress:
            for index, timestep in enumerate(self.scheduler.timesteps):
                seen = unet_input(self.scheduler.scale_model_input(latents, timestep), background, hole, config)
                seen = seen.repeat(len(contexts) // len(seen), 1, 1, 1).to(self.unet.dtype)
                prediction, logits = split_matte(self.unet(seen, timestep, contexts).sample.float(), config)
                if guidance != 1:
                    without, with_object = prediction.chunk(2)
                    prediction = torch.lerp(without, with_object, guidance)
                    _, logits = logits.chunk(2)
                latents = self.scheduler.step(prediction, timestep, latents, **extra).prev_sample
                if callback is not None:
                    given = {"latents": latents} if "latents" in callback_inputs else {}
                    latents = callback(self, index, timestep, given).get("latents", latents)
                progress.update()
        return torch.where(hole > 0, latents, background), logits


def build_modules(config: ImprintConfig, with_vae: bool = True) -> dict[str, torch.nn.Module]:
    """The parts of a model with fresh weights, by the names of `checkpoint.PARTS`."""
    modules = {
        "encoder": IDEncoder(config.encoder),
        "adapter": ContentAdapter(config.adapter),
        "unet": build_unet(config.unet, config.resolution // config.latent.downscale),
    }
    if with_vae:
        modules["vae"] = build_autoencoder(config.latent)
    return modules


def module_tensors(modules: dict[str, torch.nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    """The modules' tensors as a checkpoint names them."""
    return {
        part: module.hub_state_dict() if isinstance(module, IDEncoder) else module.state_dict()
        for part, module in modules.items()
    }


def load_modules(modules: dict[str, torch.nn.Module], checkpoint: Checkpoint) -> None:
    """Strictly copy the checkpoint's tensors into the modules."""
    for part, expected in module_tensors(modules).items():
        tensors = checkpoint.check(part, {name: tensor.shape for name, tensor in expected.items()})
        module = modules[part]
        load = module.load_hub_state_dict if isinstance(module, IDEncoder) else module.load_state_dict
        load(tensors)


def _views(
    images: Picture | Sequence[Picture], masks: Picture | Sequence[Picture] | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pictures (1, 3, H, W) and masks (1, H, W) of an object, as `ImprintPipeline.encode_object` takes them."""
    images = _listed(images)
    masks = [None] * len(images) if masks is None else _listed(masks)
    require_masks(images, masks)
    return (
        [_picture(image) for image in images],
        [_mask(mask) if mask is not None else _alpha(image) for image, mask in zip(images, masks)],
    )


def _listed(value):
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _picture(image: Picture) -> torch.Tensor:
    if isinstance(image, Image.Image):
        return image_to_tensor(image)
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ImprintError(f"a picture has shape {tuple(image.shape)}; expected (1, 3, H, W) or a Pillow picture")
    return image.float().cpu()


def _mask(mask: Picture) -> torch.Tensor:
    if isinstance(mask, Image.Image):
        return mask_to_tensor(mask)
    if mask.ndim != 3 or len(mask) != 1:
        raise ImprintError(f"a mask has shape {tuple(mask.shape)}; expected (1, H, W) or a Pillow picture")
    return mask.float().cpu()


def _size(image: Picture) -> tuple[int, int]:
    """Height and width."""
    return image.size[::-1] if isinstance(image, Image.Image) else tuple(_picture(image).shape[2:])


def _fitting(mask: Picture, name: str, height: int, width: int) -> torch.Tensor:
    """(1, H, W) of the background's size."""
    values = _mask(mask)
    if tuple(values.shape[1:]) != (height, width):
        raise ImprintError(
            f"the background is {width}x{height}, but its {name} {values.shape[2]}x{values.shape[1]}; "
            "make them the same size"
        )
    return values


def _part(image: Picture, area: tuple[slice, slice]) -> torch.Tensor:
    """Rows and columns of a picture -> (1, 3, h, w); of a Pillow picture the rest is not converted."""
    rows, columns = area
    if isinstance(image, Image.Image):
        return _picture(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
    return _picture(image)[:, :, rows, columns]


def _alpha(image: Picture) -> torch.Tensor:
    alpha = alpha_to_tensor(image) if isinstance(image, Image.Image) else None
    if alpha is None:
        raise ImprintError("the object's picture has no mask and no transparency; give its mask, white on the object")
    return alpha


def _like(background: Picture, part: torch.Tensor, corner: tuple[int, int]) -> Image.Image:
    """The background as an RGB picture with (3, h, w) put at a corner (left, top), and with its own transparency."""
    own = isinstance(background, Image.Image)
    image = to_rgb(background) if own else tensor_to_image(background[0])
    image.paste(tensor_to_image(part), corner)
    if own and background.has_transparency_data:
        image.putalpha(background.convert("RGBA").getchannel("A"))
    return image
