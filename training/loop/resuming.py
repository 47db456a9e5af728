"""What may change when a run is resumed, and how the change is reported."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imprint.errors import ImprintError

from ..arguments import defaults
from ..settings import DESCRIBED, FREE_OPTIONS, Train
from .layout import Layout
from .schedule import learning_rate

BENDING = ("images", "batch", "accumulate", "global_batch")
"""Options that may change as long as a step has the same number of pictures."""


@dataclass(frozen=True)
class Begun:
    """What a run keeps from its start, however it is resumed."""

    layout: Layout
    """determines the pairs and the noise of every step"""
    images: int
    """determines how long `--translation` lasts"""

    def translated(self, share: float) -> int:
        """The number of steps on the translation loss."""
        return round(math.ceil(self.images / self.layout.step_size) * share)

    def to_dict(self) -> dict[str, int]:
        return asdict(self.layout) | {"images": self.images}

    @classmethod
    def of(cls, described: dict[str, Any]) -> Begun:
        """described: the contents of options.json; older runs lack the key `begun`.

        Raises `ImprintError` unless the values are numbers of 1 or more.
        """
        *shared, images = _counts(described.get("begun") or described, "processes", "accumulate", "batch", "images")
        return cls(Layout(*shared), images)


def _counts(values: Any, *names: str) -> list[int]:
    """Those numbers of a table in options.json. Raises `ImprintError` unless each is 1 or more."""
    found = [values.get(name) if isinstance(values, dict) else None for name in names]
    for name, value in zip(names, found):
        if type(value) is not int or value < 1:
            raise ImprintError(
                f"options.json holds {value!r} as the run's {name}; expected a number of 1 or more: repair it, or give "
                "another --output"
            )
    return found


def require_same(before: dict[str, Any], described: dict[str, Any], folder: Path) -> None:
    """Raise `ImprintError` unless a run is resumed with the options it started with.

    Exceptions are options that do not affect what is learned, the length, and how a step's pictures are split. before:
    the contents of options.json under the present names; described: its new contents.
    """
    now = json.loads(json.dumps(described))
    before = defaults(Train) | before
    free = {*FREE_OPTIONS, *BENDING, *(DESCRIBED - {"model", "trained", "lora", "split"})}
    for name in now:
        if name not in free and before.get(name, now[name]) != now[name]:
            raise ImprintError(
                f"{folder} was begun with {name} = {before[name]!r}, not {now[name]!r}; give the same options to "
                "continue it, or another --output"
            )
    begun, layout = Begun.of(before).layout, Layout(**now["layout"])
    _counts(before, "images")
    if begun.step_size != layout.step_size:
        raise ImprintError(
            f"{folder} was begun with {begun.step_size} pictures per step (processes x accumulate x batch = {begun}), "
            f"not {layout.step_size} ({layout}); give --global-batch {begun.step_size} with a --batch that fits, or "
            "another --output"
        )


def changes(before: dict[str, Any], settings: Train, layout: Layout, done: int) -> list[str]:
    """Messages about what changes from here on, after this many pictures; none for an unchanged run."""
    begun, found = Begun.of(before).layout, []
    if settings.images != before["images"]:
        rates = [learning_rate(done, settings, images) for images in (before["images"], settings.images)]
        text = f"it ends after {settings.images} pictures, not {before['images']}: "
        text += (
            f"the learning rate is {rates[1]:.4g} now instead of {rates[0]:.4g}, and goes down by the new end"
            if rates[0] != rates[1]
            else "the learning rate stays what it was"
        )
        found.append(text)
    if layout != begun:
        text = (
            f"processes x accumulate x batch are {layout}, and were {begun} at its beginning: every step has the same "
            "pictures with the same noise, and only sums are rounded otherwise"
        )
        if layout.processes > begun.processes:
            text += f"; {layout.processes} processes make the pairs that {begun.processes} made, more than once"
        if settings.pool is not None and layout.processes < begun.processes:
            text += f"; each process holds the --pool of up to {-(-begun.processes // layout.processes)}"
        found.append(text)
    return found
