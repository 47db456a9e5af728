"""Pictures with captions, for the adapter's warm-up: COCO's captions, text files beside pictures, or a model's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from imprint.errors import ImprintError
from imprint.images import to_srgb

from .archives import Place
from .describing import describe
from .items import PICTURES, Dropped, Group, Item, Source, open_picture
from .settings import Prepare
from .shards import Record
from .stills import STILL, coco_tables, reading_coco


def caption_groups(path: Place, _options: Prepare) -> Iterator[Group]:
    """COCO's captions (see `coco_tables`), or else pictures at any depth with NAME.txt beside them, a caption per line.

    COCO 2017 names its pictures by their number, so that a caption file without a table of pictures will do.
    """
    if (path / "captions.json").is_file() or any(path.glob("annotations/captions_*.json")):
        for table, folder in coco_tables(path, "captions"):
            with reading_coco(folder):
                yield from _coco_pictures(table, folder)
        return
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        if file.suffix.lower() != ".txt":
            yield Group(file.relative_to(path).as_posix(), data=(file, path.resolve().name, file.with_suffix(".txt")))
        elif not any(file.with_suffix(ending).is_file() for ending in PICTURES):
            yield Group(file.relative_to(path).as_posix(), data=(file, "", []))


def _coco_pictures(table: dict, folder: Place) -> Iterator[Group]:
    captions = defaultdict(list)
    for entry in table["annotations"]:
        captions[entry["image_id"]].append(" ".join(entry["caption"].split()))
    named = {entry["id"]: entry["file_name"] for entry in table.get("images", ())}
    names = {number: named.get(number, f"{number:012d}.jpg") for number in sorted(named.keys() | captions.keys())}
    for number, name in names.items():
        yield Group(Path(name).stem, data=(folder / name, "COCO 2017", captions[number]))
    for file in sorted(set(folder.glob("*")) - {folder / name for name in names.values()}):
        yield Group(file.name, data=(file, "COCO 2017", []))


def read_captions(group: Group, options: Prepare) -> Iterator[Item]:
    picture, source, captions = group.data
    if picture.suffix.lower() == ".txt":
        raise Dropped("caption without a picture", picture)
    if picture.suffix.lower() not in PICTURES:
        raise Dropped("odd file", picture, "no picture")
    if not isinstance(captions, list):
        captions = _lines(captions)
    if not captions and options.describe:
        try:
            shown = to_srgb(open_picture(picture))
        except ImprintError as error:
            raise Dropped("broken picture", picture, error) from error
        captions = [describe(shown, options.describe, options.describe_model)]
    if not captions:
        raise Dropped("no caption", picture)
    yield Item(Record(group.name, group.name, 0, source, options.licence, STILL), picture, text="\n".join(captions))


def _lines(path: Place) -> list[str]:
    """The lines of a text file that say something; none where there is no such file. Raises `Dropped`."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise Dropped("broken caption", path, error) from error


SOURCES = {"captions": Source(caption_groups, read_captions, bare=True)}
