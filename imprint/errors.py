"""The one exception that bad input raises, so that a caller can tell it from a defect of this code;
and the checks that are made in several places."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class ImprintError(ValueError):
    """Bad input: the message says what was got, what was expected and what to do."""


def print_anything() -> None:
    """Names of files may have letters that a legacy code page, or any, does not: they are escaped, and no run fails of them."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


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
