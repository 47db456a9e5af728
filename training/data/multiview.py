"""Several photos of one object: MVImgNet, and own folders."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from .archives import Place
from .items import PICTURES, Dropped, Group, Item, Source, object_of, open_mask, subfolders
from .settings import Prepare
from .shards import ANY_GAP, Record
from .stills import MASK_ENDINGS, MASK_FOLDERS, folder_mask

VIEW_GAP = 8  # AnyDoor: the views of a pair are at least an eighth of the object's frames apart
ASIDE = ("_bbox.png", "_rmobj.jpg")
"""Endings of MureCom's other files beside an object's photos: boxes, and photos without it."""
RELIT = "_aug"
"""Ending of its folders with copies in other lights."""


# --- MVImgNet --------------------------------------------------------------------------------------------------------


def mvimgnet_groups(path: Place, options: Prepare) -> Iterator[Group]:
    """MVImgNet: CLASS/OBJECT/images/NNN.jpg. Masks are looked for in three places:

    OBJECT/masks/NNN.png or NNN.jpg.png (as in MVImgNet 2.0), or OBJECT itself; mask/ or masks/CLASS/OBJECT/NNN.jpg.png
    or NNN.png beside the classes or beside their folder; images/NNN_anything.png, the cut-out (as read by
    AnyDoor). For a mask without an alpha channel its brightness is used.
    """
    for category in subfolders(path):
        if category.name in MASK_FOLDERS:
            continue
        for thing in subfolders(category):
            if (thing / "images").is_dir():
                name = f"{category.name}/{thing.name}"
                beside = (base / masks / name for base in (path, path.parent) for masks in MASK_FOLDERS)
                folders = [thing / "masks", *(folder for folder in beside if folder.is_dir()), thing]
                yield Group(name, size=options.render.views, data=(thing, folders))


def read_mvimgnet(group: Group, options: Prepare) -> Iterator[Item | Dropped]:
    """`--views` evenly spaced frames; a frame's number is its index among all of the object's."""
    thing, folders = group.data
    files = sorted(entry for entry in (thing / "images").iterdir() if entry.is_file())
    frames = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg")]
    for file in files:
        if file.suffix.lower() not in PICTURES:
            yield Dropped("odd file", file)
    gap = (max(1, len(frames) // VIEW_GAP), max(1, len(frames)))
    count = min(options.render.views, len(frames))
    for place in (index * len(frames) // count for index in range(count)):
        picture = frames[place]
        record = Record(group.name, group.name, place, "MVImgNet", options.licence, gap)
        yield Item(record, picture, functools.partial(_view_mask, picture, folders))


def _view_mask(picture: Place, folders: list[Place]) -> np.ndarray:
    places = [folder / name for folder in folders for name in (f"{picture.name}.png", f"{picture.stem}.png")]
    places += sorted(picture.parent.glob(f"{picture.stem}_*.png"))
    return object_of(open_mask(next((place for place in places if place.is_file()), None), picture), picture)


# --- one's own -------------------------------------------------------------------------------------------------------


def object_groups(path: Place, _options: Prepare) -> Iterator[Group]:
    """Folders of pictures of one object each, at any depth: OBJECT/NN.png with transparency (cut-outs, which get room
    around them), or OBJECT/NN.jpg with the mask NN.mask.png (NN_mask.png, NN-mask.png) or NN.png beside it.

    So are MureCom's fg1, fg2 and fg3, of which NN_bbox.png, NN_rmobj.jpg and NN_aug/ are left out, and bg. Any two
    pictures of an object make a pair. Cut-outs are for --cutouts, photos with masks for both.
    """
    homes = defaultdict(list)
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        homes[file.parent].append(file)
    for home, files in homes.items():
        if home != path and not home.name.endswith(RELIT) and any(file.suffix.lower() in PICTURES for file in files):
            yield Group(home.relative_to(path).as_posix(), size=len(files), data=files)


def read_objects(group: Group, options: Prepare) -> Iterator[Item | Dropped]:
    """An object's pictures, numbered in the order of their names."""
    files, used = group.data, set()
    names = {file.name: file for file in files}
    photos = {file.stem for file in files if file.suffix.lower() in PICTURES and file.suffix.lower() != ".png"}
    source = options.input.resolve().name
    for number, file in enumerate(files):
        png = file.suffix.lower() == ".png"
        if file.name.endswith(MASK_ENDINGS) or (png and file.stem in photos):
            continue
        if file.name.endswith(ASIDE):
            yield Dropped("aside: a box, or a photo without the object", file)
            continue
        if file.suffix.lower() not in PICTURES:
            yield Dropped("odd file", file)
            continue
        masks = [names.get(f"{file.stem}{ending}") for ending in (*MASK_ENDINGS, *([] if png else [".png"]))]
        mask = next((mask for mask in masks if mask), None)
        used.add(mask)
        record = Record(group.name, group.name, number, source, options.licence, ANY_GAP)
        yield Item(record, file, mask and functools.partial(folder_mask, file, mask), cutout=mask is None)
    for file in files:
        if file.name.endswith(MASK_ENDINGS) and file not in used:
            yield Dropped("mask without a picture", file)


SOURCES = {
    "mvimgnet": Source(mvimgnet_groups, read_mvimgnet, least=2),
    "objects": Source(object_groups, read_objects),
}
