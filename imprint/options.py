"""The options of all commands that make a picture; those for the object's place and light are also a job's keys."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .changes import CHANGES
from .directions import DIRECTIONS, light_direction
from .errors import LARGEST_NUMBER, ImprintError, require_number

FAST_STEPS = 4
"""Steps of `--fast`: with 3 the model's own drawing is recognised in 38 of 50 tasks instead of 46."""
SHIPPED_STEPS = 8
"""The shipped checkpoint's default: as many steps of DPM++ 2M draw what 20 of Euler do."""
PLACING = tuple("placed at align inset height rotate flip fit light shadow softness light_from change".split())
"""The names, the same as options and as keys of a job."""
_FITS = (
    "contain",
    "fill",
    "outline",
)  # `place.FITS`, repeated: importing it would import torch, and a mistyped option should fail at once
_ALIGN = dict.fromkeys(("left", "center", "right"), "x") | dict.fromkeys(("top", "middle", "bottom"), "y")
"""The words of `place.Align`, with the axis of each."""
_MOST = {"light": 1.5, "shadow": 1.5, "softness": 1.0}


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
        choices=_FITS,
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
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    group.add_argument(
        "--dtype",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
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
        help=f"{FAST_STEPS} steps of DPM++ 2M, or as many as --steps says: faster, and slightly rougher",
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
        help="side of the model's crop, relative to the hole's longer side; default: the checkpoint's",
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
        default=0,
        metavar="PIXELS",
        help="width of the soft edge inside the hole; default: %(default)s",
    )
    group.add_argument(
        "--blend",
        choices=("feather", "multiband"),
        default="feather",
        help="how the soft edge blends: everything over its whole width, or fine detail over a narrower one; "
        "default: %(default)s",
    )
    group.add_argument(
        "--colour-match",
        type=float,
        default=0.0,
        metavar="0..1",
        help="how far to shift the drawing's colours to the background's; default: %(default)s",
    )
    group.add_argument(
        "--matte",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the photo inside the hole where there is neither object nor shadow; default: %(default)s",
    )
    group.add_argument(
        "--each-area",
        action="store_true",
        help="one object in each separate area of the mask, or each label of a label map, not one across all of them",
    )
    group.add_argument(
        "--layers",
        type=Path,
        metavar="FOLDER",
        help="also write shadow, object and light as PNGs which, stacked in the order of their names over a background "
        "without transparency, give the picture except for rounding (at most 2 of 255 for one object); for placed "
        "objects only",
    )
    group.add_argument(
        "--detail",
        type=float,
        default=1.0,
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
    """The options of `PLACING` that a command line gives."""
    return {name: getattr(options, name) for name in PLACING if getattr(options, name) is not None}


def check_placing(values: Mapping[str, Any], has_mask: bool) -> None:
    """Raise `ImprintError` for an invalid value, and unless exactly one of mask, placed, at and align is given.

    With a mask, align says where in its box.
    """
    for name in ("placed", "flip"):
        if not isinstance(values.get(name, False), bool):
            raise ImprintError(f"{name} is {values[name]!r}; it must be true or false")
    ways = ("placed", "at") if has_mask else ("placed", "at", "align")
    given = [name for name in ways if values.get(name)] + ["mask"] * has_mask
    if len(given) != 1:
        raise ImprintError(
            f"got {' and '.join(given) or 'nothing'} to say where the object goes; give one of mask, placed (its "
            "picture has the background's size, and it is in its place there), at (x,y where it stands) and align (in "
            "the whole background)"
        )
    if "at" in values:
        _point(values["at"])
    if "align" in values:
        _alignment(values["align"])
    if "inset" in values and "align" not in values:
        raise ImprintError("inset goes with align; say where the object stands, such as align right,bottom")
    if _number("inset", values.get("inset", 0), 0, 0.5) == 0.5:
        raise ImprintError("inset is 0.5; it must be less than half of the shorter side")
    if "height" in values and "at" not in values and "align" not in values:
        raise ImprintError("height goes with at or align; in a box the object is as large as the box allows")
    _number("height", values.get("height", 1), 1)
    if values.get("rotate", 0) != "auto":
        _number("rotate (in degrees, or auto)", values.get("rotate", 0))
    elif not has_mask and "align" not in values:
        raise ImprintError("rotate is auto, which fills a box; give a number of degrees")
    if values.get("fit", "contain") not in _FITS:
        raise ImprintError(f"fit is {values['fit']!r}; it must be one of {', '.join(_FITS)}")
    for name, most in _MOST.items():
        _number(name, values.get(name, 0), 0, most)
    light_direction(values.get("light_from", "auto"))
    if values.get("change", "both") not in tuple(CHANGES):
        raise ImprintError(f"change is {values['change']!r}; it must be one of {', '.join(CHANGES)}")


def placing_arguments(values: Mapping[str, Any], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments for these options; pictures: its other ones, which give the object's default height."""
    from .place import Align, Place, object_height

    made = {name: values[name] for name in ("placed", "fit", "light_from", "change", *_MOST) if name in values}
    made |= {name: float(made[name]) for name in _MOST if name in made}
    rotate, flip = values.get("rotate", 0.0), values.get("flip", False)
    rotate = rotate if rotate == "auto" else float(rotate)
    if "at" in values:
        x, y = _point(values["at"])
        height = values.get("height") or object_height(pictures["object_image"], pictures["object_mask"], rotate, flip)
        return made | {"place": Place(x, y, float(height), rotate, flip)}
    if "align" in values:
        height = float(values["height"]) if "height" in values else None
        made["align"] = Align(**_alignment(values["align"]), inset=float(values.get("inset", 0)), height=height)
    return made | {"rotate": rotate, "flip": flip}


def _point(value: Any) -> tuple[float, float]:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        x, y = (_number("at", part) for part in parts)
    except (TypeError, ValueError):
        raise ImprintError(f"at is {value!r}; it must be x,y in pixels, where the object stands") from None
    return x, y


def _alignment(value: Any) -> dict[str, str]:
    """x and y of `place.Align`, or one of them."""
    words = value.split(",") if isinstance(value, str) else value
    try:
        words = [word.strip() for word in words]
        found = {_ALIGN[word]: word for word in words}
    except (AttributeError, KeyError, TypeError):
        found, words = {}, [value]
    if not words or len(found) != len(words):
        raise ImprintError(
            f"align is {value!r}; it must be left, center or right, and top, middle or bottom, such as right,bottom"
        )
    return found


def _number(name: str, value: Any, least: float = -LARGEST_NUMBER, most: float = LARGEST_NUMBER) -> float:
    """A number, or a string that holds one. Raises `ImprintError` as `require_number` does."""
    with suppress(TypeError, ValueError):
        value = float(value) if isinstance(value, str) else value
    require_number(name, value, least, most)
    return float(value)
