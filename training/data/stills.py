"""Pictures with objects: COCO, PPR10K, and any folder of pictures (Pixabay and the like)."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from imprint.errors import ImprintError

from .archives import Place
from .items import PICTURES, Dropped, Group, Item, Source, first_folder, mask_of, object_of, open_mask, open_picture
from .settings import Prepare
from .shards import Record

STILL = (0, 0)  # a still makes no pair with another picture
MASK_ENDINGS = (".mask.png", "_mask.png", "-mask.png")
JPEG = (".jpg", ".jpeg", ".JPG", ".JPEG")
MASK_FOLDERS = ("masks", "mask")


# --- COCO ------------------------------------------------------------------------------------------------------------


def coco_tables(path: Place, kind: str) -> Iterator[tuple[dict, Place]]:
    """The annotation files of a COCO folder and their pictures' folders.

    annotations/KIND_train2017.json with train2017/ (the data set's own layout), or KIND.json with images/. `kind` is
    instances or captions. Raises `ImprintError` where there is none, or one cannot be read.
    """
    files = [
        (file, path / file.stem.removeprefix(f"{kind}_")) for file in sorted(path.glob(f"annotations/{kind}_*.json"))
    ]
    if (path / f"{kind}.json").is_file():
        files.append((path / f"{kind}.json", path / "images"))
    if not files:
        raise ImprintError(f"{path} has no annotations/{kind}_*.json and no {kind}.json; --input is COCO's own folder")
    for file, folder in files:
        try:
            table = json.loads(file.read_text(encoding="utf-8-sig"))
            table["annotations"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImprintError(f"{file} is not a COCO annotation file ({error!r})") from error
        yield table, first_folder(folder) or path / "images"


@contextmanager
def reading_coco(folder: Place) -> Iterator[None]:
    """Raises `ImprintError` where a file of annotations turns out to be of another form while it is read."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImprintError(
            f"the annotations of {folder} are not as COCO's ({error!r}); download their file again, or repair it"
        ) from error


def coco_groups(path: Place, _options: Prepare) -> Iterator[Group]:
    """COCO: `coco_tables`, with polygons or run lengths, compressed or not. Crowds are not objects.

    A picture's own licence is taken where the file has a table of them.
    """
    for table, folder in coco_tables(path, "instances"):
        with reading_coco(folder):
            yield from _coco_pictures(table, folder)


def _coco_pictures(table: dict, folder: Place) -> Iterator[Group]:
    licences = {entry["id"]: entry["name"] for entry in table.get("licenses", ())}
    objects = defaultdict(list)
    for entry in table["annotations"]:
        objects[entry["image_id"]].append((entry["area"], bool(entry.get("iscrowd")), entry["segmentation"]))
    for entry in table["images"]:
        # The largest is drawn first: smaller things usually lie in front of it.
        shapes = sorted(objects[entry["id"]], key=lambda shape: -shape[0])
        size = entry["height"], entry["width"]
        yield Group(
            Path(entry["file_name"]).stem,
            data=(folder / entry["file_name"], size, shapes, licences.get(entry.get("license"))),
        )


def read_coco(group: Group, options: Prepare) -> Iterator[Item | Dropped]:
    picture, size, shapes, licence = group.data
    for _, crowd, _ in shapes:
        if crowd:
            yield Dropped("crowd", picture)
    record = Record(group.name, group.name, 0, "COCO 2017", licence or options.licence, STILL)
    objects = [shape for _, crowd, shape in shapes if not crowd]
    yield Item(record, picture, functools.partial(_coco_labels, picture, size, objects) if objects else None)


def _coco_labels(picture: Place, size: tuple[int, int], shapes: list) -> np.ndarray:
    try:
        labels = np.zeros(size, np.uint8)
        for number, shape in enumerate(shapes[:255], start=1):
            labels[polygons(shape, size) if isinstance(shape, list) else run_lengths(shape["counts"], size)] = number
    except Exception as error:  # Pillow and NumPy fail in many ways on what is no outline
        raise Dropped("broken mask", picture, repr(error)) from error
    return labels


def polygons(shapes: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """COCO's polygons, each x0, y0, x1, ... -> (H, W) bool. Raises `ValueError` for other than pairs."""
    mask = Image.new("1", size[::-1])
    for shape in shapes:
        ImageDraw.Draw(mask).polygon(shape, fill=1)
    return np.asarray(mask)


def run_lengths(counts: list[int] | str, size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths, down the columns and from background on -> (H, W) bool.

    A string packs each count into characters of five bits and one that says whether more follow, the lowest first; from
    the fourth on it is the difference to the count two before. Raises `ValueError` where the runs do not fill the size.
    """
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(counts)} pixels for {size[0]} x {size[1]}")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(size[::-1]).T


def _unpacked(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in text.encode():
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


# --- PPR10K ----------------------------------------------------------------------------------------------------------


def ppr10k_groups(path: Place, _options: Prepare) -> Iterator[Group]:
    """PPR10K at 360p: target_a/GROUP_PHOTO.tif (retouched by expert a; 8-bit) and masks/ or masks_360p/GROUP_PHOTO.png.

    target_a may lie at any depth (train/, val/, train_val_images_tif_360p/); masks beside it, in a folder above it or
    beside the one given. A group is a session of one person, and stays on one side of the split.
    """
    folders = sorted(folder for folder in path.rglob("target_a") if folder.is_dir())
    if not folders:
        raise ImprintError(f"{path} has no folder target_a; --input is PPR10K's folder of 360p pictures")
    sessions = defaultdict(list)
    for folder in folders:
        above = [parent for parent in folder.parents if parent == path.parent or path in (parent, *parent.parents)]
        names = [name for mask in ("masks", "masks_360p") for name in (f"{mask}/{folder.parent.name}", mask)]
        masks = first_folder(*(parent / name for parent in above for name in names))
        for picture in sorted(folder.iterdir()):
            sessions[picture.stem.partition("_")[0]].append((picture, masks and masks / f"{picture.stem}.png"))
    for name, pictures in sorted(sessions.items()):
        yield Group(name, size=len(pictures), data=pictures)


def read_ppr10k(group: Group, options: Prepare) -> Iterator[Item | Dropped]:
    for picture, mask in group.data:
        if picture.suffix.lower() not in PICTURES:
            yield Dropped("odd file", picture)
            continue
        record = Record(picture.stem, picture.stem, 0, "PPR10K", options.licence, STILL)
        yield Item(record, picture, lambda mask=mask, picture=picture: mask_of(open_mask(mask, picture), picture))


# --- a folder --------------------------------------------------------------------------------------------------------


def reports(masks: Place) -> tuple[Place, Place]:
    """Where `training.cutout` says what it wrote into a folder of masks: a list, and a contact sheet."""
    return masks / "cutout.json", masks / "cutout.png"


def folder_groups(path: Place, _options: Prepare | None = None) -> Iterator[Group]:
    """Pictures in a folder, at any depth, with or without objects.

    The object of NAME.jpg is NAME.mask.png, NAME_mask.png or NAME-mask.png beside it, a grey or transparent NAME.png
    beside it, or NAME.png of the folder masks/ or mask/ (at the same depth below it as the picture is below PATH or
    PATH/images); or the picture's own transparency: a cut-out, which gets room around it and a grey ground. A mask with
    a palette numbers several objects, any other is white on black. Pictures without are backgrounds.
    """
    root = first_folder(path / "images") or path
    masks = first_folder(*(path / name for name in MASK_FOLDERS))
    used = set()
    files = sorted(entry for entry in root.rglob("*") if entry.is_file())
    beside = {png.with_suffix(ending): png for png in files if png.suffix == ".png" for ending in JPEG}
    beside = {file: beside[file] for file in files if file in beside and _is_mask(beside[file])}
    for file in files:
        if file.name.endswith(MASK_ENDINGS) or file in beside.values() or (masks and masks in file.parents):
            continue
        places = [file.with_name(file.stem + ending) for ending in MASK_ENDINGS]
        if file in beside:
            places.append(beside[file])
        if masks:
            places.append(masks / file.relative_to(root).with_suffix(".png"))
        mask = next((place for place in places if place.is_file()), None)
        used.add(mask)
        yield Group(file.relative_to(root).as_posix(), data=(file, mask))
    found = {mask for ending in MASK_ENDINGS for mask in root.rglob(f"*{ending}")}
    found |= {mask for mask in masks.rglob("*") if mask.is_file()}.difference(reports(masks)) if masks else set()
    for mask in sorted(found - used):
        yield Group(mask.relative_to(path).as_posix(), data=(None, mask))


def read_folder(group: Group, options: Prepare) -> Iterator[Item]:
    picture, mask = group.data
    if picture is None:
        raise Dropped("mask without a picture", mask)
    if picture.suffix.lower() not in PICTURES:
        raise Dropped("odd file", picture, "no picture")
    name = group.name.removesuffix(picture.suffix)
    record = Record(name, name, 0, options.input.resolve().name, options.licence, STILL)
    yield Item(record, picture, mask and functools.partial(folder_mask, picture, mask), own_alpha=mask is None)


def folder_mask(picture: Place, mask: Place) -> np.ndarray:
    """(H, W): the mask file of a picture: its palette's numbers, or one object's alpha. Raises `Dropped`."""
    image = open_mask(mask, picture)
    if image.mode == "P" and not image.has_transparency_data:
        return np.asarray(image)
    return object_of(image, mask) if mask.stem == picture.stem else mask_of(image, mask)


def _is_mask(png: Place) -> bool:
    """Whether the PNG beside a photo of its name shows where the object is: it is grey, or transparent somewhere."""
    try:
        image = open_picture(png)
    except ImprintError:
        return False
    grey = image.mode in ("1", "L", "P") or image.mode.startswith("I")
    return grey or image.has_transparency_data or not image.convert("RGB").convert("HSV").getextrema()[1][1]


SOURCES = {
    "coco": Source(coco_groups, read_coco, bare=True, licensed=True),
    "ppr10k": Source(ppr10k_groups, read_ppr10k, bare=True),
    "pixabay": Source(folder_groups, read_folder, bare=True),
    "folder": Source(folder_groups, read_folder, bare=True),
}
