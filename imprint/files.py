"""Nothing half-written: files appear under their names when they are whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from .errors import ImprintError

_PREFIX = ".imprint-"


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`. It takes the name of `path` when the block ends well, and goes when it does not.

    The folder is made if need be. Raises `OSError` where it cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own length: with the file's it could be too long for the folder.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with suppress(OSError):  # some shares refuse it, and are none the worse
            temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole text in UTF-8, or nothing. Raises `OSError` where the folder cannot be written to."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_writable(path: str | os.PathLike) -> None:
    """Make the folder if need be; raise `ImprintError` unless a file of this name can be written there."""
    path = Path(path)
    if os.path.isdir(path):
        raise ImprintError(f"{path} is a folder; give the name of a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.lstat()  # fails for a name that is too long
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_PREFIX, suffix=path.suffix):
            pass
    except (OSError, ValueError) as error:
        raise ImprintError(f"{path} cannot be written ({error}); choose another folder") from error


def unused(folder: Path, stem: str, suffix: str) -> Path:
    """The first of stem, stem-2, stem-3, ... that no file in the folder has."""
    names = (folder / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}" for number in count(1))
    return next(path for path in names if not os.path.lexists(path))


def same_file(path: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether two names are of one file that is there, also by a link."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False
