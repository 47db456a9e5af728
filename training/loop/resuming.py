"""What may differ when a run goes on, and what it then says of itself."""

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
"""Options that may differ, so long as a step has as many pictures."""


@dataclass(frozen=True)
class Begun:
    """What a run keeps of its beginning, however it goes on."""

    layout: Layout
    """which settles the pairs and the noise of every step"""
    images: int
    """which settle how long `--translation` lasts"""

    def translated(self, share: float) -> int:
        """The steps on the translation loss, a share of all."""
        return round(math.ceil(self.images / self.layout.step_size) * share)

    def to_dict(self) -> dict[str, int]:
        return asdict(self.layout) | {"images": self.images}

    @classmethod
    def of(cls, described: dict[str, Any]) -> Begun:
        """described: what options.json holds; that of older runs does not say it apart.

        Raises `ImprintError` where these are no numbers of 1 or more.
        """
        *shared, images = _counts(described.get("begun") or described, "processes", "accumulate", "batch", "images")
        return cls(Layout(*shared), images)


def _counts(values: Any, *names: str) -> list[int]:
    """Those numbers of a table in options.json. Raises `ImprintError` unless each is 1 or more."""
    found = [values.get(name) if isinstance(values, dict) else None for name in names]
    for name, value in zip(names, found):
        if type(value) is not int or value < 1:
            raise ImprintError(
                f"options.json holds {value!r} as the run's {name}; a number of 1 or more was expected: mend it, or "
                "give another --output"
            )
    return found


def require_same(before: dict[str, Any], described: dict[str, Any], folder: Path) -> None:
    """A run goes on with the options that it began with, save those that do not change what it learns, its length, and
    how the pictures of a step are shared out.

    Raises `ImprintError` for others. before: what options.json holds, under today's names; described: what it is to
    hold.
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


def said(before: dict[str, Any], settings: Train, layout: Layout, done: int) -> list[str]:
    """What differs from now on, after so many pictures; nothing of a run that goes on as it was."""
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
