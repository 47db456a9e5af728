"""Where an object goes, as users say it. Torch is not imported, so that the command line can check it at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .errors import ImprintError, require_number, require_one_of

FITS = ("contain", "fill", "outline")
"""How an object fits into a box: its photo with its own proportions; drawn by the model, into the whole box; or drawn
where its photo would lie, in its outline."""
ACROSS = {"center": 0.5, "left": 0.0, "right": 1.0}
DOWN = {"bottom": 1.0, "middle": 0.5, "top": 0.0}
"""The alignments, the default first, each with the fraction of the box's free space left of, or above, the object."""


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Place:
    """Where and how an object's photo is put into a frame."""

    x: float
    """Pixels from the frame's left to the middle of the object."""
    y: float
    """Pixels from the frame's top to the object's lowest point: where it stands."""
    height: float
    """The object's height in the frame, after rotation, in pixels; below 1, a very wide object is one pixel high."""
    rotate: float = 0.0
    """Degrees, clockwise."""
    flip: bool = False
    """Whether to mirror left to right, before rotating."""

    def __post_init__(self) -> None:
        numbers = self.x, self.y, self.height, self.rotate
        if not all(_is_finite(each) for each in numbers) or self.height <= 0:
            raise ImprintError(
                f"the object's place is x {self.x!r}, y {self.y!r}, height {self.height!r}, rotated by "
                f"{self.rotate!r}; all must be finite numbers and the height more than 0 pixels"
            )
        if self.flip not in (True, False):
            raise ImprintError(f"flip is {self.flip!r}; it must be True or False")


@dataclass(frozen=True)
class Align:
    """How an object is aligned in a box or, without a box, in the whole frame."""

    x: str = "center"
    """One of `ACROSS`."""
    y: str = "bottom"
    """One of `DOWN`."""
    inset: float = 0.0
    """Margin on each side of the box, as a fraction of its shorter side; from 0 to less than 0.5."""
    height: float | None = None
    """The object's height in the frame, in pixels, 1 or more; None: as large as the box allows."""

    def __post_init__(self) -> None:
        for name, value, known in (("x", self.x, ACROSS), ("y", self.y, DOWN)):
            require_one_of(f"the alignment's {name}", value, known)
        require_number("inset", self.inset, 0, 0.5)
        if self.inset == 0.5:
            raise ImprintError("inset is 0.5; it must be less than half of the shorter side")
        if self.height is not None:
            require_number("height", self.height, 1)

    def within(self, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """A box (top, left, bottom, right) without the inset; at least one pixel remains."""
        top, left, bottom, right = box
        shorter = min(bottom - top, right - left)
        free = min(round(self.inset * shorter), (shorter - 1) // 2)
        return top + free, left + free, bottom - free, right - free
