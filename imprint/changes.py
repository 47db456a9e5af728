"""What a model may change of the object, where it can be told so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .fields import require

if TYPE_CHECKING:
    from .config import ImprintConfig

CHANGES = {"keep": (0, 0), "light": (1, 0), "pose": (0, 1), "both": (1, 1)}
"""What a model may change of the object, light and pose: ControlCom's indicator (arXiv 2308.10040, section 3), for
blending, harmonisation, view synthesis and composition."""


def require_change(change: str | None, config: ImprintConfig) -> None:
    """Raise `ImprintError` unless it is one of `CHANGES` and the model can be told so, or None."""
    known = ", ".join(CHANGES)
    require(change is None or change in tuple(CHANGES), f"change is {change!r}; it must be one of {known}")
    require(
        change is None or config.changes,
        f"change is {change!r}, but this checkpoint cannot be told what to change of the object, as ControlCom's can; "
        "take one of ControlCom's, or leave change out",
    )
