"""The command `imprint`: a demo, one composite, many, a look into a checkpoint, and converting others' weights.

Bad input ends with one sentence on stderr and exit code 2. Torch and diffusers are imported only by the commands that
need them, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from . import __version__
from .errors import ImprintError, print_anything
from .files import same_file
from .jobs import Job, read_jobs
from .options import (
    FAST_STEPS,
    finish_settings,
    given_placing,
    model_settings,
    placing_arguments,
    placing_settings,
    with_negative_points,
)

if TYPE_CHECKING:
    from .pipeline import ImprintPipeline

SAMPLES = Path(__file__).parent / "assets" / "samples"
"""The demo's pictures, duck.webp, room.jpg and box.png, and others."""
DEMO_LIGHT = "above"
"""Where most of the light in room.jpg comes from."""

_LAYERS = ("shadow", "object", "light")
"""The names of `Lit.layers`, from below."""

EXIT_BAD_INPUT = 2  # as argparse's own
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C


def main(argv: list[str] | None = None) -> int:
    """Run a command line, by default the process's own; returns the exit code (argparse leaves with 2 on its own)."""
    print_anything()
    options = _parser().parse_args(with_negative_points(argv))
    # Read when torch is imported: threads that wait give their core away. Where other programs use the cores too,
    # spinning makes a composite five times slower; where none does, sleeping costs a few percent.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return options.run(options)
    except ImprintError as error:
        _say(f"imprint: error: {error}", sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _say(line: str, stream: TextIO | None = None) -> OSError | ValueError | None:
    """Print a line, by default to stdout. What was made is on the disk: a closed pipe or a full disk there is no
    failure, but given back.
    """
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):  # Python flushes once more at the end, and would fail then
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error


def demo(options: argparse.Namespace) -> int:
    """The packaged pictures."""
    return _one(
        Job(
            objects=(SAMPLES / "duck.webp",),
            object_masks=(),
            background=SAMPLES / "room.jpg",
            mask=SAMPLES / "box.png",
            out=options.out,
            seed=options.seed,
            placing={"light_from": DEMO_LIGHT} | given_placing(options),
        ),
        options,
    )


def composite(options: argparse.Namespace) -> int:
    """One composite from files."""
    return _one(
        Job(
            objects=tuple(options.object),
            object_masks=tuple(options.object_mask),
            background=options.background,
            mask=options.mask,
            out=options.out,
            seed=options.seed,
            blend_mask=options.blend_mask,
            placing=given_placing(options),
        ),
        options,
    )


def _one(job: Job, options: argparse.Namespace) -> int:
    began = time.monotonic()
    if not options.overwrite:
        job.require_new()
    with _collector_paused():
        steps = _read(job, options)
        pipeline = _pipeline(options)
    _make(job, steps, pipeline, options)
    _say(f"{job.out.resolve()} ({time.monotonic() - began:.1f} s)")
    return 0


def batch(options: argparse.Namespace) -> int:
    """One composite per line; goes on past a bad line, and past what is written already."""
    from tqdm import tqdm

    def report(number: int, error: ImprintError) -> None:
        tqdm.write(f"imprint: error: {options.jobs}, line {number}: {error}", file=sys.stderr)

    jobs, errors = read_jobs(
        options.jobs, options.seed, options.overwrite, given_placing(options), bool(options.layers)
    )
    for number, error in errors.items():
        report(number, error)
    waiting = {number: job for number, job in jobs.items() if options.overwrite or not os.path.isfile(job.out)}
    failed = len(errors)
    if waiting:
        with _collector_paused():
            pipeline = _pipeline(options)
        pipeline.set_progress_bar_config(disable=True)
        for number, job in tqdm(waiting.items(), unit="picture"):
            try:
                _make(job, _read(job, options), pipeline, options)
            except ImprintError as error:
                failed += 1
                report(number, error)
    written = len(waiting) - (failed - len(errors))
    _say(f"{written} written, {len(jobs) - len(waiting)} skipped, {failed} failed")
    return EXIT_BAD_INPUT if failed else 0


def info(options: argparse.Namespace) -> int:
    """What is in a checkpoint, once its checksum has been found right."""
    from .description import describe

    error = _say(describe(options.file, options.json))
    if error is not None and not isinstance(error, BrokenPipeError):  # which `imprint info FILE | head` is
        raise ImprintError(f"what is in {options.file} cannot be printed ({error}); print it elsewhere")
    return 0


def convert(options: argparse.Namespace) -> int:
    """A third-party model's released weights as one of our checkpoints."""
    from functools import partial

    from tqdm import tqdm

    from .files import require_writable
    from .third_party import convert as write_converted
    from .third_party import kind_of

    if options.out.suffix != ".safetensors":
        raise ImprintError(f"{options.out}: a checkpoint is a .safetensors file; end the name so")
    if same_file(options.file, options.out):
        raise ImprintError(f"{options.out} is the file to convert, and would be lost; give another name to write")
    require_writable(options.out)
    began = time.monotonic()
    with _needs_diffusers():
        config = write_converted(options.file, options.out, options.kind, partial(tqdm, unit="tensor"))
    _say(f"{options.out.resolve()} ({kind_of(config)}, fp16, {time.monotonic() - began:.1f} s)")
    return 0


def _pipeline(options: argparse.Namespace) -> ImprintPipeline:
    import torch

    from .checkpoint import SHIPPED

    with _needs_diffusers():
        from .pipeline import ImprintPipeline

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = options.device
    if device == "auto":
        device = next(name for name, found in available.items() if found)
    if not available[device]:
        raise ImprintError(
            f"there is no '{device}' device that torch {torch.__version__} can use; give --device auto or cpu"
        )
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[options.dtype]
    pipeline = ImprintPipeline.from_checkpoint(options.checkpoint or SHIPPED, torch_dtype=dtype).to(device)
    if options.fast:
        from diffusers import DPMSolverMultistepScheduler

        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    if device == "cpu":  # a quarter faster there; on MPS several operations have been wrong in this layout
        for module in (pipeline.unet, pipeline.vae):
            torch.nn.Module.to(module, memory_format=torch.channels_last)
    return pipeline


@contextmanager
def _with_enough_memory() -> Iterator[None]:
    """Where there is not, an `ImprintError` says so."""
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
def _read(job: Job, options: argparse.Namespace) -> list[tuple[Job, dict[str, Any]]]:
    """The steps that make the job's picture: an object, and its pictures with the mask of one area.

    With --cutout auto, an object's photo with neither mask nor transparency gets a mask. Raises `ImprintError` for what
    cannot be used, and for layers that cannot be made or written.
    """
    pictures = job.read()
    areas = [_areas(part, own, options.each_area) for part, own in zip(job.each, pictures)]
    if options.layers:
        _require_layers(job, areas, options)
    if options.cutout == "auto":
        from .cutout import mask_of

        for own in pictures:
            own["object_mask"] = own["object_mask"] or [mask_of(photo) for photo in own["object_image"]]
    return [(part, own | {"mask": mask}) for part, own, masks in zip(job.each, pictures, areas) for mask in masks]


@_with_enough_memory()
def _make(
    job: Job, steps: Sequence[tuple[Job, dict[str, Any]]], pipeline: ImprintPipeline, options: argparse.Namespace
) -> None:
    """steps: as `_read` gives them."""
    import torch

    from .images import as_layer, save_computed, tensor_to_image

    background = steps[0][1]["background"]
    layers = []
    for part, own in steps:  # each into the picture with the ones before it
        made = pipeline(
            **own | {"background": background},
            num_inference_steps=FAST_STEPS if options.fast and options.steps is None else options.steps,
            guidance_scale=options.guidance,
            context=options.context,
            resolution=options.resolution,
            feather_pixels=options.feather,
            feather_inwards=options.feather_in,
            blend_method=options.blend,
            generator=torch.Generator().manual_seed(part.seed),
            colour_match=options.colour_match,
            matte=options.matte,
            detail=options.detail,
            **placing_arguments(part.placing, own),
        )
        background = made.images[0]
        if options.layers:
            found = made.lit.layers()
            layers += [(tensor_to_image(found[name][0]), made.lit.area) for name in _LAYERS]
    if options.layers:  # all at once: after an error in a later object none is left to be in the way
        for (layer, area), path in zip(layers, _layer_files(job, len(steps), options)):
            save_computed(as_layer(layer, background, area), path)
    save_computed(background, job.out)


def _areas(job: Job, pictures: dict[str, Any], each_area: bool) -> list[Any]:
    """The masks into which a job's object goes, one after another: its own or, by --each-area, each label or area of
    it.
    """
    from .hole import separate_areas
    from .images import as_mask, label_masks

    if not each_area:
        return [pictures.get("mask")]
    if job.blend_mask or not job.mask:
        raise ImprintError(
            "each area of a mask takes an object of its own, without a blend mask; give a mask and no blend mask, or "
            "leave --each-area out"
        )
    mask = pictures["mask"]
    if labels := label_masks(mask):
        return labels
    return [area[None] for area in separate_areas(as_mask(mask)[0])] or [mask]


def _layer_files(job: Job, steps: int, options: argparse.Namespace) -> list[Path]:
    """The layers' names, in whose order they are stacked; those of a jobs file's line in a folder of their own."""
    folder = options.layers / job.out.stem if options.many else options.layers
    width = len(str(steps))
    before = [f"{step:0{width}}-" for step in range(1, steps + 1)] if steps > 1 else [""]
    return [folder / f"{step}{number}-{name}.png" for step in before for number, name in enumerate(_LAYERS, 1)]


def _require_layers(job: Job, areas: Sequence[Sequence[Any]], options: argparse.Namespace) -> None:
    """Raise `ImprintError` unless all objects will be placed, and their layers can be written without a loss.

    areas: for each object the masks of its areas.
    """
    from .images import as_mask, require_writable
    from .place import is_drawn

    for part, masks in zip(job.each, areas):
        for hole in (as_mask(mask)[0] for mask in masks if part.mask):
            if hole.any() and is_drawn(hole, part.placing.get("fit", "contain")):
                raise ImprintError(
                    f"{part.objects[0]} would be drawn by the model, in one with its light; layers are of an object "
                    "that is placed: draw a box without fit fill, or give placed, at or align, or leave --layers out"
                )
    for path in _layer_files(job, sum(map(len, areas)), options):
        require_writable(path)
        if os.path.realpath(path) == os.path.realpath(job.out):
            raise ImprintError(f"{path} is a layer and also what the picture is written as; give another 'out'")
        if os.path.lexists(path) and not options.overwrite:
            raise ImprintError(f"{path} is there already, and would be lost; give another --layers, or --overwrite")


@contextmanager
def _needs_diffusers() -> Iterator[None]:
    """For what imports it: the nodes do without, so that it is an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImprintError(f"the package '{error.name}' is missing; pip install 'imprint[pipeline]'") from error


@contextmanager
def _collector_paused() -> Iterator[None]:
    """For importing and loading, which make a million objects that stay: walking them costs seconds, also at exit."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _parser() -> argparse.ArgumentParser:
    making = (model_settings(), placing_settings(), finish_settings())
    parser = argparse.ArgumentParser(
        prog="imprint",
        description="Put an object's photo into a background photo so that it belongs there.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"imprint {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        run: Callable[[argparse.Namespace], int],
        name: str,
        help: str,
        parents: Sequence[argparse.ArgumentParser] = making,
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, parents=parents, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    added = command(demo, "demo", "make a composite of the pictures that come with the package")
    added.add_argument("--out", type=Path, default=Path("imprint-demo.png"), help="default: %(default)s in this folder")
    added.add_argument("--overwrite", action="store_true", help="also over layers that are there already")
    added.set_defaults(many=False, cutout="off")

    added = one = command(composite, "composite", "put an object into a background")
    added.add_argument("--object", type=Path, action="append", required=True, help="its photo; again for further views")
    added.add_argument(
        "--object-mask",
        type=Path,
        action="append",
        default=[],
        help="white on the object; without it the photo's alpha",
    )
    added.add_argument("--background", type=Path, required=True, help="the photo to put it into")
    added.add_argument(
        "--mask",
        type=Path,
        help="where the object goes, white: a box to stand in, or an outline whose pose it takes; not with --placed or "
        "--at",
    )
    added.add_argument("--blend-mask", type=Path, help="where to put what was generated, if not in the mask")
    added.add_argument("--out", type=Path, required=True, help="the picture to write, .png, .jpg, .webp or .tiff")
    added.add_argument(
        "--overwrite",
        action="store_true",
        help="also over a picture that the composite is made of, and over layers that are there already",
    )
    added.set_defaults(many=False)

    added = command(batch, "batch", "make many composites with one loaded model")
    added.add_argument(
        "jobs",
        type=Path,
        metavar="JOBS.jsonl",
        help="one JSON object per line: object, background, out, mask (or placed, at, or align), and if wished "
        "object_mask, blend_mask, seed, align, inset, height, rotate, flip, fit, light, shadow, softness, light_from; "
        "or objects, a list from back to front, each with an object of its own and those keys; paths are relative to "
        "this file's folder",
    )
    added.add_argument(
        "--overwrite",
        action="store_true",
        help="also make what is already written, and over what a composite is made of, and over layers that are there",
    )
    added.set_defaults(many=True)

    for each in (one, added):
        each.add_argument(
            "--cutout",
            choices=("off", "auto"),
            default="off",
            help="auto: cut the object out of a photo that has neither a mask nor transparency; needs pip install "
            "'imprint[cutout]'; default: %(default)s",
        )

    added = command(convert, "convert", "make a checkpoint of a third-party model's released weights", parents=())
    added.add_argument("file", type=Path, help="the released .pth, .ckpt or .safetensors")
    added.add_argument("out", type=Path, help="the checkpoint to write, .safetensors")
    added.add_argument(
        "--kind", metavar="NAME", help="objectstitch or paint-by-example; by default it is told from the weights"
    )

    added = command(info, "info", "show what is in a checkpoint, and check it", parents=())
    added.add_argument("file", type=Path, help="an Imprint checkpoint, .safetensors")
    added.add_argument("--json", action="store_true", help="for programs")
    return parser
