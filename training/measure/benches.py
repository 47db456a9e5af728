"""Folders of tasks: path-traced ones whose truth is known, and the layouts of two benchmarks.

- Known truth: `NN_obj.png`, `NN_bg.png`, `NN_target.png`, `NN_alpha.png`, `NN_hole.png`, as described in `light`.
- MureCom (arXiv 2411.07462): `CATEGORY/fg1/N.jpg` with its mask `N.png`, and fg2, fg3; `CATEGORY/bg/N.jpg` with a white
  box on black in `N_bbox.png`, or, as in an earlier release, a line `CATEGORY N.jpg left top right bottom` for each in
  `bg/bbox.txt`. Every object goes into every background of its category.
- DreamEditBench (arXiv 2306.12624) in the layout of SHINE's authors: `SUBJECT/fg/NN.jpg` with `NN.png`, and
  `SUBJECT/bg/content.json`, a list of `{"image": NAME, "bbox": [left, top, right, bottom]}` in a picture squeezed to
  768 x 768.
- DreamEditBench's own backgrounds: `CLASS/bbox.json`, `{NAME: [left, top, right, bottom]}` in a picture squeezed to
  512 x 512. Its subjects, DreamBooth's, come without masks: they are read from `--subjects`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imprint.errors import ImprintError
from imprint.images import open_image
from imprint.mask_reading import mask_to_tensor

from .light import PARTS, LightTask, tasks_of
from .tasks import Box, Photo, Place, Scene, Task, photos_of, read_subjects, subject_tasks, tight_box

SHINE_FRAME, DREAMEDIT_FRAME = 768, 512  # pixels of the squares to which boxes refer
DREAMEDIT_CLASSES = {f"dog{number}": "dog" for number in (2, 3, 5, 6, 7, 8)} | {
    "cat2": "cat",
    "backpack_dog": "backpack",
    "colorful_sneaker": "sneaker",
    "shiny_sneaker": "sneaker",
}
"""Subjects whose backgrounds are in a folder of another name."""


def folder_tasks(folder: Path, subjects: Path | None = None) -> tuple[list[Task], dict[str, list[Photo]]]:
    """A folder's tasks, and their subjects' photos, which are empty for tasks with known truth.

    subjects: as for `read_subjects`, only for DreamEditBench's own backgrounds. Raises `ImprintError` for a folder in
    none of the layouts.
    """
    if not folder.is_dir():
        raise ImprintError(f"{folder}: no such folder; --tasks is a folder of tasks, such as MureCom's")
    if any(folder.glob(f"*_{PARTS[2]}.png")):
        _require(subjects is None, "tasks whose truth is known have their own objects; leave out --subjects")
        return [Task(name, name, partial(_known, folder, name)) for name in tasks_of(folder)], {}
    own_subjects, left_out = subjects is None, ""
    if any(folder.glob("*/bbox.json")):
        _require(not own_subjects, f"{folder} holds backgrounds alone: give their objects as --subjects")
        photos = read_subjects(subjects)
        places = _dreamedit(folder, photos)
    else:
        _require(
            own_subjects, f"--subjects go with DreamEditBench's bbox.json, which {folder} has none of; leave out one"
        )
        found = list(_murecom(folder)) + list(_shine(folder))
        photos = {name: own for name, own, _ in found if own}
        places = [places for name, own, places in found if own]
        left_out = _left_out(found)
    # One of each subject first, so that the first tasks cover all.
    boxes = [place for turn in zip_longest(*places) for place in turn if place is not None]
    if left_out and boxes:
        print(f"{folder}: left out are {left_out}", file=sys.stderr)
    if not boxes:
        raise ImprintError(
            f"{folder} holds no task, but {left_out}"
            if left_out
            else f"{folder} holds no task; known layouts are NN_target.png with NN_obj, NN_bg, NN_alpha and NN_hole, "
            "MureCom's CATEGORY/bg and fg1, and DreamEditBench's SUBJECT/bg/content.json with fg, or CLASS/bbox.json"
        )
    return subject_tasks(photos, boxes), photos


def _left_out(found: list[tuple[str, list[Photo], list[Place]]]) -> str:
    """Report which subjects have no task, and why."""
    why = {
        "without a photo that has its mask beside it (N.jpg and N.png)": [name for name, own, _ in found if not own],
        "without a background": [name for name, own, places in found if own and not places],
    }
    return " and ".join(
        f"{len(names)} of {len(found)} objects {reason}, such as {names[0]}" for reason, names in why.items() if names
    )


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise ImprintError(message)


def _known(folder: Path, name: str) -> Scene:
    task = LightTask.read(folder, name)
    layer, background, target, hole = (
        open_image(folder / f"{name}_{part}.png") for part in ("obj", "bg", "target", "hole")
    )
    layer, target = layer.convert("RGBA"), target.convert("RGB")
    box = layer.getchannel("A").getbbox()
    if box is None:
        raise ImprintError(f"{folder / f'{name}_obj.png'} is transparent everywhere; it is the object as it is placed")
    area = hole.convert("L").point(lambda value: 255 * (value > 127))
    return Scene(name, layer.crop(box), background.convert("RGB"), box, target.crop(box), area, task)


# --- benchmarks: (subject, its photos, its places) -------------------------------------------------------------------


def _murecom(folder: Path) -> Iterator[tuple[str, list[Photo], list[Place]]]:
    for category in _folders(folder):
        if (category / "bg/content.json").is_file():
            continue
        backgrounds = sorted((category / "bg").glob("*.jpg"), key=_number)
        listed = _bbox_txt(category / "bg/bbox.txt")
        for home in _folders(category):
            if re.fullmatch(r"fg\d*", home.name):
                name = f"{category.name}-{home.name}"
                yield name, photos_of(home), [(path, _murecom_box(path, listed), name) for path in backgrounds]


def _murecom_box(path: Path, listed: dict[str, Box]) -> Box | Callable[[tuple[int, int]], Box]:
    mask = path.with_name(f"{path.stem}_bbox.png")
    if mask.is_file():
        return partial(_box_of_mask, mask)
    if path.name not in listed:
        raise ImprintError(f"{path} has no {mask.name} beside it, and no line in bbox.txt; one of them says its box")
    return listed[path.name]


def _box_of_mask(path: Path, size: tuple[int, int]) -> Box:
    mask = mask_to_tensor(open_image(path).resize(size, Image.NEAREST))[0]
    return tight_box((mask.numpy() * 255).astype(np.uint8), str(path))


def _bbox_txt(path: Path) -> dict[str, Box]:
    """Boxes by picture name; empty without a file. Category names may contain spaces."""
    if not path.is_file():
        return {}
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except ValueError as error:
        raise ImprintError(f"{path} is not text ({error}); save it as UTF-8") from error
    found = [re.search(r"(\S+\.jpg)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s*$", line) for line in lines]
    if None in found:
        raise ImprintError(
            f"{path} has the line {lines[found.index(None)]!r}; 'CATEGORY N.jpg left top right bottom' was expected"
        )
    boxes = {match[1]: tuple(map(int, match.groups()[1:])) for match in found}
    for name, box in boxes.items():
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ImprintError(f"{path} has the box {list(box)} for {name}, which is empty; left top right bottom")
    return boxes


def _shine(folder: Path) -> Iterator[tuple[str, list[Photo], list[Place]]]:
    for home in _folders(folder):
        path = home / "bg/content.json"
        if path.is_file():
            boxes = _boxes(path, lambda table: [(entry["image"], entry["bbox"]) for entry in table], SHINE_FRAME)
            places = [(path.with_name(name), partial(_scaled, box, SHINE_FRAME), home.name) for name, box in boxes]
            yield home.name, photos_of(home / "fg") if (home / "fg").is_dir() else [], places


def _dreamedit(folder: Path, photos: dict[str, list[Photo]]) -> list[list[Place]]:
    """The boxes of each subject that has a background."""
    found = []
    for name in photos:
        home = next(
            (folder / each for each in (name, DREAMEDIT_CLASSES.get(name, name)) if (folder / each).is_dir()), None
        )
        if home is not None and (home / "bbox.json").is_file():
            boxes = _boxes(home / "bbox.json", lambda table: sorted(table.items()), DREAMEDIT_FRAME)
            found.append([(home / path, partial(_scaled, box, DREAMEDIT_FRAME), name) for path, box in boxes])
    return found


def _boxes(path: Path, read: Callable[[Any], list[tuple[str, Any]]], frame: int) -> list[tuple[str, tuple[float, ...]]]:
    """Names and boxes of a JSON file, which must start inside frame x frame. Raises `ImprintError` for others."""
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
        found = [(str(name), tuple(map(float, box))) for name, box in read(table)]
        for name, box in found:
            if not (len(box) == 4 and all(0 <= low < min(high, frame) for low, high in zip(box, box[2:]))):
                raise ValueError(f"{box} is not left, top, right, bottom in {frame} x {frame} pixels")
            if not name or Path(name).name != name:
                raise ValueError(f"{name!r} is not the name of a picture beside it")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ImprintError(
            f"{path} is not a list of pictures and boxes ({error!r}); see training/measure/benches.py"
        ) from error


def _scaled(box: tuple[float, ...], frame: int, size: tuple[int, int]) -> Box:
    """Convert a box of a picture squeezed to frame x frame to the picture's own pixels; never empty."""
    left, top, right, bottom = (round(min(value, frame) * side / frame) for value, side in zip(box, size * 2))
    right, bottom = max(1, right), max(1, bottom)
    return min(left, right - 1), min(top, bottom - 1), right, bottom


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _number(path: Path) -> tuple[int, str]:
    """Sort key: numeric names in numeric order."""
    return int(path.stem) if path.stem.isdecimal() else 0, path.name
