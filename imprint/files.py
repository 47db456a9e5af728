"""Nothing half-written: files appear under their names when they are whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ImprintError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`. It takes the name of `path` when the block ends well, and goes when it does not.

    The folder is made if need be. Raises `OSError` where it cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole text, or nothing. Raises `OSError` where the folder cannot be written to."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def require_writable(path: str | os.PathLike) -> None:
    """Make the folder if need be; raise `ImprintError` unless a file of this name can be written there."""
    path = Path(path)
    if os.path.isdir(path):
        raise ImprintError(f"{path} is a folder; give the name of a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix):
            pass
    except (OSError, ValueError) as error:
        raise ImprintError(f"{path} cannot be written ({error}); choose another folder") from error
