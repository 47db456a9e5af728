"""How a composite is made from an object's photo and a background with a mask.

With a box, an alignment, a place or a placed picture, the object's own photo is kept:

    place_object    the photo -> the object in its place in the frame, with a clean edge
    finish_placed   -> relit by a small network, with its shadow -> over the background

In an outline, or with `fit="fill"`, `fit="outline"` or `change`, the model draws the object, in the order of IMPRINT's
figure 2 (arXiv 2403.10701):

    prepare         the object -> encoder -> adapter -> context;  the background -> crop -> hole painted grey -> latents
    denoise         noise -> latents of the crop, and the matte
    finish          latents -> drawing -> detail -> over the background, on which the light network casts its shadow

`place_object` is a function of `imprint.place`; all others are methods of `ImprintPipeline` that can be called on their
own. `prepare` and `denoise` are in `imprint.phases`, `finish` and `finish_placed` in `imprint.finishing`, and the
model's loading and saving in `imprint.model_pipeline`. `imprint.placed` makes composites of placed objects without a
pipeline, and so without diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from .blending import Finish
from .changes import require_change
from .directions import require_strengths
from .errors import ImprintError, require_number, require_one_of
from .finishing import Finishing, ImprintPipelineOutput
from .hole import check_crop
from .images import Picture, picture_size
from .noise import check_sampling
from .place import Align, Place, is_drawn, place_object
from .placed import read_object_and_hole

_OUTPUT_TYPES = ("pil", "pt", "latent")


class ImprintPipeline(Finishing):
    """Put an object into a background (IMPRINT, arXiv 2403.10701).

    Build it with `from_checkpoint`. Works with any diffusers scheduler on CPU, CUDA and MPS in fp32, fp16 and bf16, and
    with LoRA files for its UNet like every Stable Diffusion pipeline (`load_lora_weights`; needs peft).

    The scheduler keeps a drawing's state, so threads that draw at the same time need a pipeline each; they can share
    its modules: `ImprintPipeline(**pipe.components | {"scheduler": copy.deepcopy(pipe.scheduler)})`.
    """

    @torch.no_grad()
    def __call__(
        self,
        object_image: Picture | Sequence[Picture],
        object_mask: Picture | Sequence[Picture] | None,
        background: Picture,
        mask: Picture | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        *,
        placed: bool = False,
        place: Place | None = None,
        align: Align | None = None,
        fit: str = "contain",
        rotate: float | Literal["auto"] = 0.0,
        flip: bool = False,
        light: float = 1.0,
        shadow: float = 1.0,
        softness: float = 0.0,
        light_from: str | float = "auto",
        change: str | None = None,
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
        """Put the object into the background.

        A box keeps the object's own pose and proportions: its photo is put there, pixel for pixel, and only light,
        shadow and edge change. The same holds for `placed`, `place` and `align`. With an outline, `fit="fill"`,
        `fit="outline"` or `change` the model draws the object.

        Args:
            object_image, object_mask, background, mask, context, resolution, blend_mask: see `prepare`.
            placed, place, align, fit, rotate, flip: see `place_object`; `placed` and `place` exclude a mask, and
                without one `align` refers to the whole background. With "outline" the model draws the placed object in
                its outline; for a model that sees a sketch, that is where the sketch lies.
            light, shadow, softness, light_from: see `relight`; `light` applies to placed objects, since a drawn one's
                light is part of the drawing.
            change: what the model may change of the object, for models with this choice: "keep" (nothing), "light",
                "pose" or "both", the default for drawing. With "keep" and "light" it draws the object where it was
                placed, instead of `relight`; with the others in the whole box of the mask.
            feather_pixels, feather_inwards, blend_method, colour_match, matte, detail: see `Finish`.
            num_inference_steps, guidance_scale: by default the checkpoint's recommendation; guidance 1 turns it off.
            generator: for reproducible noise, one or a list with one per result; a CPU generator gives the same picture
                on every device.
            num_results: number of composites to make at once.
            latents: (num_results, C, h, w) standard normal noise to start from, instead of random noise.
            eta: for schedulers that use it (DDIM).
            output_type: "pil", "pt" or "latent".
            callback_on_step_end: called as in every diffusers pipeline; it may change the latents.

        Raises:
            ImprintError: for input that cannot be used; the message says what to change.
        """
        config = self.model_config
        require_change(change, config)
        require_strengths(light, shadow, softness, light_from)
        settings = Finish(
            feather_pixels=feather_pixels,
            feather_inwards=feather_inwards,
            blend_method=blend_method,
            colour_match=colour_match,
            matte=matte,
            detail=detail,
            shadow=shadow,
            softness=softness,
            light_from=light_from,
        )
        steps = config.sampling.steps if num_inference_steps is None else num_inference_steps
        check_sampling(config.noise, steps, guidance_scale, eta)
        require_number("num_results", num_results, 1, whole=True)
        check_crop(*config.crop_size(resolution, context), config.multiple)
        require_one_of("output type", output_type, _OUTPUT_TYPES)
        _check_generator(generator, num_results)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ImprintError(
                f"callback_on_step_end_tensor_inputs has to be in {self._callback_tensor_inputs}, but found "
                f"{sorted(unknown)}"
            )
        views, hole = read_object_and_hole(object_image, object_mask, background, mask)
        area = None if hole is None else hole[0]
        model_turns_it = hole is not None and change in ("pose", "both")
        put = place_object(
            views,
            picture_size(background),
            area,
            placed=placed,
            place=place,
            align=align,
            fit="fill" if model_turns_it else fit,
            rotate=rotate,
            flip=flip,
        )
        if not is_drawn(area, fit, change):
            output = self.finish_placed(
                background, put, light, shadow, softness, light_from, blend_mask, num_results, output_type
            )
            self.maybe_free_model_hooks()
            return output if return_dict else output.to_tuple()

        if put is not None:
            views, hole = put.view, put.outline if fit == "outline" else put.hole
        scene = self.prepare(views, None, background, hole, blend_mask, context, resolution)
        shape = (num_results, *scene.latents.shape[1:])
        latents, logits = self.denoise(
            context=scene.context.expand(num_results, -1, -1),
            background=scene.latents.expand(shape),
            hole=scene.hole.expand(num_results, -1, -1, -1),
            noise=_noise(shape, latents, generator, scene.latents.device),
            steps=steps,
            guidance=guidance_scale,
            scheduler_arguments={"eta": eta, "generator": generator},
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
            local=None if scene.local is None else scene.local.expand(num_results, -1, -1),
            change=change,
            hint=scene.hint,
        )
        output = self.finish(scene, latents, logits, settings, output_type)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()


def _check_generator(generator: torch.Generator | list[torch.Generator] | None, num_results: int) -> None:
    generators = generator if isinstance(generator, list) else [generator]
    if not all(each is None or isinstance(each, torch.Generator) for each in generators):
        raise ImprintError(f"the generator is {generator!r}; give a torch.Generator, or a list of them")
    if isinstance(generator, list) and len(generator) not in (1, num_results):
        raise ImprintError(f"got {len(generator)} generators for {num_results} results; give one, or one per result")


def _noise(
    shape: tuple[int, ...],
    latents: torch.Tensor | None,
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
) -> torch.Tensor:
    """The given latents, or random ones, of this shape on the device: in fp32 whatever the models' precision, since
    with zero terminal SNR the first sigma is 4,518.
    """
    if latents is None:
        return randn_tensor(shape, generator, device, torch.float32)
    if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != shape:
        found = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ImprintError(f"the given latents are {found}; expected a tensor of shape {shape}")
    return latents.to(device).float()
