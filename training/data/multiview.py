"""Several photos of one object: MVImgNet."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .items import PICTURES, Dropped, Group, Item, Source, object_of, open_mask, subfolders
from .settings import Prepare
from .shards import Record

VIEW_GAP = 8  # AnyDoor: the views of a pair are at least an eighth of the object's frames apart


def mvimgnet_groups(path: Path, options: Prepare) -> Iterator[Group]:
    """MVImgNet: CLASS/OBJECT/images/NNN.jpg. Masks are looked for in three places:

    OBJECT/masks/NNN.png or NNN.jpg.png (as in MVImgNet 2.0); mask/ or masks/CLASS/OBJECT/NNN.jpg.png or NNN.png
    beside the classes or beside their folder; images/NNN_anything.png, the object on nothing (as AnyDoor reads it).
    Of a mask without an alpha channel its brightness is taken.
    """
    for category in subfolders(path):
        if category.name in ("mask", "masks"):
            continue
        for thing in subfolders(category):
            if (thing / "images").is_dir():
                name = f"{category.name}/{thing.name}"
                yield Group(name, size=options.render.views, data=(thing, path))


def read_mvimgnet(group: Group, options: Prepare) -> Iterator[Item | Dropped]:
    """`--views` frames, spread evenly; a frame's number is its place among all of the object's."""
    thing, root = group.data
    files = sorted(entry for entry in (thing / "images").iterdir() if entry.is_file())
    frames = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg")]
    for file in files:
        if file.suffix.lower() not in PICTURES:
            yield Dropped("odd file", file)
    folders = [
        thing / "masks",
        *(base / name / group.name for base in (root, root.parent) for name in ("mask", "masks")),
    ]
    gap = (max(1, len(frames) // VIEW_GAP), max(1, len(frames)))
    count = min(options.render.views, len(frames))
    for place in (index * len(frames) // count for index in range(count)):
        picture = frames[place]
        record = Record(group.name, group.name, place, "MVImgNet", options.licence, gap)
        yield Item(record, picture, functools.partial(_view_mask, picture, folders))


def _view_mask(picture: Path, folders: list[Path]) -> np.ndarray:
    places = [folder / name for folder in folders for name in (f"{picture.name}.png", f"{picture.stem}.png")]
    places += sorted(picture.parent.glob(f"{picture.stem}_*.png"))
    return object_of(open_mask(next((place for place in places if place.is_file()), None), picture), picture)


SOURCES = {"mvimgnet": Source(mvimgnet_groups, read_mvimgnet, least=2)}
