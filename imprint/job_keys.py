"""The keys of a job that say where an object goes and how it is lit, checked and made into the pipeline's arguments.

The command line's options of the same names take the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .changes import CHANGES
from .directions import require_strengths
from .errors import LARGEST_NUMBER, ImprintError, require_number, require_one_of
from .positions import ACROSS, DOWN, FITS, Align, Place

PLACING = tuple("placed at align inset height rotate flip fit light shadow softness light_from change".split())
"""The keys."""
_AXES = dict.fromkeys(ACROSS, "x") | dict.fromkeys(DOWN, "y")
"""The axis that each word of `Align` is about."""
_STRENGTHS = ("light", "shadow", "softness")


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
        _align(values)
    elif "inset" in values:
        raise ImprintError("inset goes with align; say where the object stands, such as align right,bottom")
    if "height" in values and "at" not in values and "align" not in values:
        raise ImprintError("height goes with at or align; in a box the object is as large as the box allows")
    _number("height", values.get("height", 1), 1)
    if values.get("rotate", 0) != "auto":
        _number("rotate (in degrees, or auto)", values.get("rotate", 0))
    elif not has_mask and "align" not in values:
        raise ImprintError("rotate is auto, which fills a box; give a number of degrees")
    require_one_of("fit", values.get("fit", "contain"), FITS)
    require_strengths(*(_read(values.get(name, 0)) for name in _STRENGTHS), values.get("light_from", "auto"))
    require_one_of("change", values.get("change", "both"), CHANGES)


def placing_arguments(values: Mapping[str, Any], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments for these options; pictures: its other ones, which give the object's default height."""
    from .place import object_height

    made = {name: values[name] for name in ("placed", "fit", "light_from", "change", *_STRENGTHS) if name in values}
    made |= {name: float(made[name]) for name in _STRENGTHS if name in made}
    rotate, flip = values.get("rotate", 0.0), values.get("flip", False)
    rotate = rotate if rotate == "auto" else float(rotate)
    if "at" in values:
        x, y = _point(values["at"])
        height = values.get("height") or object_height(pictures["object_image"], pictures["object_mask"], rotate, flip)
        return made | {"place": Place(x, y, float(height), rotate, flip)}
    if "align" in values:
        made["align"] = _align(values)
    return made | {"rotate": rotate, "flip": flip}


def _point(value: Any) -> tuple[float, float]:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        x, y = (_number("at", part) for part in parts)
    except (TypeError, ValueError):
        raise ImprintError(f"at is {value!r}; it must be x,y in pixels, where the object stands") from None
    return x, y


def _align(values: Mapping[str, Any]) -> Align:
    words = _words_by_axis(values["align"])
    return Align(**words, inset=_read(values.get("inset", 0.0)), height=_read(values.get("height")))


def _words_by_axis(value: Any) -> dict[str, str]:
    """x and y of an `Align`, or one of them."""
    words = value.split(",") if isinstance(value, str) else value
    try:
        words = [word.strip() for word in words]
        found = {_AXES[word]: word for word in words}
    except (AttributeError, KeyError, TypeError):
        found, words = {}, [value]
    if not words or len(found) != len(words):
        raise ImprintError(
            f"align is {value!r}; it must be left, center or right, and top, middle or bottom, such as right,bottom"
        )
    return found


def _number(name: str, value: Any, least: float = -LARGEST_NUMBER) -> float:
    """A number, or a string that holds one. Raises `ImprintError` as `require_number` does."""
    value = _read(value)
    require_number(name, value, least)
    return float(value)


def _read(value: Any) -> Any:
    """The number that a string holds; any other value as it is."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value
