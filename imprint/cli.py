"""The command `imprint`: a demo, one composite, many, a checkpoint's description, and converting third-party weights.

Bad input ends with one sentence on stderr and exit code 2. Torch and diffusers are imported only by the commands that
need them, so that `--help` and mistyped options respond at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from . import runner
from .errors import ImprintError, print_anything
from .files import same_file
from .importing import collector_paused, needs_diffusers
from .job_settings import JobSettings
from .jobs import Job, JobObject, read_jobs
from .options import build_parser, given_placing, with_negative_points

if TYPE_CHECKING:
    from .lazy import LazyPipeline

SAMPLES = Path(__file__).parent / "assets" / "samples"
"""The demo's pictures, duck.webp, room.jpg and box.png, and others."""
DEMO_LIGHT = "above"
"""Where most of the light in room.jpg comes from."""

EXIT_BAD_INPUT = 2  # as argparse's own
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C


def main(argv: list[str] | None = None) -> int:
    """Run a command line, by default the process's own; returns the exit code (argparse leaves with 2 on its own)."""
    print_anything()
    options = build_parser(_COMMANDS).parse_args(with_negative_points(argv))
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
        SAMPLES / "room.jpg",
        JobObject(
            views=(SAMPLES / "duck.webp",),
            object_masks=(),
            mask=SAMPLES / "box.png",
            seed=options.seed,
            placing={"light_from": DEMO_LIGHT} | given_placing(options),
        ),
        options.out,
        _job_settings(options),
    )


def composite(options: argparse.Namespace) -> int:
    """One composite from files."""
    return _one(
        options.background,
        JobObject(
            views=tuple(options.object),
            object_masks=tuple(options.object_mask),
            mask=options.mask,
            seed=options.seed,
            blend_mask=options.blend_mask,
            placing=given_placing(options),
        ),
        options.out,
        _job_settings(options),
    )


def _job_settings(options: argparse.Namespace) -> JobSettings:
    return JobSettings(**{each.name: getattr(options, each.name) for each in fields(JobSettings)})


def _one(background: Path, subject: JobObject, out: Path, settings: JobSettings) -> int:
    began = time.monotonic()
    job = Job(background, out, (subject,))
    if not settings.overwrite:
        job.require_new()
    with collector_paused():
        insertions = runner.read_insertions(job, settings)
    pipeline = _pipeline(settings)
    runner.run_job(job, insertions, pipeline, settings)
    _say(f"{job.out.resolve()} ({time.monotonic() - began:.1f} s)")
    return 0


def _pipeline(settings: JobSettings) -> LazyPipeline:
    with collector_paused():
        from .lazy import open_pipeline

    return open_pipeline(settings)


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
    settings = _job_settings(options)
    waiting = {number: job for number, job in jobs.items() if options.overwrite or not os.path.isfile(job.out)}
    failed = len(errors)
    if waiting:
        pipeline = _pipeline(settings)
        for number, job in tqdm(waiting.items(), unit="picture"):
            try:
                runner.run_job(job, runner.read_insertions(job, settings), pipeline, settings)
            except ImprintError as error:
                failed += 1
                report(number, error)
    written = len(waiting) - (failed - len(errors))
    _say(f"{written} written, {len(jobs) - len(waiting)} skipped, {failed} failed")
    return EXIT_BAD_INPUT if failed else 0


def info(options: argparse.Namespace) -> int:
    """Print what is in a checkpoint, a light network or a LoRA, after verifying it."""
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

    if options.out.suffix != ".safetensors" and not options.out.is_dir():
        raise ImprintError(f"{options.out} must end in .safetensors, as checkpoints do")
    if same_file(options.file, options.out):
        raise ImprintError(f"{options.out} is the input file itself, which would be overwritten; give another name")
    require_writable(options.out)
    began = time.monotonic()
    with needs_diffusers():
        config = write_converted(
            options.file, options.out, options.kind, partial(tqdm, unit="tensor"), options.local_region
        )
    _say(f"{options.out.resolve()} ({kind_of(config)}, fp16, {time.monotonic() - began:.1f} s)")
    return 0


_COMMANDS = {"demo": demo, "composite": composite, "batch": batch, "convert": convert, "info": info}
