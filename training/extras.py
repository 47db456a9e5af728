"""Packages that some commands alone need: each comes with one of the extras of pyproject.toml."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from imprint.errors import ImprintError


def from_extra(package: str, extra: str, what: str) -> ModuleType:
    """A package of an extra. Raises `ImprintError` where it cannot be imported; what: needs it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImprintError(f'{what} needs the package {package} ({error}): pip install ".[{extra}]"') from error
