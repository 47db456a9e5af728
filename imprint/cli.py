"""The command `imprint`: a demo, one composite, many, a checkpoint's description, and converting third-party weights.

Bad input ends with one sentence on stderr and exit code 2. Torch and diffusers are imported only by the commands that
need them, so that `--help` and mistyped options respond at once.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TextIO

from . import __version__, making
from .errors import ImprintError, print_anything
from .files import same_file
from .jobs import Job, read_jobs
from .options import (
    finish_settings,
    given_placing,
    model_settings,
    placing_settings,
    with_negative_points,
)

SAMPLES = Path(__file__).parent / "assets" / "samples"
"""The demo's pictures, duck.webp, room.jpg and box.png, and others."""
DEMO_LIGHT = "above"
"""Where most of the light in room.jpg comes from."""

EXIT_BAD_INPUT = 2  # as argparse's own
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C


def main(argv: list[str] | None = None) -> int:
    """Run a command line, by default the process's own; returns the exit code (argparse leaves with 2 on its own)."""
    print_anything()
    options = _parser().parse_args(with_negative_points(argv))
    options.alone = argv is None
    # Read when torch is imported: waiting threads sleep instead of spinning. If other programs use the cores, spinning
    # makes a composite five times slower; otherwise sleeping costs a few percent.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return options.run(options)
    except ImprintError as error:
        _say(f"imprint: error: {error}", sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _say(line: str, stream: TextIO | None = None) -> OSError | ValueError | None:
    """Print a line, by default to stdout.

    The results are on the disk by now, so an error of printing (a closed pipe, a full disk) is returned, not raised.
    """
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):  # Python flushes again at exit, and would fail then
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error


def demo(options: argparse.Namespace) -> int:
    """A composite of the packaged pictures."""
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
        _how(options),
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
        _how(options),
    )


def _how(options: argparse.Namespace) -> making.Making:
    return making.Making(**{each.name: getattr(options, each.name) for each in fields(making.Making)})


def _one(job: Job, how: making.Making) -> int:
    began = time.monotonic()
    if not how.overwrite:
        job.require_new()
    with _collector_paused():
        steps = making.read_steps(job, how)
        pipeline = making.open_pipeline(how)
    making.make(job, steps, pipeline, how)
    _say(f"{job.out.resolve()} ({time.monotonic() - began:.1f} s)")
    return 0


def batch(options: argparse.Namespace) -> int:
    """One composite per line; bad lines and pictures that exist already are skipped."""
    from tqdm import tqdm

    def report(number: int, error: ImprintError) -> None:
        tqdm.write(f"imprint: error: {options.jobs}, line {number}: {error}", file=sys.stderr)

    jobs, errors = read_jobs(
        options.jobs, options.seed, options.overwrite, given_placing(options), bool(options.layers)
    )
    for number, error in errors.items():
        report(number, error)
    how = _how(options)
    waiting = {number: job for number, job in jobs.items() if options.overwrite or not os.path.isfile(job.out)}
    failed = len(errors)
    if waiting:
        with _collector_paused():
            pipeline = making.open_pipeline(how)
        pipeline.set_progress_bar_config(disable=True)
        for number, job in tqdm(waiting.items(), unit="picture"):
            try:
                making.make(job, making.read_steps(job, how), pipeline, how)
            except ImprintError as error:
                failed += 1
                report(number, error)
    written = len(waiting) - (failed - len(errors))
    _say(f"{written} written, {len(jobs) - len(waiting)} skipped, {failed} failed")
    return EXIT_BAD_INPUT if failed else 0


def info(options: argparse.Namespace) -> int:
    """Print what is in a checkpoint or a light network, after verifying its checksum."""
    from .description import describe

    error = _say(describe(options.file, options.json))
    if error is not None and not isinstance(error, BrokenPipeError):  # which `imprint info FILE | head` is
        raise ImprintError(f"the description of {options.file} cannot be printed ({error}); print it elsewhere")
    return 0


def convert(options: argparse.Namespace) -> int:
    """Convert a third-party model's released weights to an Imprint checkpoint."""
    from functools import partial

    from tqdm import tqdm

    from .files import require_writable
    from .third_party import convert as write_converted
    from .third_party import kind_of

    if options.out.suffix != ".safetensors":
        raise ImprintError(f"{options.out} must end in .safetensors, as checkpoints do")
    if same_file(options.file, options.out):
        raise ImprintError(f"{options.out} is the input file itself, which would be overwritten; give another name")
    require_writable(options.out)
    began = time.monotonic()
    with making.needs_diffusers():
        config = write_converted(
            options.file, options.out, options.kind, partial(tqdm, unit="tensor"), options.local_region
        )
    _say(f"{options.out.resolve()} ({kind_of(config)}, fp16, {time.monotonic() - began:.1f} s)")
    return 0


@contextmanager
def _collector_paused() -> Iterator[None]:
    """For importing and loading: walking the million objects made would cost the collector seconds, also at exit."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _parser() -> argparse.ArgumentParser:
    of_pictures = (model_settings(), placing_settings(), finish_settings())
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
        parents: Sequence[argparse.ArgumentParser] = of_pictures,
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, parents=parents, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    added = command(demo, "demo", "make a composite of the pictures that come with the package")
    added.add_argument("--out", type=Path, default=Path("imprint-demo.png"), help="default: %(default)s in this folder")
    added.add_argument("--overwrite", action="store_true", help="also overwrite existing layers")
    added.set_defaults(many=False, cutout="off")

    added = one = command(composite, "composite", "put an object into a background")
    added.add_argument(
        "--object", type=Path, action="append", required=True, help="the object's photo; repeat for further views"
    )
    added.add_argument(
        "--object-mask",
        type=Path,
        action="append",
        default=[],
        help="white on the object; default: the photo's transparency",
    )
    added.add_argument("--background", type=Path, required=True, help="the photo to put it into")
    added.add_argument(
        "--mask",
        type=Path,
        help="white where the object goes: a box to stand in, or an outline to be drawn in; not with --placed or --at",
    )
    added.add_argument("--blend-mask", type=Path, help="where to put the drawing, if not in the mask")
    added.add_argument("--out", type=Path, required=True, help="the picture to write, .png, .jpg, .webp or .tiff")
    added.add_argument(
        "--overwrite",
        action="store_true",
        help="also overwrite pictures that the composite is made from, and existing layers",
    )
    added.set_defaults(many=False)

    added = command(batch, "batch", "make many composites with one loaded model")
    added.add_argument(
        "jobs",
        type=Path,
        metavar="JOBS.jsonl",
        help="one JSON object per line: object, background, out, mask (or placed, at, or align), and optionally "
        "object_mask, blend_mask, seed, align, inset, height, rotate, flip, fit, light, shadow, softness, light_from, "
        "change; or objects, a list from back to front, each with its own object and those keys; paths are relative to "
        "this file's folder",
    )
    added.add_argument(
        "--overwrite",
        action="store_true",
        help="also make existing pictures again, and overwrite existing layers and the pictures of a composite",
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
        "--kind",
        metavar="NAME",
        help="objectstitch, paint-by-example, controlcom or anydoor; default: recognised by the weights",
    )
    added.add_argument(
        "--local-region",
        choices=("corner", "box"),
        help="where ControlCom's local blocks look: corner (default) as in its published code, box as in its paper",
    )

    added = command(info, "info", "show what is in a checkpoint or a light network, and verify it", parents=())
    added.add_argument("file", type=Path, help="an Imprint checkpoint or a light network, .safetensors")
    added.add_argument("--json", action="store_true", help="as JSON")
    return parser
