"""What a model may change of the object, for models with this choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import require_one_of
from .fields import require

if TYPE_CHECKING:
    from .config import ImprintConfig

CHANGES = {"keep": (0, 0), "light": (1, 0), "pose": (0, 1), "both": (1, 1)}
"""What a model may change of the object, light and pose: ControlCom's indicator (arXiv 2308.10040, section 3), for
blending, harmonisation, view synthesis and composition."""


def require_change(change: str | None, config: ImprintConfig) -> None:
    """Raise `ImprintError` unless `change` is None, or one of `CHANGES` and the model has this choice."""
    if change is None:
        return
    require_one_of("change", change, CHANGES)
    require(
        config.changes,
        f"change is {change!r}, but this checkpoint has no choice of what to change, as ControlCom's has; "
        "use one of ControlCom's, or leave change out",
    )
