"""Reading and writing files; a file appears under its name only when it is complete."""

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
    """A temporary path beside `path`, renamed to `path` if the block succeeds, and removed if it does not.

    A symbolic link stays, and its target is written. The folder is created if needed. Raises `OSError` if it cannot be
    written to.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A short name: one derived from the file's could be too long.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with suppress(OSError):  # some network shares refuse it, which does no harm
            temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write the whole text in UTF-8, or nothing. Raises `OSError` if the folder cannot be written to."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of an earlier run. Raises `ImprintError`, with the remedy, for anything else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, expected a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ImprintError(f"{path} cannot be read ({error}); {remedy}") from error
    return found


def require_file(path: str | os.PathLike, wanted: str) -> None:
    """Raise `ImprintError` unless the path is a file. wanted: which file to give instead, for the message."""
    if os.path.isfile(path):
        return
    folder, there = os.path.isdir(path), os.path.exists(path)
    found = " is a folder" if folder else " is a pipe or a device" if there else ": no such file"
    raise ImprintError(f"{path}{found}; give the path of {wanted}")


def require_no_lfs_pointer(path: str | os.PathLike) -> None:
    """Raise `ImprintError` if the file is a Git LFS pointer instead of the actual file."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LFS))
    except (OSError, ValueError):  # reported by whoever reads it
        return
    if start == _LFS:
        raise ImprintError(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in the clone, or download the file"
        )


def require_writable(path: str | os.PathLike) -> None:
    """Raise `ImprintError` unless a file of this name can be written; its folder may be missing and is not created."""
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise ImprintError(f"{path} is a folder; give the name of a file in it")
        if os.path.lexists(target) and not target.is_file():
            raise ImprintError(f"{path} is not a regular file; give another name")
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
    """The first of stem, stem-2, stem-3, ... that does not exist in the folder."""
    names = (folder / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}" for number in count(1))
    return next(path for path in names if not os.path.lexists(path))


def save_or_keep(save: Callable[[Path], None], path: Path, suffix: str, what: str) -> None:
    """`save(path)` for results that took time: if that fails, save under another name with this suffix.

    It is kept beside `path`, or else in the working folder or the one for temporary files, and the `ImprintError` says
    where.
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
    """Whether both paths exist and are the same file, also through links."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False
