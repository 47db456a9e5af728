"""Runs jobs: reads a job's pictures, puts its objects in one after another, and writes the picture and its layers.

Torch and diffusers are imported only where they are needed, so that the command line responds at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ImprintError
from .job_keys import placing_arguments
from .job_settings import JobSettings
from .jobs import Job, JobObject

if TYPE_CHECKING:
    import torch

    from .lazy import LazyPipeline
    from .pipeline import ImprintPipelineOutput
    from .placed import PlacedComposite

_LAYERS = ("shadow", "object", "light")
"""The names of `Lit.layers`, from bottom to top."""


@dataclass(frozen=True)
class Insertion:
    """One object to be put into one area."""

    object: JobObject
    pictures: dict[str, Any]
    """The object's, the background and the mask of this area, by the names of the pipeline's arguments; the mask is as
    `as_mask` gives it, None without one."""


@contextmanager
def _with_enough_memory() -> Iterator[None]:
    """Turn a lack of memory into an `ImprintError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", reason):
            raise
        raise ImprintError(
            f"there is not enough memory ({reason or 'none is left'}); give a smaller background, or a smaller "
            "--resolution"
        ) from error


@_with_enough_memory()
def read_insertions(job: Job, settings: JobSettings) -> list[Insertion]:
    """What makes the job's picture, in the order of insertion: from back to front, each object's areas in turn.

    With `cutout` auto, a photo with neither mask nor transparency gets a mask. Raises `ImprintError` for input that
    cannot be used, and for layers that cannot be made or written.
    """
    pictures = job.read()
    areas = [_areas(each, own, settings.each_area) for each, own in zip(job.objects, pictures)]
    if settings.layers:
        _require_layers(job, areas, settings)
    if settings.cutout == "auto":
        from .cutout import mask_of

        for own in pictures:
            own["object_mask"] = own["object_mask"] or [mask_of(photo) for photo in own["object_image"]]
    return [
        Insertion(each, own | {"mask": mask})
        for each, own, masks in zip(job.objects, pictures, areas)
        for mask in masks
    ]


@_with_enough_memory()
def run_job(job: Job, insertions: Sequence[Insertion], pipeline: LazyPipeline, settings: JobSettings) -> None:
    """Make the picture of a job and write it with its layers; insertions: from `read_insertions`."""
    from .images import as_layer, tensor_to_image
    from .saving import save_computed

    background = insertions[0].pictures["background"]
    layers = []
    for each in insertions:  # each object goes into the picture with those before it
        made = _inserted(each, background, pipeline, settings)
        background = made.images[0]
        if settings.layers:
            found = made.lit.layers()
            layers += [(tensor_to_image(found[name][0]), made.lit.area) for name in _LAYERS]
    if settings.layers:  # all at the end: an error in a later object leaves no layers behind
        for (layer, area), path in zip(layers, _layer_files(job, len(insertions), settings)):
            save_computed(as_layer(layer, background, area), path)
    save_computed(background, job.out)


def _inserted(
    insertion: Insertion, background: Any, pipeline: LazyPipeline, settings: JobSettings
) -> ImprintPipelineOutput | PlacedComposite:
    """The background with one more object."""
    import torch

    from .placed import composite_placed

    given = insertion.pictures | placing_arguments(insertion.object.placing, insertion.pictures)
    given["background"] = background
    if not insertion.object.is_drawn(insertion.pictures["mask"]):
        return composite_placed(pipeline.light, **given)
    return pipeline(
        **given,
        num_inference_steps=settings.sampling_steps,
        guidance_scale=settings.guidance,
        context=settings.context,
        resolution=settings.resolution,
        feather_pixels=settings.feather,
        feather_inwards=settings.feather_in,
        blend_method=settings.blend,
        generator=torch.Generator().manual_seed(insertion.object.seed),
        colour_match=settings.colour_match,
        matte=settings.matte,
        detail=settings.detail,
    )


def _areas(subject: JobObject, pictures: dict[str, Any], each_area: bool) -> list[torch.Tensor | None]:
    """The masks (1, H, W) that a job's object goes into, one after another: its own, None without one or, by
    --each-area, each label or area.
    """
    from .hole import separate_areas
    from .mask_reading import as_mask, label_masks

    if not each_area:
        return [as_mask(pictures["mask"]) if subject.mask else None]
    if subject.blend_mask or not subject.mask:
        raise ImprintError(
            "with --each-area every area of the mask gets an object, without a blend mask; give a mask and no blend "
            "mask, or leave --each-area out"
        )
    if labels := label_masks(pictures["mask"]):
        return labels
    mask = as_mask(pictures["mask"])
    return [area[None] for area in separate_areas(mask[0])] or [mask]


def _layer_files(job: Job, insertions: int, settings: JobSettings) -> list[Path]:
    """The layers' names, in the order of stacking, of so many insertions; each line of a jobs file has a folder."""
    folder = settings.layers / job.out.stem if settings.many else settings.layers
    width = len(str(insertions))
    prefixes = [f"{index:0{width}}-" for index in range(1, insertions + 1)] if insertions > 1 else [""]
    return [folder / f"{prefix}{number}-{name}.png" for prefix in prefixes for number, name in enumerate(_LAYERS, 1)]


def _require_layers(job: Job, areas: Sequence[Sequence[torch.Tensor | None]], settings: JobSettings) -> None:
    """Raise `ImprintError` unless all objects will be placed, and their layers can be written without overwriting.

    areas: for each object the masks of its areas.
    """
    from .saving import require_writable

    for each, masks in zip(job.objects, areas):
        # An empty mask is left to the error about it, later.
        if any((mask is None or bool(mask.any())) and each.is_drawn(mask) for mask in masks):
            raise ImprintError(
                f"{each.views[0]} would be drawn by the model, together with its light; only a placed object has "
                "layers: draw a box, or give placed, at or align, without fit and change, or leave --layers out"
            )
    for path in _layer_files(job, sum(map(len, areas)), settings):
        require_writable(path)
        if os.path.realpath(path) == os.path.realpath(job.out):
            raise ImprintError(f"{path} would be both a layer and the picture; give the picture another name")
        if os.path.lexists(path) and not settings.overwrite:
            raise ImprintError(f"{path} exists already and would be overwritten; give another --layers, or --overwrite")
