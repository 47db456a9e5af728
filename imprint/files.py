"""Nothing half-written: files appear under their names when they are whole, or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from .errors import ImprintError

_PREFIX = ".imprint-"
_LFS = b"version https://git-lfs.github.com/spec/"


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`. It takes the name of `path` when the block ends well, and goes when it does not.

    Of a symbolic link the file that it leads to is written, and the link stays. The folder is made if need be. Raises
    `OSError` where it cannot be written to.
    """
    path = Path(os.path.realpath(path))
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


def read_json(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """The JSON object of a file that an earlier run left. Raises `ImprintError`, with the remedy, for anything else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, where names and values were expected")
    except (OSError, ValueError, RecursionError) as error:
        raise ImprintError(f"{path} cannot be read ({error}); {remedy}") from error
    return found


def require_no_lfs_pointer(path: str | os.PathLike) -> None:
    """Raise `ImprintError` where Git LFS's text about a file lies in the place of the file."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LFS))
    except (OSError, ValueError):  # told by whoever reads it
        return
    if start == _LFS:
        raise ImprintError(
            f"{path} is Git LFS's pointer to a file, not the file; run `git lfs pull` where it was cloned, or download "
            "it"
        )


def require_writable(path: str | os.PathLike) -> None:
    """Raise `ImprintError` unless a file of this name can be written; its folder may be missing, and is not made."""
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise ImprintError(f"{path} is a folder; give the name of a file in it")
        if os.path.lexists(target) and not target.is_file():
            raise ImprintError(f"{path} leads to what is no file; give another name")
        there = next(filter(os.path.lexists, target.parents), target.parent)
        for name in target.relative_to(there).parts:
            with suppress(FileNotFoundError):
                (there / name).lstat()  # fails for a name that is too long
        with tempfile.NamedTemporaryFile(dir=there, prefix=_PREFIX, suffix=target.suffix):
            pass
    except ImprintError:
        raise
    except (OSError, ValueError) as error:
        raise ImprintError(f"{path} cannot be written ({error}); choose another folder") from error


def unused(folder: Path, stem: str, suffix: str) -> Path:
    """The first of stem, stem-2, stem-3, ... that no file in the folder has."""
    names = (folder / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}" for number in count(1))
    return next(path for path in names if not os.path.lexists(path))


def save_or_keep(save: Callable[[Path], None], path: Path, suffix: str, what: str) -> None:
    """`save(path)` for what took time to make: where that fails, it is kept under another name with this suffix.

    It lies beside `path`, or else in the working folder or the one for temporary files, and the `ImprintError` names
    it.
    """
    try:
        save(path)
    except ImprintError as error:
        for folder in (path.parent, Path.cwd(), Path(tempfile.gettempdir())):
            kept = unused(folder, "imprint-kept", suffix)
            try:
                save(kept)
            except ImprintError:
                continue
            raise ImprintError(f"{error}; {what} is kept as {kept}") from error
        raise


def same_file(path: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether two names are of one file that is there, also by a link."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False
