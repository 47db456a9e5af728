"""What a data set's reader gives: groups of pictures that stay together, and the pictures of a group."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imprint.errors import ImprintError
from imprint.images import alpha_to_tensor, mask_to_tensor, open_image

from .archives import PICTURES, Place
from .settings import Prepare
from .shards import Record


class Dropped(Exception):
    """Something is left out. `reason` is what is counted, `what` the thing's name, `detail` what was found."""

    def __init__(self, reason: str, what: object = "", detail: object = ""):
        super().__init__(reason)
        self.reason, self.what, self.detail = reason, str(what), str(detail)


@dataclass(frozen=True)
class Group:
    """What stays together: a clip, an object's views, a portrait session, a picture. Nothing is opened to list it."""

    name: str
    """Unique in the source; decides in which shard it lies."""
    size: int = 1
    """About how many pictures it holds."""
    data: Any = None
    """What the reader needs to find them; it travels to another process."""
    key: str = ""
    """Groups of one key are on one side of the split; by default the name."""


@dataclass(frozen=True)
class Item:
    """One picture, not opened yet."""

    record: Record
    picture: Place | Image.Image
    """A file, or a rendered RGBA cut-out."""
    mask: Callable[[], np.ndarray] | None = None
    """Gives (H, W) uint8, 0 = background, n = the n-th object; or float32, the one object's alpha in [0, 1]."""
    own_alpha: bool = False
    """Whether the picture's own transparency, where it has any, is its mask."""
    cutout: bool = False
    """Whether it is kept as a cut-out, with room around it; else one gets a ground, as a photo has."""
    text: str = ""
    """Captions, one a line."""
    scene: Image.Image | None = None
    """RGB: the place whose light a rendered cut-out has."""

    @property
    def name(self) -> str:
        is_made = isinstance(self.picture, Image.Image)
        return f"{self.record.object} view {self.record.frame}" if is_made else str(self.picture)


@dataclass(frozen=True)
class Source:
    """A kind of data set."""

    groups: Callable[[Place, Prepare], Iterator[Group]]
    """Lists a folder; cheap. Raises `ImprintError` where the folder is not of that layout."""
    read: Callable[[Group, Prepare], Iterator[Item | Dropped]]
    """The pictures of a group, in a worker; raises `Dropped` where the group as a whole cannot be read."""
    bare: bool = False
    """Whether a picture without a usable object is kept, as a background."""
    licensed: bool = False
    """Whether the data set gives each picture's licence."""
    least: int = 1
    """Pictures that a group needs to be of use."""
    zipped: bool = True
    """Whether it is read from zips as well."""


def open_picture(path: Place) -> Image.Image:
    """A picture file, wherever it lies. Raises `ImprintError`."""
    if isinstance(path, Path):
        return open_image(path)
    try:
        return open_image(str(path), path.read_bytes())
    except OSError as error:
        raise ImprintError(f"{error}; download its zip again") from error


def open_mask(path: Place | None, what: object) -> Image.Image:
    """A mask file. Raises `Dropped`."""
    if path is None or not path.is_file():
        raise Dropped("no mask", what, path or "")
    try:
        return open_picture(path)
    except ImprintError as error:
        raise Dropped("broken mask", what, error) from error


def mask_of(image: Image.Image, what: object) -> np.ndarray:
    """(H, W) float32 in [0, 1]: a mask picture as `mask_to_tensor` reads it. Raises `Dropped` for several labels."""
    try:
        return mask_to_tensor(image)[0].numpy()
    except ImprintError as error:
        raise Dropped("broken mask", what, error) from error


def object_of(image: Image.Image, what: object) -> np.ndarray:
    """(H, W) float32 in [0, 1]: the alpha channel of an object on nothing, or else `mask_of`. Raises `Dropped`."""
    alpha = alpha_to_tensor(image)
    return mask_of(image, what) if alpha is None else alpha[0].numpy()


def frame_number(path: Place) -> int:
    """The number that a frame is named by. Raises `Dropped` for an odd file."""
    number = re.fullmatch(r"\d+", path.stem)
    if path.suffix.lower() not in PICTURES or not number:
        raise Dropped("odd file", path, "not a frame named by its number")
    return int(number[0])


def subfolders(path: Place) -> list[Place]:
    """The folders in a folder, in order."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir())


def first_folder(*paths: Place) -> Place | None:
    """The first of them that exists."""
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
    """The pictures of the folders, less those of the names in `exclude`. Raises `ImprintError` where none is left."""
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.name not in exclude]
    photos = tuple(path for path in files if path.suffix.lower() in kinds)
    if folders and not photos:
        raise ImprintError(f"{' and '.join(map(str, folders))} hold no {' or '.join(kinds)}; name folders of pictures")
    return photos
