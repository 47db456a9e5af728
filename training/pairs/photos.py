"""Photos and their annotated objects in the device's memory, from which scenes, targets and references are made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from imprint.errors import ImprintError
from imprint.preprocess import bounding_boxes

from ..data.shards import Sample
from .about import MOST_OF_SIDE, OUTCOMES, SMALL, USABLE, About, count_outcomes, outcomes
from .handing import Stack
from .pictures import CPU, Pictures, joined

PHOTO_SIDE = 384  # side in pixels of the square photos in memory
ROOM = 0.01  # between the border and a whole object, relative to the square's side


def photo_side(target_side: int) -> int:
    """The side at which to hold photos for targets of a side: crops of them are shown at it."""
    return target_side * 3 // 2


@dataclass
class Photos(Pictures):
    """Square photos and their annotated objects."""

    rgb: torch.Tensor
    """(M, 3, S, S) uint8."""
    objects: torch.Tensor
    """(M, S, S) uint8: 0 = background, n = the n-th object."""
    items: torch.Tensor
    """(K, 2) usable objects: photo, number in it."""
    boxes: torch.Tensor
    """(K, 4): their boxes, as of `bounding_boxes`."""
    partners: torch.Tensor
    """(K, P): items that show the same object in a neighbouring frame, padded with the item itself."""
    partner_count: torch.Tensor
    scale: torch.Tensor
    """(M,) float32: stored pixels per side S of a photo's square."""
    about: About

    @property
    def annotated(self) -> int:
        """The number of objects in the pictures, usable or not."""
        return self.about.objects.total()

    @classmethod
    def of(cls, samples: Iterable[Sample], side: int | None = None, shared: bool = False) -> Photos:
        """Photos from samples, each as one or two squares along its longer side, and another around every object that
        none of them contains whole; S = `side` or `PHOTO_SIDE`, shared: as of `Stack`.

        Raises `ImprintError` if there is none.
        """
        size = (side or PHOTO_SIDE,) * 2
        rgb, objects, about = Stack(shared), Stack(shared), About()
        sources, items, owners, scale = [], [], [], []
        numbered = 0
        for index, (record, picture, mask, _) in enumerate(about.counted(samples)):
            if picture.mode == "RGBA" and mask is None:
                about.left_out["cut-outs, which are not photos"] += 1
                continue
            picture = picture.convert("RGB")
            spans = [] if mask is None else _spans(np.asarray(mask), along=int(picture.width > picture.height))
            numbered += len(spans)
            for crop in _squares(picture.size, spans):
                rgb.add(picture.resize(size, Image.BILINEAR, box=crop))
                square = Image.new("L", size) if mask is None else mask.resize(size, Image.NEAREST, box=crop)
                numbers = [number for _, number in square.getcolors() if number]
                place = objects.add(square)
                items += [(place, number) for number in numbers]
                owners += [(index, number) for number in numbers]
                scale.append(min(picture.size) / size[0])
                sources.append((record.clip, record.frame, record.gap))
        if not sources:
            raise ImprintError("the shards of photos hold no picture; look at what training.prepare dropped")
        objects = objects.tensor(*size)
        table = torch.tensor(items, dtype=torch.long).reshape(-1, 2)
        boxes = _object_boxes(objects, table)
        found = outcomes(boxes, size[0])
        about.objects = count_outcomes(owners, found)
        about.objects += Counter({SMALL: numbered - about.objects.total()})  # these vanished in their squares
        usable = found == OUTCOMES.index(USABLE)
        table, boxes = table[usable], boxes[usable]
        partners = _neighbours(table, sources)
        counts = torch.tensor([len(row) for row in partners], dtype=torch.long)
        padded = [row + [index] * (int(counts.max()) + 1 - len(row)) for index, row in enumerate(partners)]
        width = len(padded[0]) if padded else 1
        padded = torch.tensor(padded).long().reshape(-1, width)
        return cls(rgb.tensor(3, *size), objects, table, boxes, padded, counts, torch.tensor(scale), about)

    @classmethod
    def join(cls, parts: Sequence[Photos], device: torch.device = CPU) -> Photos:
        """Concatenate the photos of several parts in main memory, on a device."""
        tables, partners = [], []
        width = max(part.partners.shape[1] for part in parts)
        photos = items = 0
        for part in parts:
            tables.append(part.items + torch.tensor([photos, 0]))
            own = torch.arange(len(part.items))[:, None]
            padding = own.expand(-1, width - part.partners.shape[1])
            partners.append(torch.cat([part.partners, padding], 1) + items)
            photos, items = photos + len(part.rgb), items + len(part.items)
        names = ("rgb", "objects", "boxes", "partner_count", "scale")
        rgb, objects, boxes, counts, scale = (joined([getattr(part, name) for part in parts], device) for name in names)
        about = About.joined([part.about for part in parts])
        whole = cls(rgb, objects, torch.cat(tables), boxes, torch.cat(partners), counts, scale, about)
        return whole.to(device)


def _spans(mask: np.ndarray, along: int) -> list[tuple[int, int]]:
    """Where each object of a numbered mask (H, W) begins and ends along an axis."""
    ends = []
    for number in np.unique(mask[mask > 0]):
        found = np.flatnonzero((mask == number).any(1 - along))
        ends.append((int(found[0]), int(found[-1]) + 1))
    return ends


def _squares(size: tuple[int, int], spans: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """The squares (left, top, right, bottom) of a photo of this size with objects at these spans of its longer side."""
    width, height = size
    side, spare = min(size), max(size) - min(size)
    offsets = [0, spare] if spare > side // 4 else [round(spare / 2)]
    offsets += offsets_for(spans, offsets, side, spare)
    corners = [(offset, 0) if width > height else (0, offset) for offset in offsets]
    return [(left, top, left + side, top + side) for left, top in corners]


def offsets_for(spans: list[tuple[int, int]], offsets: list[int], side: int, spare: int) -> list[int]:
    """Offsets of additional squares along a line of spare + side pixels: around each span that none of the squares at
    `offsets` contains with some room at both ends. Spans too long for a square are skipped.
    """
    room, more = math.ceil(side * ROOM), []
    for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
        held = (at + room <= start and end <= at + side - room for at in (*offsets, *more))
        at = min(max(0, (start + end - side) // 2), spare)
        if not any(held) and at + room <= start and end <= at + side - room and end - start < MOST_OF_SIDE * side:
            more.append(at)
    return more


def _object_boxes(objects: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    rows = [bounding_boxes((objects[photo] == number)[None].float()) for photo, number in table.tolist()]
    return torch.cat(rows) if rows else torch.zeros(0, 4, dtype=torch.long)


def _neighbours(table: torch.Tensor, sources: list[tuple[str, int, tuple[int, int]]]) -> list[list[int]]:
    """For each item, the others with its clip and number, in any square, whose distance of frames is within its gap.

    sources: each photo's clip, frame and gap (smallest and largest distance of frames).
    """
    groups: dict[tuple, list[tuple[int, int]]] = {}
    for index, (photo, number) in enumerate(table.tolist()):
        clip, frame, _ = sources[photo]
        groups.setdefault((clip, number), []).append((frame, index))
    rows: list[list[int]] = [[] for _ in range(len(table))]
    for members in groups.values():
        for frame, index in members:
            low, high = sources[table[index, 0]][2]
            rows[index] = [other for at, other in members if max(1, low) <= abs(at - frame) <= high]
    return rows
