"""Clips with masks: DAVIS, YouTube-VOS and VIPSeg. A group is a clip; objects keep their numbers in all its frames."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from imprint.errors import ImprintError

from .archives import Place
from .items import PICTURES, Dropped, Group, Item, Source, first_folder, frame_number, open_mask, subfolders
from .settings import Prepare
from .shards import Record

MOST_OBJECTS = 255


def davis_groups(path: Place, _options: Prepare) -> Iterator[Group]:
    """DAVIS 2016 and 2017: [DAVIS/]JPEGImages/RESOLUTION/SEQUENCE/NNNNN.jpg and Annotations/... .png.

    Values are objects, or 0 and 255 (2016). Of several resolutions the first by name, 480p, is read.
    """
    images = first_folder(path / "JPEGImages", path / "DAVIS" / "JPEGImages")
    if images is None or not subfolders(images):
        raise ImprintError(f"{path} has no JPEGImages/RESOLUTION; --input is DAVIS's own folder")
    resolution = subfolders(images)[0]
    for sequence in subfolders(resolution):
        yield _clip(sequence, images.parent / "Annotations" / resolution.name / sequence.name, None)


def youtube_vos_groups(path: Place, _options: Prepare) -> Iterator[Group]:
    """YouTube-VOS: [train/]JPEGImages/VIDEO/NNNNN.jpg, Annotations/VIDEO/NNNNN.png (palette) and meta.json.

    meta.json is {"videos": {VIDEO: {"objects": {"1": {"category": ..., "frames": [...]}}}}}; other values are
    not objects. Frame numbers are the video's own at 30 per second, of which every fifth is present: a pair at most 7
    apart consists of neighbours.
    """
    root = first_folder(path / "train" / "JPEGImages", path / "JPEGImages")
    if root is None:
        raise ImprintError(f"{path} has no train/JPEGImages and no JPEGImages; --input is YouTube-VOS's own folder")
    root = root.parent
    objects = _read_json(
        root / "meta.json", lambda table: {name: _numbers(clip) for name, clip in table["videos"].items()}
    )
    found = {folder.name for folder in subfolders(root / "JPEGImages")}
    for name in sorted(found | objects.keys()):
        yield _clip(root / "JPEGImages" / name, root / "Annotations" / name, objects.get(name, ()))


def _numbers(clip: dict) -> tuple[int, ...]:
    return tuple(int(number) for number in clip["objects"])


def vipseg_groups(path: Place, _options: Prepare) -> Iterator[Group]:
    """VIPSeg, as it comes or at 720p: imgs/ or images/VIDEO/N.jpg, panomasks/VIDEO/N.png, panoVIPSeg_categories.json.

    A mask's value is a category (up to 124: no single thing) or category x 100 + instance; the JSON's ids are one
    lower, and its `isthing` marks the categories whose instances are things. File names are numbered differently in
    each video, so a frame's number is its index in the clip.
    """
    roots = [folder for folder in (path, path / "VIPSeg", path / "VIPSeg_720P") if (folder / "panomasks").is_dir()]
    images = first_folder(*(root / name for root in roots for name in ("imgs", "images")))
    if images is None:
        raise ImprintError(f"{path} has no panomasks beside imgs or images; --input is VIPSeg's own folder")
    root = images.parent
    things = _read_json(
        root / "panoVIPSeg_categories.json", lambda table: tuple(entry["id"] + 1 for entry in table if entry["isthing"])
    )
    for video in subfolders(images):
        yield _clip(video, root / "panomasks" / video.name, things)


def _read_json(path: Place, use: Callable[[Any], Any]) -> Any:
    """Apply `use` to a JSON file. Raises `ImprintError` if the file is missing or has another form."""
    try:
        return use(json.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImprintError(
            f"{path} cannot be used ({error!r}); it comes with the data set and lies beside its folders"
        ) from error


def _clip(images: Place, masks: Place, known: tuple[int, ...] | None) -> Group:
    count = len(list(images.iterdir())) if images.is_dir() else 1
    return Group(images.name, size=count, data=(images, masks, known))


def _read_clip(
    group: Group, options: Prepare, source: str, labels: Callable, numbered: bool = True
) -> Iterator[Item | Dropped]:
    """Frames of a clip with the masks of the same name; `labels` converts a mask's values to object numbers."""
    images, masks, known = group.data
    if not images.is_dir():
        raise Dropped("no such clip", images, "named by meta.json")
    seen: dict[int, int] = {}
    for place, picture in enumerate(sorted(images.iterdir())):
        try:
            frame = frame_number(picture)
        except Dropped as dropped:
            yield dropped
            continue
        record = Record(group.name, group.name, frame if numbered else place, source, options.licence)
        yield Item(record, picture, functools.partial(_labels, masks / f"{picture.stem}.png", labels, known, seen))
    pictures = {picture.stem for picture in images.iterdir() if picture.suffix.lower() in PICTURES}
    for mask in sorted(masks.iterdir()) if masks.is_dir() else ():
        if mask.stem not in pictures:
            yield Dropped("mask without a picture", mask)


def _labels(path: Place, labels: Callable, known: tuple[int, ...] | None, seen: dict[int, int]) -> np.ndarray:
    values = np.asarray(open_mask(path, path))
    if values.ndim != 2:
        raise Dropped("broken mask", path, f"{values.shape} values; one per pixel was expected")
    return labels(values.astype(np.int64), known, seen)


def _davis_labels(values: np.ndarray, _known: None, _seen: dict[int, int]) -> np.ndarray:
    """255 is the object if there is no other value, otherwise unknown ground."""
    alone = np.isin(values, (0, 255)).all()
    return np.where(values == 255, int(alone), values).astype(np.uint8)


def _youtube_vos_labels(values: np.ndarray, known: tuple[int, ...], _seen: dict[int, int]) -> np.ndarray:
    return np.where(np.isin(values, known), values, 0).astype(np.uint8)


def _vipseg_labels(values: np.ndarray, things: tuple[int, ...], seen: dict[int, int]) -> np.ndarray:
    """Instances of things, numbered by their first appearance in the clip."""
    labels = np.zeros(values.shape, np.uint8)
    for value in np.unique(values[values > 124]).tolist():
        if value // 100 in things and seen.setdefault(value, len(seen) + 1) <= MOST_OBJECTS:
            labels[values == value] = seen[value]
    return labels


SOURCES = {
    "davis": Source(davis_groups, functools.partial(_read_clip, source="DAVIS", labels=_davis_labels)),
    "youtube-vos": Source(
        youtube_vos_groups, functools.partial(_read_clip, source="YouTube-VOS", labels=_youtube_vos_labels)
    ),
    "vipseg": Source(
        vipseg_groups, functools.partial(_read_clip, source="VIPSeg", labels=_vipseg_labels, numbered=False)
    ),
}
