"""What a data set's reader returns: groups of pictures that stay together, and the pictures of a group."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imprint.errors import ImprintError
from imprint.images import open_image
from imprint.mask_reading import alpha_to_tensor, mask_to_tensor

from .archives import PICTURES, Place
from .settings import Prepare
from .shards import Record


class Dropped(Exception):
    """Something is dropped. `reason` is counted, `what` is the dropped item's name, `detail` what was found."""

    def __init__(self, reason: str, what: object = "", detail: object = ""):
        super().__init__(reason)
        self.reason, self.what, self.detail = reason, str(what), str(detail)


@dataclass(frozen=True)
class Group:
    """Pictures that stay together: a clip, an object's views, a portrait session. Listing it opens no file."""

    name: str
    """Unique in the source; determines the shard."""
    size: int = 1
    """Approximate number of pictures."""
    data: Any = None
    """What the reader needs to find them; it is sent to another process."""
    key: str = ""
    """Groups with the same key are on the same side of the split; by default the name."""


@dataclass(frozen=True)
class Item:
    """A picture, not opened yet."""

    record: Record
    picture: Place | Image.Image
    """A file, or a rendered RGBA cut-out."""
    mask: Callable[[], np.ndarray] | None = None
    """Returns (H, W) uint8, 0 = background, n = the n-th object; or float32, a single object's alpha in [0, 1]."""
    own_alpha: bool = False
    """Whether the picture's own transparency, if any, is its mask."""
    cutout: bool = False
    """Whether it is kept as a cut-out, padded; otherwise a cut-out gets a ground, to serve as a photo."""
    text: str = ""
    """Captions, one per line."""
    scene: Image.Image | None = None
    """RGB: the scene that lights a rendered cut-out."""

    @property
    def name(self) -> str:
        is_made = isinstance(self.picture, Image.Image)
        return f"{self.record.object} view {self.record.frame}" if is_made else str(self.picture)


@dataclass(frozen=True)
class Source:
    """A kind of data set."""

    groups: Callable[[Place, Prepare], Iterator[Group]]
    """Lists a folder; cheap. Raises `ImprintError` for a folder of another layout."""
    read: Callable[[Group, Prepare], Iterator[Item | Dropped]]
    """Reads the pictures of a group, in a worker; raises `Dropped` if the whole group cannot be read."""
    bare: bool = False
    """Whether a picture without a usable object is kept, as a background."""
    licensed: bool = False
    """Whether the data set provides each picture's licence."""
    least: int = 1
    """The smallest useful number of pictures in a group."""
    zipped: bool = True
    """Whether it can also be read from zips."""


def open_picture(path: Place) -> Image.Image:
    """Open a picture file, also in a zip. Raises `ImprintError`."""
    if isinstance(path, Path):
        return open_image(path)
    try:
        return open_image(str(path), path.read_bytes())
    except OSError as error:
        raise ImprintError(f"{error}; download its zip again") from error


def open_mask(path: Place | None, what: object) -> Image.Image:
    """Open a mask file. Raises `Dropped`."""
    if path is None or not path.is_file():
        raise Dropped("no mask", what, path or "")
    try:
        return open_picture(path)
    except ImprintError as error:
        raise Dropped("broken mask", what, error) from error


def mask_of(image: Image.Image, what: object) -> np.ndarray:
    """(H, W) float32 in [0, 1]: a mask picture as read by `mask_to_tensor`. Raises `Dropped` for several labels."""
    try:
        return mask_to_tensor(image)[0].numpy()
    except ImprintError as error:
        raise Dropped("broken mask", what, error) from error


def object_of(image: Image.Image, what: object) -> np.ndarray:
    """(H, W) float32 in [0, 1]: the alpha channel of a cut-out, otherwise `mask_of`. Raises `Dropped`."""
    alpha = alpha_to_tensor(image)
    return mask_of(image, what) if alpha is None else alpha[0].numpy()


def frame_number(path: Place) -> int:
    """The number in a frame's name. Raises `Dropped` for an unexpected file."""
    number = re.fullmatch(r"\d+", path.stem)
    if path.suffix.lower() not in PICTURES or not number:
        raise Dropped("odd file", path, "not a frame named by its number")
    return int(number[0])


def subfolders(path: Place) -> list[Place]:
    """The folders in a folder, in order."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir())


def first_folder(*paths: Place) -> Place | None:
    """The first of these paths that exists."""
    return next((path for path in paths if path.is_dir()), None)


def read_names(path: Path | None) -> frozenset[str]:
    """The words of a text file; none without a file. Raises `ImprintError`."""
    try:
        return frozenset(path.read_text(encoding="utf-8-sig").split()) if path else frozenset()
    except (OSError, ValueError) as error:
        raise ImprintError(f"{path} cannot be read ({error}); --exclude is a text file of names") from error


def read_photos(
    folders: Sequence[Path], exclude: Set[str], kinds: tuple[str, ...] = (".jpg", ".jpeg", ".png")
) -> tuple[Path, ...]:
    """The pictures in the folders, without the names in `exclude`. Raises `ImprintError` if none is left."""
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.name not in exclude]
    photos = tuple(path for path in files if path.suffix.lower() in kinds)
    if folders and not photos:
        raise ImprintError(f"{' and '.join(map(str, folders))} hold no {' or '.join(kinds)}; name folders of pictures")
    return photos
