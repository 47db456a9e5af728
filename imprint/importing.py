"""Importing large packages in less time, and with one sentence where one of them is missing."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .errors import ImprintError

UNUSED = ("peft", "scipy", "sklearn", "torchaudio", "torchvision")
"""Importing these took a quarter of the start-up time; of them only SciPy is used, and later."""


@contextmanager
def needs_diffusers() -> Iterator[None]:
    """Raise `ImprintError` if a package is missing inside: diffusers is an extra, since the nodes do not need it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImprintError(f"the package '{error.name}' is missing; pip install 'imprint[pipeline]'") from error


@contextmanager
def left_out(names: Sequence[str]) -> Iterator[None]:
    """Import as if these packages were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None makes Python's import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def collector_paused() -> Iterator[None]:
    """For importing and loading: walking the million objects made would cost the collector seconds, also at exit."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
