"""The pack's own socket types."""

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
    """An object: its tokens from the encoder, and its pictures, from which detail is restored."""

    tokens: torch.Tensor
    """float32 (1, views, tokens, width)."""
    views: ObjectViews
    nothing: torch.Tensor | None = None
    """The tokens of no object, (1, 1, tokens, width); None if the adapter has a learned embedding for it."""


@dataclass(frozen=True)
class PlacedBatch:
    """Backgrounds, each with one or several objects in their places."""

    backgrounds: torch.Tensor
    """(B, 3, H, W) in [0, 1]."""
    transparency: torch.Tensor | None
    """(B or 1, 1, H, W), or None if the backgrounds have none."""
    objects: tuple[tuple[PlacedObject, ...], ...]
    """From back to front; each object once per background."""
