"""Pictures in the device's memory, cut-outs and photos, from which pairs are made."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from imprint.errors import ImprintError
from imprint.preprocess import bounding_boxes

from ..data.shards import MIN_OBJECT_SIDE, SCENE_SCALE, Bad, Record, Sample, list_shards, read_shards
from .account import MOST_OF_SIDE, SMALL, About, fates
from .draw import Draw
from .handing import Handed, handed, taken

if TYPE_CHECKING:
    from typing_extensions import Self


PHOTO_SIDE = 384  # side in pixels of the square photos in memory
ROOM = 0.01  # between the border and a whole object, relative to the square's side


def photo_side(target_side: int) -> int:
    """The side at which to hold photos for targets of a side: crops of them are shown at it."""
    return target_side * 3 // 2


class _Pictures:
    """The common base of `Views` and `Photos`: a dataclass of tensors on one device."""

    @classmethod
    def load(
        cls,
        url: str | os.PathLike,
        device: torch.device,
        limit: int | None = None,
        side: int | None = None,
        bad: Bad | None = None,
    ) -> Self:
        """Read all of a folder's shards in several processes, or their first `limit` samples; side: as of `of`, bad: as
        of `read_shards`.
        """
        shards, bad = list_shards(url), bad or Bad()
        if limit is not None or len(shards) == 1:
            return cls.of(read_shards(shards, limit, bad), side).to(device)
        loading = dict(batch_size=None, num_workers=min(len(shards), own_cores()), collate_fn=_unchanged)
        parts = []
        for part, found in DataLoader(_Shards(cls, shards, side, bad.most), **loading):
            for message in found:
                bad.take(message)
            parts.append(cls(*map(_as_tensor, _raised(part))))
        return cls.join(parts).to(device)

    def to(self, device: torch.device) -> Self:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return type(self)(*(value if isinstance(value, About) else value.to(device) for value in values))


def own_cores() -> int:
    """Cores for this process: all that it may run on, divided by the processes of a launcher on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class _Shards(Dataset):
    """What `_Pictures.of` makes of each shard, as arrays: tensors would pass through shared memory, which is small in
    containers; large arrays are `handed`. Errors are items too: the loader would wrap them in a traceback."""

    def __init__(self, kind: type[_Pictures], shards: list[str], side: int | None, most_bad: int):
        self.kind, self.shards, self.side, self.most_bad = kind, shards, side, most_bad

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[list[np.ndarray | Handed | About] | ImprintError, list[str]]:
        bad = Bad(self.most_bad)
        try:
            part = self.kind.of(read_shards([self.shards[index]], bad=bad), self.side)
        except ImprintError as error:
            return error, []
        values = vars(part).values()
        arrays = [value if isinstance(value, About) else handed(value.contiguous().numpy()) for value in values]
        return arrays, list(bad.found)


def _unchanged(part: Any) -> Any:
    return part


def _as_tensor(value: np.ndarray | Handed | About) -> torch.Tensor | About:
    return value if isinstance(value, About) else torch.from_numpy(taken(value))


def _raised(part: list[np.ndarray | Handed | About] | ImprintError) -> list[np.ndarray | Handed | About]:
    if isinstance(part, ImprintError):
        raise part
    return part


@dataclass
class Views(_Pictures):
    """Cut-outs: rgba (N, 4, S, S) uint8; an object's views are rows first ... first + count - 1.

    L of the views exist a second time, in the light of a scene: the same camera, the same outline.
    """

    rgba: torch.Tensor
    boxes: torch.Tensor
    """(N, 4) as of `bounding_boxes`."""
    first: torch.Tensor
    count: torch.Tensor
    frames: torch.Tensor
    """(N,) the views' frame numbers."""
    gap: torch.Tensor
    """(K, 2): each object's smallest and largest distance of frames in a pair."""
    relit: torch.Tensor
    """(L, 4, S, S) uint8."""
    scenes: torch.Tensor
    """(L, 3, S', S') uint8: the scenes."""
    shadows: torch.Tensor
    """(L, 3) float32, as in `Record.shadow`."""
    twin: torch.Tensor
    """(N,): the row of a view's relit version, or -1."""
    scale: torch.Tensor
    """(N,) float32: stored pixels per side S of a view."""
    about: About

    @classmethod
    def of(cls, samples: Iterable[Sample], side: int | None = None) -> Views:
        """Views from samples: cut-outs, and objects cut out of photos with masks. S is `side`, by default the first
        sample's.

        Raises `ImprintError` for a sample that is neither, and if there is none.
        """
        about = About()
        views: dict[tuple[str, int], list[tuple[torch.Tensor, int, tuple[int, int], float]]] = {}
        scenes: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor, tuple[float, ...]]] = {}
        for record, picture, mask, scene in about.counted(samples):
            for number, cutout in _cutouts(record, picture, mask):
                side = side or cutout.width
                pixels = _to_uint8(_resized(cutout, side))
                if scene is None:
                    view = pixels, record.frame, record.gap, cutout.width / side
                    views.setdefault((record.object, number), []).append(view)
                else:
                    surroundings = _to_uint8(_resized(scene, round(side * SCENE_SCALE)))
                    scenes[record.object, record.frame] = pixels, surroundings, record.shadow
        if not views:
            raise ImprintError("the shards of views hold no object; look at what training.prepare dropped")
        rows = [row for rows in views.values() for row in rows]
        rgba = torch.stack([cutout for cutout, *_ in rows]).permute(0, 3, 1, 2)
        boxes = torch.cat([bounding_boxes(part[:, 3].float(), threshold=127) for part in rgba.split(1024)])
        count = torch.tensor([len(rows) for rows in views.values()])
        frames, scale = torch.tensor([row[1] for row in rows]), torch.tensor([row[3] for row in rows])
        gap = torch.tensor([rows[0][2] for rows in views.values()])
        names = [(name, frame) for (name, _), own in views.items() for _, frame, *_ in own]
        second = _twins(names, scenes, side)
        return cls(rgba, boxes, count.cumsum(0) - count, count, frames, gap, *second, scale, about)

    @classmethod
    def join(cls, parts: Sequence[Views]) -> Views:
        """Concatenate the views of several parts."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "about"]
        tensors = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        joined = cls(*tensors, About.joined([part.about for part in parts]))
        before = torch.tensor([len(part.relit) for part in parts]).cumsum(0).roll(1)
        before[0] = 0
        added = before.repeat_interleave(torch.tensor([len(part.twin) for part in parts]))
        joined.twin = torch.where(joined.twin < 0, -1, joined.twin + added)
        joined.first = joined.count.cumsum(0) - joined.count
        return joined

    def pair(self, index: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B,) of two views of objects (B,), as far apart as the objects' `gap` says, uniformly among those.

        MVImgNet's views are at least an eighth of the frames apart (as in AnyDoor); of renderings any two will do, even
        the same one twice. If no view fits, the farthest is used.
        """
        count = self.count[index]
        reference = self.first[index] + (draw.uniform(len(index)) * count).long()
        positions = torch.arange(int(self.count.max()), device=index.device)
        rows = self.first[index, None] + torch.minimum(positions, count[:, None] - 1)
        distance = (self.frames[rows] - self.frames[reference, None]).abs()
        low, high = self.gap[index].unbind(1)
        fits = (distance >= low[:, None]) & (distance <= high[:, None])
        fits |= (distance == distance.amax(1, keepdim=True)) & ~fits.any(1, keepdim=True)
        fits &= positions < count[:, None]
        pick = torch.multinomial(fits.float(), 1, generator=draw.generator)
        return reference, rows.gather(1, pick)[:, 0]


@dataclass
class Photos(_Pictures):
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
    def of(cls, samples: Iterable[Sample], side: int | None = None) -> Photos:
        """Photos from samples, each as one or two squares along its longer side, and another around every object that
        none of them contains whole; S = `side` or `PHOTO_SIDE`.

        Raises `ImprintError` if there is none.
        """
        size = (side or PHOTO_SIDE,) * 2
        rgb, objects, sources, items, owners, scale, about = [], [], [], [], [], [], About()
        numbered = 0
        for index, (record, picture, mask, _) in enumerate(about.counted(samples)):
            if picture.mode == "RGBA" and mask is None:
                about.left_out["cut-outs, which are no photos"] += 1
                continue
            picture = picture.convert("RGB")
            shorter = min(picture.size)
            spare = max(picture.size) - shorter
            offsets = [0, spare] if spare > shorter // 4 else [round(spare / 2)]
            if mask is not None:
                spans = _spans(np.asarray(mask), along=int(picture.width > picture.height))
                numbered += len(spans)
                offsets += offsets_for(spans, offsets, shorter, spare)
            for offset in offsets:
                left, top = (offset, 0) if picture.width > picture.height else (0, offset)
                crop = (left, top, left + shorter, top + shorter)
                rgb.append(_to_uint8(picture.resize(size, Image.BILINEAR, box=crop)))
                square = Image.new("L", size) if mask is None else mask.resize(size, Image.NEAREST, box=crop)
                numbers = [number for _, number in square.getcolors() if number]
                items += [(len(objects), number) for number in numbers]
                owners += [(index, number) for number in numbers]
                scale.append(shorter / size[0])
                objects.append(_to_uint8(square)[..., 0])
                sources.append((record.clip, record.frame, record.gap))
        if not rgb:
            raise ImprintError("the shards of photos hold no picture; look at what training.prepare dropped")
        objects = torch.stack(objects)
        table = torch.tensor(items, dtype=torch.long).reshape(-1, 2)
        boxes = _object_boxes(objects, table)
        usable = _usable(boxes, size[0])
        about.objects = fates(owners, boxes, usable, size[0])
        about.objects += Counter(
            {SMALL: numbered - about.objects.total()}
        )  # those too small to survive in their squares
        table, boxes = table[usable], boxes[usable]
        partners = _neighbours(table, sources)
        counts = torch.tensor([len(row) for row in partners], dtype=torch.long)
        padded = [row + [index] * (int(counts.max()) + 1 - len(row)) for index, row in enumerate(partners)]
        width = len(padded[0]) if padded else 1
        rgb = torch.stack(rgb).permute(0, 3, 1, 2)
        padded = torch.tensor(padded).long().reshape(-1, width)
        return cls(rgb, objects, table, boxes, padded, counts, torch.tensor(scale), about)

    @classmethod
    def join(cls, parts: Sequence[Photos]) -> Photos:
        """Concatenate the photos of several parts."""
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
        rgb, objects, boxes, counts, scale = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        about = About.joined([part.about for part in parts])
        return cls(rgb, objects, torch.cat(tables), boxes, torch.cat(partners), counts, scale, about)


def _resized(picture: Image.Image, side: int) -> Image.Image:
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.BICUBIC)


def _twins(names: list[tuple[str, int]], seconds: dict[tuple[str, int], tuple], side: int) -> tuple[torch.Tensor, ...]:
    """`Views.relit`, `scenes`, `shadows` and `twin` for views of these names."""
    found = [name for name in names if name in seconds]
    row = {name: number for number, name in enumerate(found)}
    twin = torch.tensor([row.get(name, -1) for name in names])
    if not found:
        sides = (4, side), (3, round(side * SCENE_SCALE))
        empty = (torch.zeros(0, channels, size, size, dtype=torch.uint8) for channels, size in sides)
        return *empty, torch.zeros(0, 3), twin
    relit, scenes, shadows = zip(*(seconds[name] for name in found))
    return *(torch.stack(part).permute(0, 3, 1, 2) for part in (relit, scenes)), torch.tensor(shadows), twin


def _cutouts(record: Record, picture: Image.Image, mask: Image.Image | None) -> Iterator[tuple[int, Image.Image]]:
    """A sample's objects by number, each as an RGBA picture that the object fills to about 85 %."""
    if mask is None:
        if picture.mode != "RGBA":
            raise ImprintError(
                f"a view of '{record.object}' is {picture.mode} and has no mask; views are RGBA cut-outs, or photos "
                "with their objects' masks"
            )
        yield 0, picture
        return
    for number in sorted(number for _, number in mask.getcolors() if number):
        alpha = mask.point(lambda value, number=number: 255 * (value == number))
        left, top, right, bottom = alpha.getbbox()
        half = max(right - left, bottom - top) / 1.7
        x, y = (left + right) / 2, (top + bottom) / 2
        cutout = picture.convert("RGB")
        cutout.putalpha(alpha)
        yield (
            number,
            cutout.crop(
                (round(x - half), round(y - half), round(x - half) + round(2 * half), round(y - half) + round(2 * half))
            ),
        )


def _to_uint8(picture: Image.Image) -> torch.Tensor:
    """(H, W, C), as in Pillow: permuting pictures one by one takes longer than decoding them."""
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.reshape(picture.height, picture.width, -1)


def _spans(mask: np.ndarray, along: int) -> list[tuple[int, int]]:
    """Where each object of a numbered mask (H, W) begins and ends along an axis."""
    ends = []
    for number in np.unique(mask[mask > 0]):
        found = np.flatnonzero((mask == number).any(1 - along))
        ends.append((int(found[0]), int(found[-1]) + 1))
    return ends


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


def _usable(boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Objects of a useful size that the picture's border does not cut."""
    sides = (boxes[:, 2:] - boxes[:, :2]).float() / side
    within = (boxes[:, :2] > 1).all(1) & (boxes[:, 2:] < side - 1).all(1)
    return within & (sides.amin(1) > MIN_OBJECT_SIDE) & (sides.amax(1) < MOST_OF_SIDE)


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
