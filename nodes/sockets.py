"""The pack's own types on a graph's wires."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io

from ..imprint.place import PlacedObject
from ..imprint.views import ObjectViews

Adapter = io.Custom("IMPRINT_ADAPTER")
"""A `models.Adapter`."""

Identity = io.Custom("IMPRINT_IDENTITY")
"""A `Subject`."""

Placed = io.Custom("IMPRINT_PLACED")
"""A `PlacedBatch`."""


@dataclass(frozen=True)
class Subject:
    """One object: what the encoder sees of it, and its pictures, from which detail is restored."""

    tokens: torch.Tensor
    """float32 (1, views, tokens, width)."""
    views: ObjectViews
    nothing: torch.Tensor | None = None
    """What it sees of no object, (1, 1, tokens, width); None where the adapter has learned that."""


@dataclass(frozen=True)
class PlacedBatch:
    """Backgrounds, and in each one or several objects where they were put."""

    backgrounds: torch.Tensor
    """(B, 3, H, W) in [0, 1]."""
    transparency: torch.Tensor | None
    """(B or 1, 1, H, W), or None where the backgrounds have none."""
    objects: tuple[tuple[PlacedObject, ...], ...]
    """From back to front; of each object one for each background."""
