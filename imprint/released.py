"""Reading third parties' released weights without executing anything in the files."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from .checkpoint import open_safetensors, tensors_in
from .errors import ImprintError
from .files import require_file, require_no_lfs_pointer

RELEASED = "a released checkpoint"


class Tensors:
    """A third-party file's tensors by name, with errors for missing ones."""

    def __init__(self, path: Path, named: Mapping[str, torch.Tensor], family: str):
        """family: the kinds whose files it may be, for messages."""
        self.path, self.named, self._family = path, named, family

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.named:
            raise ImprintError(
                f"{self.path} lacks the tensor '{name}', which every file of {self._family} has; it is another "
                "model's file, or incomplete: download it again, or give the file that the model's README names"
            )
        return self.named[name]

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The tensor's shape. Raises `ImprintError` unless it has this many dimensions."""
        shape = tuple(self[name].shape)
        if len(shape) != dimensions:
            raise ImprintError(
                f"{self.path}: '{name}' has shape {shape} where it has {dimensions} dimensions in every file of "
                f"{self._family}; it is another model's file"
            )
        return shape

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names start with the prefix, without it."""
        return {name[len(prefix) :]: tensor for name, tensor in self.named.items() if name.startswith(prefix)}

    def count(self, prefix: str) -> int:
        """The number of numbered modules after the prefix, by the highest number."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        return max((int(match[1]) + 1 for match in map(pattern.match, self.named) if match), default=0)


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Every tensor of a torch or safetensors file by name, left on disk where the format allows it.

    Raises `ImprintError` for a file that is missing, incomplete, or holds anything but weights; nothing in it is
    executed. A pickle is refused if this torch cannot read it safely: see `require_safe_pickles`.
    """
    path = Path(path)
    require_file(path, f"{RELEASED} (.pth, .ckpt, .safetensors)")
    require_no_lfs_pointer(path)
    if says_safetensors(path):
        with open_safetensors(path, RELEASED) as file:
            if str((file.metadata() or {}).get("format")).startswith("imprint"):
                raise ImprintError(f"{path} is Imprint's own; it is used as it is, without converting it")
            return tensors_in(file, path)
    if not _may_be_torch(path):
        raise ImprintError(
            f"{path} is not a torch file, perhaps the web page that it came from; give the released checkpoint "
            "(.pth, .ckpt, .safetensors) that the model's README names, or download it again"
        )
    require_safe_pickles(path)
    try:
        with _inert_classes():
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = re.search(r"(?:GLOBAL|global|class) ([\w.]+)", str(error))
        what = f"'{reason[1]}'" if reason else "something"
        raise ImprintError(
            f"{path} holds {what} that is not a weight and could run any code when opened, so it was not opened: "
            "download it again from its authors, or give a .safetensors file"
        ) from error
    except Exception as error:  # torch's reader raises many kinds of error on truncated or other files
        # Of its unpickler's other errors, such as "pop from empty list", none says anything about the file.
        reason = f" ({str(error).partition(chr(10))[0]})" if isinstance(error, (OSError, RuntimeError)) else ""
        raise ImprintError(
            f"{path} is truncated or not a torch file{reason}; give the released checkpoint (.pth, .ckpt, "
            ".safetensors) that the model's README names, or download it again"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, Mapping) else {}
    items = found.items() if isinstance(found, Mapping) else ()
    named = {name: value for name, value in items if isinstance(value, torch.Tensor) and isinstance(name, str)}
    if not named:
        raise ImprintError(f"{path} holds no tensors by name; give the file that the model's README names")
    return named


def require_safe_pickles(path: str | os.PathLike) -> None:
    """Raise `ImprintError` if this torch's `weights_only` reader can be made to run a file's code (CVE-2025-32434)."""
    if torch.__version__ < (2, 6):
        raise ImprintError(
            f"{path} is a pickle, and torch {torch.__version__} can be made to run code that is hidden in one; update "
            "torch to 2.6 or newer, or give a .safetensors file"
        )


def _may_be_torch(path: Path) -> bool:
    """Whether the first byte is a zip's, torch's present format, or a binary pickle's, its former one, or missing."""
    with path.open("rb") as file:
        return file.read(1) in (b"P", b"\x80", b"")


def _inert_classes() -> AbstractContextManager:
    """Let torch's safe reader skip what Lightning writes besides the weights, through stand-ins that do nothing."""
    names = (
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "dtype"),
    )
    nothing = {"__init__": lambda self, *_: None, "__setstate__": lambda self, _: None}
    stand_ins = [type(name, (), nothing | {"__module__": home, "__qualname__": name}) for home, name in names]
    return torch.serialization.safe_globals(stand_ins)


def says_safetensors(path: Path) -> bool:
    """Whether it is a safetensors file, by its first bytes or its name, as torch's reader does."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"
