"""The one exception that bad input raises, so that a caller can tell it from a defect of this code;
and the checks that are made in several places."""

from __future__ import annotations

import sys
from importlib import import_module
from numbers import Integral, Real
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


LARGEST_NUMBER = 3e38
"""What fp32 still holds: a larger number is as good as infinite."""


class ImprintError(ValueError):
    """Bad input: the message says what was got, what was expected and what to do."""


def print_anything() -> None:
    """Names of files may have letters that a legacy code page, or any, does not: they are escaped, and no run fails of
    them.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def require_number(
    name: str, value: Any, least: float = -LARGEST_NUMBER, most: float = LARGEST_NUMBER, whole: bool = False
) -> None:
    """Raise `ImprintError` unless a value of this name is a number, or a whole number, from `least` to `most`."""
    a_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if a_number and least <= value <= most:  # which NaN is not
        return
    kind = "whole number" if whole else "finite number"
    if least > -LARGEST_NUMBER:
        kind += f" from {least:g} to {most:g}" if most < LARGEST_NUMBER else f" of {least:g} or more"
    elif most < LARGEST_NUMBER:
        kind += f" up to {most:g}"
    raise ImprintError(f"{name} is {value if a_number else repr(value)}; it must be a {kind}")


def from_extra(package: str, extra: str, what: str) -> ModuleType:
    """A package that comes with an extra of pyproject.toml, imported.

    Raises `ImprintError` where it cannot be; what: needs it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ImprintError(f'{what} needs the package {package} ({error}): pip install ".[{extra}]"') from error


def require_masks(views: int, masks: int) -> None:
    """Raise `ImprintError` unless there are views of an object, and as many masks."""
    if not views or views != masks:
        raise ImprintError(
            f"got {views} view(s) of the object and {masks} mask(s) of it; give one mask per view, or none at all "
            "where the pictures are transparent around the object"
        )


def require_same_size(picture: str, size: tuple[int, int], mask: str, mask_size: tuple[int, int]) -> None:
    """Raise `ImprintError` unless a picture and its mask, of these names, are of one height and width."""
    if tuple(size) != tuple(mask_size):
        raise ImprintError(
            f"{picture} is {size[1]}x{size[0]}, but {mask} is {mask_size[1]}x{mask_size[0]}; make them the same size"
        )


def require_finite(values: torch.Tensor, what: str, remedy: str) -> torch.Tensor:
    """The values, of any shape. Raises `ImprintError` where one is NaN or infinite; what: where they come from."""
    # By the sum, because a comparison of every value would take as much memory as the values.
    if not bool(values.float().sum().isfinite()):
        raise not_finite(what, remedy)
    return values


def not_finite(what: str, remedy: str) -> ImprintError:
    """The error that `require_finite` raises."""
    return ImprintError(f"{what} holds values that are not finite (NaN or infinity); {remedy}")
