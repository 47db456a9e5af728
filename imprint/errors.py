"""The exception for bad input, which tells it apart from bugs in this code, and checks used in several places."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from numbers import Integral, Real
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


LARGEST_NUMBER = 3e38
"""Just below the largest fp32 number: anything larger counts as infinite."""
PRECISION = "its weights are broken, or too large for this precision: run it in fp32"
"""The remedy where a network computes values that are not finite."""


class ImprintError(ValueError):
    """Bad input: the message says what was got, what was expected and what to do."""


def print_anything() -> None:
    """Make stdout and stderr escape characters that their encoding lacks, as in file names, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def require_number(
    name: str, value: Any, least: float = -LARGEST_NUMBER, most: float = LARGEST_NUMBER, whole: bool = False
) -> None:
    """Raise `ImprintError` unless the value is a finite number, or a whole number, from `least` to `most`."""
    a_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if a_number and least <= value <= most:  # which NaN is not
        return
    kind = "whole number" if whole else "finite number"
    if least > -LARGEST_NUMBER:
        kind += f" from {least:g} to {most:g}" if most < LARGEST_NUMBER else f" of {least:g} or more"
    elif most < LARGEST_NUMBER:
        kind += f" up to {most:g}"
    raise ImprintError(f"{name} is {value if a_number else repr(value)}; it must be a {kind}")


def require_one_of(name: str, value: Any, choices: Iterable) -> None:
    """Raise `ImprintError` unless the value is one of the choices."""
    choices = tuple(choices)  # in which, unlike in a dict, a list may be looked up
    if value not in choices:
        raise ImprintError(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}")


def from_extra(package: str, extra: str, what: str) -> ModuleType:
    """Import a package that belongs to one of pyproject.toml's extras.

    what: the feature that needs it, for the message. Raises `ImprintError` if it cannot be imported.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ImprintError(f'{what} needs the package {package} ({error}): pip install ".[{extra}]"') from error


def require_masks(views: int, masks: int) -> None:
    """Raise `ImprintError` unless there is at least one view of the object, and one mask per view."""
    if not views or views != masks:
        raise ImprintError(
            f"got {views} view(s) of the object and {masks} mask(s) of it; give one mask per view, or none at all "
            "if the pictures are transparent around the object"
        )


def require_same_size(picture: str, size: tuple[int, int], mask: str, mask_size: tuple[int, int]) -> None:
    """Raise `ImprintError` unless a picture and its mask have the same height and width."""
    if tuple(size) != tuple(mask_size):
        raise ImprintError(
            f"{picture} is {size[1]}x{size[0]}, but {mask} is {mask_size[1]}x{mask_size[0]}; make them the same size"
        )


def require_finite(values: torch.Tensor, what: str, remedy: str) -> torch.Tensor:
    """Return the values, of any shape. Raises `ImprintError` if one is NaN or infinite; what: their name."""
    # Through the sum: comparing every value would take as much memory again.
    if not bool(values.float().sum().isfinite()):
        raise not_finite(what, remedy)
    return values


def not_finite(what: str, remedy: str) -> ImprintError:
    """The error that `require_finite` raises."""
    return ImprintError(f"{what} holds values that are not finite (NaN or infinity); {remedy}")
