"""How a command line or a line of a jobs file says where an object goes, and how strong light and shadow are."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .errors import ImprintError

PLACING = ("placed", "at", "height", "rotate", "flip", "fit", "light", "shadow", "softness")
"""The names, alike as options and as keys of a job."""
_FITS = ("contain", "fill")  # `place.FITS`, which comes with torch: a mistyped option is to answer at once
_MOST = {"light": 1.5, "shadow": 1.5, "softness": 1.0}


def placing_settings() -> argparse.ArgumentParser:
    """The options of every command that makes a picture."""
    settings = argparse.ArgumentParser(add_help=False)
    group = settings.add_argument_group("the object's place and light")
    group.add_argument(
        "--placed",
        action="store_true",
        default=None,
        help="the object's picture is as large as the background, and the object lies in it where it shall lie; no mask",
    )
    group.add_argument(
        "--at", metavar="X,Y", help="where the object stands: the middle of its lower edge, in pixels; no mask"
    )
    group.add_argument(
        "--height", type=float, metavar="PIXELS", help="with --at: its height; by default its photo's own"
    )
    group.add_argument(
        "--rotate", metavar="DEGREES", help="clockwise; auto: by a quarter turn where it then fills more of the box"
    )
    group.add_argument("--flip", action="store_true", default=None, help="mirror it left to right")
    group.add_argument(
        "--fit",
        choices=_FITS,
        help="how it meets a box: contain (default) keeps its photo and proportions, fill lets the model draw it into all "
        "of the box",
    )
    for name, what in (("light", "how far it takes the scene's light"), ("shadow", "how dark its shadow is")):
        group.add_argument(f"--{name}", type=float, metavar="0..1.5", help=f"{what}; 0 = not at all, default: 1")
    group.add_argument("--softness", type=float, metavar="0..1", help="of the shadow, beyond its own; default: 0")
    return settings


def given_placing(options: argparse.Namespace) -> dict[str, Any]:
    """What a command line says of `PLACING`."""
    return {name: getattr(options, name) for name in PLACING if getattr(options, name) is not None}


def check_placing(values: Mapping[str, Any], has_mask: bool) -> None:
    """Raise `ImprintError` for a value that cannot be used, and unless exactly one of mask, placed and at is given."""
    for name in ("placed", "flip"):
        if not isinstance(values.get(name, False), bool):
            raise ImprintError(f"{name} is {values[name]!r}; it must be true or false")
    given = [name for name in ("placed", "at") if values.get(name)] + ["mask"] * has_mask
    if len(given) != 1:
        raise ImprintError(
            f"got {' and '.join(given) or 'nothing'} to say where the object goes; give one of mask, placed (its picture is as "
            "large as the background, and it lies there) and at (x,y where it stands)"
        )
    if "at" in values:
        _point(values["at"])
    if "height" in values and "at" not in values:
        raise ImprintError("height goes with at; in a box the object is as large as the box allows")
    if "height" in values and not _number("height", values["height"]) >= 1:
        raise ImprintError(f"height is {values['height']}; it must be 1 pixel or more")
    if values.get("rotate", 0) != "auto":
        _number("rotate", values.get("rotate", 0), "a number of degrees, or auto")
    elif not has_mask:
        raise ImprintError("rotate is auto, which fills a box; give a number of degrees")
    if values.get("fit", "contain") not in _FITS:
        raise ImprintError(f"fit is {values['fit']!r}; it must be {' or '.join(_FITS)}")
    for name, most in _MOST.items():
        if not 0 <= _number(name, values.get(name, 0)) <= most:
            raise ImprintError(f"{name} is {values[name]}; it must be from 0 to {most:g}")


def placing_arguments(values: Mapping[str, Any], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments; pictures: its own, of which the object's height is the default."""
    from .place import Place, object_height

    made = {name: values[name] for name in ("placed", "fit", *_MOST) if name in values}
    made |= {name: float(made[name]) for name in _MOST if name in made}
    rotate, flip = values.get("rotate", 0.0), values.get("flip", False)
    rotate = rotate if rotate == "auto" else float(rotate)
    if "at" in values:
        x, y = _point(values["at"])
        height = values.get("height") or object_height(pictures["object_image"], pictures["object_mask"], rotate, flip)
        return made | {"place": Place(x, y, float(height), rotate, flip)}
    return made | {"rotate": rotate, "flip": flip}


def _point(value: Any) -> tuple[float, float]:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        x, y = (_number("at", part) for part in parts)
    except (TypeError, ValueError):
        raise ImprintError(f"at is {value!r}; it must be x,y in pixels, where the object stands") from None
    return x, y


def _number(name: str, value: Any, expected: str = "a number") -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ImprintError(f"{name} is {value!r}; it must be {expected}") from None
