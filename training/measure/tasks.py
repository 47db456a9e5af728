"""Evaluation tasks: an object, a background, a box in it, and the picture to compare the result with.

There are two protocols. The usual one (AnyDoor, arXiv 2307.09481, section 4.1; PICS; Bifrost): DreamBooth's subjects x
boxes on photos, compared with the reference photo. And real video: object from frame n1, box of frame n2, compared with
n2. Folders of tasks, including benchmarks, are read in `benches`.
Boxes are (left, top, right, bottom) in pixels, the last two exclusive, as Pillow takes them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.ndimage import distance_transform_edt

from imprint.errors import ImprintError, require_same_size
from imprint.images import open_image, to_srgb
from imprint.mask_reading import alpha_to_tensor, mask_to_tensor
from imprint.masks import coarsen
from imprint.preprocess import bounding_boxes

from ..data.multiview import ASIDE
from ..data.shards import MAX_FRAME_GAP, MIN_OBJECT_SIDE, name_digest, name_hash, read_shards
from .light import LightTask

Box: TypeAlias = "tuple[int, int, int, int]"
Place: TypeAlias = "tuple[Path, Box | Callable[[tuple[int, int]], Box], str | None]"
"""A background; the box in it, or a function from the background's (width, height) to the box; and the subject that it
is for, None for all."""

MOST_OF_THE_PICTURE = 0.5  # boxes of a larger area leave no scene to fit into
LONGEST_NAME = 100  # characters of a clip's name in a file's name
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
NO_PHOTOS = (".mask.png", *ASIDE)
"""Endings of files that are not a subject's photos: masks, and MureCom's boxes and photos without the object."""


@dataclass(frozen=True)
class Scene:
    """A task's pictures."""

    subject: str
    """The object's name; for video, the clip's."""
    cutout: Image.Image
    """RGBA, the object's tight crop; its alpha is the object's mask."""
    background: Image.Image
    """RGB."""
    box: Box
    """Where the object goes, and the part of the composite that is measured."""
    target: Image.Image
    """RGB: what this part is compared with."""
    area: Image.Image | None = None
    """L: the task's own hole, instead of the filled box."""
    truth: LightTask | None = None
    """The whole true composite, if known."""
    square: bool = False
    """Whether to pad the measured part with white to a square, instead of squeezing it."""

    def crop(self, picture: Image.Image) -> Image.Image:
        """The measured part of a picture of the background's size."""
        part = picture.crop(self.box)
        return _padded(part) if self.square else part

    def padded(self) -> Scene:
        """The same scene, with its measured part and target padded to squares."""
        return replace(self, square=True, target=_padded(self.target))

    def around(self, picture: Image.Image) -> Image.Image:
        """A picture of the background's size, cropped to within half the box's longer side of the box."""
        left, top, right, bottom = self.box
        reach = max(right - left, bottom - top) // 2
        end = min(picture.width, right + reach), min(picture.height, bottom + reach)
        return picture.crop((max(0, left - reach), max(0, top - reach), *end))

    def paste(self, cutout: Image.Image, emptied: bool = False) -> Image.Image:
        """The background with a cut-out fitted into the box, standing on its lower edge.

        emptied: first fill the box, each pixel with the colour of the nearest one outside.
        """
        picture, (fitted, corner) = self.background.copy(), self._fit(cutout)
        if emptied:
            places = distance_transform_edt(self.hole("box"), return_distances=False, return_indices=True)
            picture = Image.fromarray(np.asarray(picture)[tuple(places)])
        picture.paste(fitted, corner, fitted)
        return picture

    def hole(self, level: str) -> Image.Image:
        """The mask to generate in, L: the filled box, or the fitted cut-out's outline at a level of `imprint.masks`."""
        mask = Image.new("L", self.background.size)
        if level == "box":
            if self.area is not None:
                return self.area
            mask.paste(255, self.box)
            return mask
        fitted, corner = self._fit(self.cutout)
        mask.paste(fitted.getchannel("A"), corner)
        return Image.fromarray((coarsen(mask_to_tensor(mask), level)[0].numpy() * 255).astype(np.uint8))

    def _fit(self, cutout: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
        left, top, right, bottom = self.box
        scale = min((right - left) / cutout.width, (bottom - top) / cutout.height)
        size = max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale))
        return cutout.resize(size, Image.BICUBIC), (left + (right - left - size[0]) // 2, bottom - size[1])


@dataclass(frozen=True)
class Task:
    """A composite to make and measure."""

    name: str
    """Unique, and valid as a file's name."""
    subject: str
    """The object or clip: tasks that share it are not independent."""
    load: Callable[[], Scene]

    def seed(self, seed: int) -> int:
        """The seed of the composite's noise: depends only on the run's seed and the task's name."""
        return name_hash(f"{seed} {self.name}")


# --- subjects x boxes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photo:
    """A photo of a subject, with its mask in a separate file or in its alpha channel."""

    path: Path
    mask: Path | None

    def load(self) -> tuple[Image.Image, Image.Image]:
        """The cut-out, RGBA, and the photo, RGB (white where a cut-out is transparent), both tightly cropped."""
        image = open_image(self.path)
        alpha = alpha_to_tensor(image) if self.mask is None else mask_to_tensor(open_image(self.mask))
        if alpha is None:
            raise ImprintError(f"{self.path} is opaque everywhere; give a cut-out, or its mask as a file of its own")
        require_same_size(str(self.path), image.size[::-1], f"its mask {self.mask}", alpha.shape[1:])
        view = to_srgb(image)
        cutout = view.copy()
        cutout.putalpha(Image.fromarray((alpha[0] * 255).round().byte().numpy()))
        if self.mask is None:
            view = Image.alpha_composite(Image.new("RGBA", cutout.size, "white"), cutout).convert("RGB")
        box = tight_box(np.asarray(cutout.getchannel("A")), f"the mask of {self.path}")
        return cutout.crop(box), view.crop(box)


def read_subjects(folder: Path) -> dict[str, list[Photo]]:
    """The photos with a mask of each subject, a folder, as `photos_of` finds them.

    Subjects without any are skipped. Raises `ImprintError` if none is left.
    """
    if not folder.is_dir():
        raise ImprintError(f"{folder}: no such folder; --subjects is a folder with one folder of photos per subject")
    subjects = {}
    for home in sorted(path for path in folder.iterdir() if path.is_dir()):
        if photos := photos_of(home):
            subjects[home.name] = photos
    if not subjects:
        raise ImprintError(
            f"{folder} holds no subject with a mask; put SUBJECT/NN.jpg beside SUBJECT/NN.mask.png, or SUBJECT/NN.png "
            "with transparency around the object"
        )
    return subjects


def photos_of(home: Path) -> list[Photo]:
    """The photos with a mask in a folder, by name; those without one are left out.

    NN.jpg beside NN.mask.png or NN.png, or NN.png alone with transparency around the object.
    """
    photos = []
    files = sorted(path for path in home.iterdir() if path.suffix.lower() in PICTURES)
    others = {path.stem for path in files if path.suffix.lower() != ".png"}
    for path in files:
        png = path.suffix.lower() == ".png"
        if path.name.endswith(NO_PHOTOS) or (png and path.stem in others):
            continue
        masks = [path.with_suffix(".mask.png"), *([] if png else [path.with_suffix(".png")])]
        mask = next((mask for mask in masks if mask.exists()), None)
        if mask or alpha_to_tensor(open_image(path)) is not None:
            photos.append(Photo(path, mask))
    return photos


def read_boxes(path: Path, backgrounds: Path) -> list[Place]:
    """Boxes on backgrounds.

    Either COCO's instances JSON, with the largest box of suitable size of each picture in the folder; or JSON lines
    `{"background": name, "box": [left, top, right, bottom]}`, optionally with `"subject"`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = _coco_boxes(json.loads(text)) if path.suffix == ".json" else _listed_boxes(text)
        boxes = [(backgrounds / name, tuple(map(int, box)), subject) for name, box, subject in found]
        if path.suffix == ".json":  # part of the data set is enough
            boxes = [entry for entry in boxes if entry[0].is_file()]
    except OSError as error:
        raise ImprintError(f"{path} cannot be read ({error.strerror}); give a file of boxes") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ImprintError(
            f"{path} is not a file of boxes ({error!r}); give COCO's instances as .json, or JSON lines with the keys "
            "'background' and 'box'"
        ) from error
    if not boxes:
        raise ImprintError(
            f"{path} names no box on a picture in {backgrounds}; give --backgrounds the folder of its pictures"
        )
    return boxes


def _listed_boxes(text: str) -> list[tuple[str, list, str | None]]:
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    for line in lines:
        left, top, right, bottom = map(int, line["box"])
        if not (0 <= left < right and 0 <= top < bottom):
            raise ValueError(f"the box {line['box']} is empty or begins outside the picture")
        if not isinstance(line.get("subject"), str | None):
            raise ValueError(f"the subject {line['subject']!r} is not a name")
    return [(line["background"], line["box"], line.get("subject")) for line in lines]


def _coco_boxes(tables: dict) -> list[tuple[str, list, str | None]]:
    """Each picture's largest box, at least `MIN_OBJECT_SIDE` of its shorter side and not too large."""
    pictures, largest = {entry["id"]: entry for entry in tables["images"]}, {}
    for annotation in tables["annotations"]:
        picture, (left, top, width, height) = pictures[annotation["image_id"]], annotation["bbox"]
        least = MIN_OBJECT_SIDE * min(picture["width"], picture["height"])
        most = MOST_OF_THE_PICTURE * picture["width"] * picture["height"]
        fits = min(width, height) >= least and width * height <= most and not annotation.get("iscrowd")
        fits = (
            fits
            and min(left, top) >= 0
            and int(left + width) <= picture["width"]
            and int(top + height) <= picture["height"]
        )
        if fits and width * height > largest.get(picture["id"], (0,))[0]:
            largest[picture["id"]] = width * height, [left, top, left + width, top + height]
    return [(entry["file_name"], largest[key][1], None) for key, entry in sorted(pictures.items()) if key in largest]


def subject_tasks(subjects: dict[str, list[Photo]], boxes: Sequence[Place]) -> list[Task]:
    """Every subject in every box, or in its own boxes; ordered so that the first tasks cover all subjects.

    The reference is a subject's first photo. Raises `ImprintError` for a box of an unknown subject.
    """
    for path, _, subject in boxes:
        if subject is not None and subject not in subjects:
            raise ImprintError(
                f"a box on {path.name} is for '{subject}', which is not in --subjects ({', '.join(subjects)})"
            )
    names, tasks = list(subjects), []
    for turn in range(len(boxes)):
        for index, name in enumerate(names):
            number = (turn + index) % len(boxes)
            path, box, wanted = boxes[number]
            if wanted in (None, name):
                load = partial(_placed, name, subjects[name][0], path, box)
                tasks.append(Task(f"{name}-{number:04d}-{path.stem}", name, load))
    return tasks


def _placed(subject: str, photo: Photo, path: Path, box: Box | Callable[[tuple[int, int]], Box]) -> Scene:
    background = to_srgb(open_image(path))
    if callable(box):
        box = box(background.size)
    if box[2] > background.width or box[3] > background.height:
        raise ImprintError(
            f"{path} is {background.width}x{background.height}, but its box {list(box)} ends beyond; give boxes in the "
            "picture's pixels"
        )
    cutout, view = photo.load()
    return Scene(subject, cutout, background, box, view)


# --- video pairs -----------------------------------------------------------------------------------------------------


def pair_tasks(folder: Path) -> list[Task]:
    """Pairs of frames of each object in the clips of a folder's shards, from one frame to the farthest allowed.

    The object comes from frame n1, the background is frame n2 with the object's box as the hole, 0 < n2 - n1 <=
    `shards.MAX_FRAME_GAP`; pairs do not overlap, and the first tasks cover all clips. Objects narrower than
    `MIN_OBJECT_SIDE` of the frame, or with too large a box, are skipped. Raises `ImprintError` if there is no pair.
    """
    clips = defaultdict(list)
    for record, picture, mask, _ in read_shards(folder):
        if record.clip and mask is not None:
            clips[record.clip].append((record.frame, picture, np.asarray(mask)))
    tasks = []
    for clip, frames in sorted(clips.items()):
        frames.sort(key=lambda entry: entry[0])
        for number in sorted({int(value) for *_, mask in frames for value in np.unique(mask)} - {0}):
            seen = [(frame, picture, mask == number) for frame, picture, mask in frames if _usable(mask == number)]
            for turn, (first, second) in enumerate(_apart([frame for frame, *_ in seen])):
                (n1, *source), (n2, *target) = seen[first], seen[second]
                name = f"{file_name(clip)}-{number}-{n1:05d}-{n2:05d}"
                tasks.append((turn, Task(name, clip, partial(_moved, clip, *source, *target))))
    if not tasks:
        raise ImprintError(
            f"{folder} holds no two frames of an object within {MAX_FRAME_GAP} of each other; give shards of videos "
            "with masks"
        )
    return [task for _, task in sorted(tasks, key=lambda entry: entry[0])]


def file_name(name: str) -> str:
    """A foreign name as part of a file's name: unchanged, or without unsafe characters and with a hash added."""
    safe = re.sub(r"[^\w.-]+", "-", name).lstrip(".")[:LONGEST_NAME]
    return name if safe == name else f"{safe}-{name_digest(name)[:8]}"


def _apart(frames: list[int]) -> list[tuple[int, int]]:
    """Places of n1 and n2 in a sorted list of frame numbers."""
    pairs, first = [], 0
    while first < len(frames) - 1:
        second = max(i for i in range(first, len(frames)) if frames[i] - frames[first] <= MAX_FRAME_GAP)
        if second > first:
            pairs.append((first, second))
        first = second + 1
    return pairs


def _usable(mask: np.ndarray) -> bool:
    if not mask.any():
        return False
    left, top, right, bottom = tight_box(mask)
    area = (right - left) * (bottom - top)
    return (
        min(right - left, bottom - top) >= MIN_OBJECT_SIDE * min(mask.shape) and area <= MOST_OF_THE_PICTURE * mask.size
    )


def _moved(clip: str, source: Image.Image, source_mask: np.ndarray, frame: Image.Image, mask: np.ndarray) -> Scene:
    cutout = source.convert("RGB")
    cutout.putalpha(Image.fromarray(source_mask.astype(np.uint8) * 255))
    background, box = frame.convert("RGB"), tight_box(mask)
    return Scene(clip, cutout.crop(tight_box(source_mask)), background, box, background.crop(box))


def tight_box(mask: np.ndarray, what: str = "the mask") -> Box:
    """(H, W), bool or 0 to 255 -> the box around its object. Raises `ImprintError` for an empty mask."""
    values = torch.from_numpy(mask.astype(np.float32) / (1 if mask.dtype == bool else 255))
    top, left, bottom, right = bounding_boxes(values[None], what=what)[0].tolist()
    return left, top, right, bottom


def _padded(picture: Image.Image) -> Image.Image:
    """Centre a picture in a white square."""
    return ImageOps.pad(picture, (max(picture.size),) * 2, color="white")
