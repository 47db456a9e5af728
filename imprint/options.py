"""The options of the command `imprint`, written out one by one, so that `--help` and mistyped options respond at once.

What they mean for the pictures is said where they are used: `job_settings`, whose defaults these are, and
`job_keys`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .changes import CHANGES
from .directions import DIRECTIONS
from .job_keys import PLACING
from .job_settings import FAST_STEPS, LORA_STEPS, SHIPPED_STEPS, JobSettings
from .positions import FITS


def build_parser(run: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The parser of all commands. run: each command's function by its name, `run` among the options that it parses."""
    parser = argparse.ArgumentParser(
        prog="imprint",
        description="Put an object's photo into a background photo so that it belongs there.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"imprint {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    of_pictures = (model_settings(), placing_settings(), finish_settings())
    for name, add_options, parents, help in (
        ("demo", _demo_options, of_pictures, "make a composite of the pictures that come with the package"),
        ("composite", _composite_options, of_pictures, "put an object into a background"),
        ("batch", _batch_options, of_pictures, "make many composites with one loaded model"),
        ("convert", _convert_options, (), "make a checkpoint of a third-party model's released weights"),
        ("info", _info_options, (), "show what is in a checkpoint, a light network or a LoRA, and verify it"),
    ):
        command = commands.add_parser(name, help=help, description=help, parents=parents, allow_abbrev=False)
        command.set_defaults(run=run[name])
        add_options(command)
    return parser


def _folder(name: str) -> Path:
    """A folder's path; an empty name, as of an unset variable of a shell, would be the current folder."""
    if not name:
        raise argparse.ArgumentTypeError("the name is empty; give a folder")
    return Path(name)


def _demo_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", type=Path, default=Path("imprint-demo.png"), help="default: %(default)s in this folder"
    )
    command.add_argument("--overwrite", action="store_true", help="also overwrite existing layers")
    command.set_defaults(many=False, cutout=JobSettings.cutout)


def _composite_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--object", type=Path, action="append", required=True, help="the object's photo; repeat for further views"
    )
    command.add_argument(
        "--object-mask",
        type=Path,
        action="append",
        default=[],
        help="white on the object; default: the photo's transparency",
    )
    command.add_argument("--background", type=Path, required=True, help="the photo to put it into")
    command.add_argument(
        "--mask",
        type=Path,
        help="white where the object goes: a box to stand in, or an outline to be drawn in; not with --placed or --at",
    )
    command.add_argument("--blend-mask", type=Path, help="where to put the drawing, if not in the mask")
    command.add_argument("--out", type=Path, required=True, help="the picture to write, .png, .jpg, .webp or .tiff")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="also overwrite pictures that the composite is made from, and existing layers",
    )
    command.set_defaults(many=False)
    _add_cutout(command)


def _batch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "jobs",
        type=Path,
        metavar="JOBS.jsonl",
        help="one JSON object per line: object, background, out, mask (or placed, at, or align), and optionally "
        "object_mask, blend_mask, seed, align, inset, height, rotate, flip, fit, light, shadow, softness, light_from, "
        "change; or objects, a list from back to front, each with its own object and those keys; paths are relative to "
        "this file's folder",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="also make existing pictures again, and overwrite existing layers and the pictures of a composite",
    )
    command.set_defaults(many=True)
    _add_cutout(command)


def _add_cutout(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cutout",
        choices=("off", "auto"),
        default=JobSettings.cutout,
        help="auto: cut the object out of a photo that has neither a mask nor transparency; needs pip install "
        "'imprint[cutout]'; default: %(default)s",
    )


def _convert_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, help="the released .pth, .ckpt or .safetensors")
    command.add_argument("out", type=Path, help="the checkpoint to write, .safetensors")
    command.add_argument(
        "--kind",
        metavar="NAME",
        help="objectstitch, paint-by-example, controlcom or anydoor; default: recognised by the weights",
    )
    command.add_argument(
        "--local-region",
        choices=("corner", "box"),
        help="where ControlCom's local blocks look: corner (default) as in its published code, box as in its paper",
    )


def _info_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, help="an Imprint checkpoint, a light network or a LoRA, .safetensors")
    command.add_argument("--json", action="store_true", help="as JSON")


def placing_settings() -> argparse.ArgumentParser:
    """Where the object goes, and how strong its light and shadow are."""
    settings = argparse.ArgumentParser(add_help=False)
    group = settings.add_argument_group("the object's place and light")
    group.add_argument(
        "--placed",
        action="store_true",
        default=None,
        help="the object's picture has the background's size, and the object is already in its place there; no mask",
    )
    group.add_argument(
        "--at", metavar="X,Y", help="where the object stands: the middle of its lower edge, in pixels; no mask"
    )
    group.add_argument(
        "--align",
        metavar="X,Y",
        help="where it stands in the mask's box or, without a mask, in the whole background: left, center or right, "
        "and top, middle or bottom; one word is enough; default: center,bottom",
    )
    group.add_argument(
        "--inset",
        type=float,
        metavar="0..0.5",
        help="with --align: margin on each side, as a fraction of the shorter side; default: 0",
    )
    group.add_argument(
        "--height",
        type=float,
        metavar="PIXELS",
        help="the object's height; default: with --at its height in the photo, with --align as large as fits",
    )
    group.add_argument(
        "--rotate", metavar="DEGREES", help="clockwise; auto: a quarter turn if the object then fills more of the box"
    )
    group.add_argument("--flip", action="store_true", default=None, help="mirror it left to right")
    group.add_argument(
        "--fit",
        choices=FITS,
        help="contain (default) keeps its photo and, in a box, its proportions; outline lets the model draw it where "
        "the photo would lie, also with --placed, --at and --align; fill lets the model draw into the whole box",
    )
    for name, what in (
        ("light", "how far a placed object takes the scene's light"),
        ("shadow", "how dark its shadow is"),
    ):
        group.add_argument(f"--{name}", type=float, metavar="0..1.5", help=f"{what}; 0: not at all; default: 1")
    group.add_argument("--softness", type=float, metavar="0..1", help="how much softer to make the shadow; default: 0")
    group.add_argument(
        "--light-from",
        metavar="WHERE",
        help=f"where the scene's light comes from: {', '.join(DIRECTIONS)}, or degrees clockwise from behind the "
        "object and, optionally, above the horizon, such as 270,30; default: auto, as estimated by the network",
    )
    group.add_argument(
        "--change",
        choices=tuple(CHANGES),
        help="for a ControlCom checkpoint, what the model may change of the object: keep (nothing) and light draw it "
        "where it was placed, pose and both in the whole box of the mask; by default a placed object is lit, not drawn",
    )
    return settings


def model_settings() -> argparse.ArgumentParser:
    """Which model is loaded, and how it samples."""
    settings = argparse.ArgumentParser(add_help=False)
    group = settings.add_argument_group("model and sampling")
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the one that comes with the package")
    group.add_argument(
        "--lora",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a LoRA that was trained from the checkpoint; repeat the option for several",
    )
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default=JobSettings.device, help="default: %(default)s"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "fp32", "fp16", "bf16"),
        default=JobSettings.dtype,
        help="auto: fp32, or with --fast bf16 if the processor supports it; default: %(default)s",
    )
    group.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture; default: %(default)s")
    group.add_argument(
        "--steps",
        type=int,
        help=f"steps of the Euler sampler; default: {SHIPPED_STEPS} steps of DPM++ 2M for the shipped checkpoint, "
        "another checkpoint's own default",
    )
    group.add_argument(
        "--fast",
        action="store_true",
        help=f"{LORA_STEPS} steps of DPM++ 2M, which a LoRA has taught the shipped checkpoint; without it {FAST_STEPS} "
        "for another checkpoint, with --lora or guidance, or as many as --steps says. And light and shadow from one "
        "look at the scene instead of two: faster, and slightly rougher",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="on a GPU, record a sampling step as a CUDA graph, which takes as long as a few steps; elsewhere compile "
        "it, which takes a minute. Worth it for many drawn objects at the same --resolution",
    )
    group.add_argument("--guidance", type=float, help="guidance scale, 1: none; default: the checkpoint's")
    group.add_argument(
        "--context",
        type=float,
        help="side of the model's crop, relative to the hole's longer side, from 1; at most the whole background is "
        "seen; default: the checkpoint's",
    )
    group.add_argument(
        "--resolution",
        type=int,
        metavar="PIXELS",
        help="side of the crop as the model sees it; default: the checkpoint's. The shipped one has 256 and also "
        "supports 384 and 512, for larger holes",
    )
    return settings


def finish_settings() -> argparse.ArgumentParser:
    """How the drawing is put into the background."""
    settings = argparse.ArgumentParser(add_help=False)
    group = settings.add_argument_group("putting it into the background")
    group.add_argument(
        "--feather",
        type=int,
        metavar="PIXELS",
        help="width of the soft edge outside the hole; default: by the crop's size",
    )
    group.add_argument(
        "--feather-in",
        type=int,
        default=JobSettings.feather_in,
        metavar="PIXELS",
        help="width of the soft edge inside the hole; default: %(default)s",
    )
    group.add_argument(
        "--blend",
        choices=("feather", "multiband"),
        default=JobSettings.blend,
        help="how the soft edge blends: everything over its whole width, or fine detail over a narrower one; "
        "default: %(default)s",
    )
    group.add_argument(
        "--colour-match",
        type=float,
        default=JobSettings.colour_match,
        metavar="0..1",
        help="how far to shift the drawing's colours to the background's; default: %(default)s",
    )
    group.add_argument(
        "--matte",
        action=argparse.BooleanOptionalAction,
        default=JobSettings.matte,
        help="keep the photo inside the hole where there is neither object nor shadow; default: %(default)s",
    )
    group.add_argument(
        "--each-area",
        action="store_true",
        help="one object in each separate area of the mask, or each label of a label map, not one across all of them; "
        "areas that touch, if only at a corner, are one",
    )
    group.add_argument(
        "--layers",
        type=_folder,
        metavar="FOLDER",
        help="also write shadow, object and light as PNGs which, stacked in the order of their names over a background "
        "without transparency, give the picture except for rounding (at most 2 of 255 for one object); for placed "
        "objects only",
    )
    group.add_argument(
        "--detail",
        type=float,
        default=JobSettings.detail,
        metavar="0..1",
        help="take fine detail from the object's own photo where the drawing shows the same side; 0: off; "
        "default: %(default)s",
    )
    return settings


def with_negative_points(argv: Sequence[str] | None) -> list[str]:
    """A command line, by default the process's own, with `--at -10,300` as `--at=-10,300`.

    argparse takes a word that starts with a minus and is not a number for an option.
    """
    joined: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if joined and joined[-1] in ("--at", "--light-from") and re.match(r"-[\d.]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def given_placing(options: argparse.Namespace) -> dict[str, Any]:
    """The values of those of `PLACING` that a command line gives."""
    return {name: getattr(options, name) for name in PLACING if getattr(options, name) is not None}
