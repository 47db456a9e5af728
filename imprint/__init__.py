"""Imprint: put an object's photo into a background photo so that it belongs there.

Heavy libraries are imported when they are first needed, so that `import imprint` costs next to nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ImprintConfig": "config",
    "PRESETS": "config",
    "ImprintError": "errors",
    "ImprintPipeline": "pipeline",
    "Place": "positions",
    "Placement": "hole",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
