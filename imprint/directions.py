"""What users may ask of the light: a direction, in words or degrees, and strengths. Torch is not imported."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import ImprintError, require_number

ROUND = {
    name: index * 45.0
    for index, name in enumerate(
        ("behind", "behind right", "right", "front right", "front", "front left", "left", "behind left")
    )
}
"""Degrees around the object, clockwise as seen from above: 0 is behind it, 180 the camera's side."""
DIRECTIONS = ("auto", *ROUND, "above")
"""The accepted words; auto: as estimated by the network."""
HEIGHT = 40.0
"""Default elevation in degrees. Training data rarely have light with a clear direction below 25."""
CLEAR = 0.75
"""Length of the vector for directed light, such as sun and sky together: 1 is a single lamp in the dark, 0 uniform
light from all sides."""
STRENGTHS = (0.0, 1.5)
"""Least and most strength of light and shadow; 0 is off exactly, 1 what the network says."""


def light_direction(where: str | float | Sequence[float]) -> tuple[float, float, float] | None:
    """A word of `DIRECTIONS`, degrees about the object as in `ROUND`, or these and degrees above the horizon ("270,30")
    -> the vector (x to the right, y up, z to the camera) of `imprint.lightnet.LightNet.forward`; None for auto.

    Raises `ImprintError` for anything else.
    """
    word = " ".join(where.lower().replace("-", " ").replace("_", " ").split()) if isinstance(where, str) else None
    if word == "auto":
        return None
    if word == "above":
        around, height = 0.0, 90.0
    elif word in ROUND:
        around, height = ROUND[word], HEIGHT
    else:
        around, height = _degrees(where)
    across, height = math.radians(around), math.radians(height)
    level = CLEAR * math.cos(height)
    return level * math.sin(across), CLEAR * math.sin(height), -level * math.cos(across)


def require_strengths(light: float, shadow: float, softness: float, light_from: str | float = "auto") -> None:
    """Raise `ImprintError` unless the first three are numbers within their ranges and the last is a direction."""
    require_number("light", light, *STRENGTHS)
    require_number("shadow", shadow, *STRENGTHS)
    require_number("softness", softness, 0, 1)
    light_direction(light_from)


def _degrees(where: str | float | Sequence[float]) -> tuple[float, float]:
    parts = where.split(",") if isinstance(where, str) else where if isinstance(where, (list, tuple)) else [where]
    try:
        around, height = map(float, [*parts, HEIGHT] if len(parts) == 1 else parts)
        if math.isfinite(around) and 0 <= height <= 90 and not any(isinstance(part, (bool, bytes)) for part in parts):
            return around, height
    except (TypeError, ValueError, OverflowError):  # reported below
        pass
    raise ImprintError(
        f"light_from is {where!r}; it must be one of {', '.join(DIRECTIONS)}, or degrees around the object, clockwise "
        "from behind it, and optionally degrees above the horizon (0 to 90), such as 270,30"
    )
