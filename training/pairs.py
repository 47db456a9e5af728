"""Pairs (reference view, target) made on the device, in batches, from pictures that lie in its memory.

IMPRINT's two kinds of pair (arXiv 2403.10701, section 3.4), and what stands in for its data sets:
- `rendered`: two views of one rendered object; for compositing the second is put into a photo, with a soft shadow, or in the
  light of a place into a photo of that place;
- `still`: an annotated object of a photo is the target, its warped and re-coloured cut-out the reference;
- `video`: as `still`, but the reference comes from another frame of the clip, as near as the sample's `gap` asks: of a
  video at most 7 frames away, of MVImgNet's photos at least an eighth of all;
- `piece`: as `still`, but the object is a piece of a photo of random outline, which brings in real textures.

Everything is a function of the generator alone, so that a run that continues makes the same pairs as one that never
stopped. Pictures are BCHW in [0, 1], RGBA with colours not multiplied by alpha, masks BHW. Matrices (B, 3, 3) take output
coordinates in [-1, 1] to source coordinates in [-1, 1], x before y.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from imprint.config import ImprintConfig
from imprint.errors import ImprintError
from imprint.masks import LEVELS, box, fill_boxes, latent_hole, mask_levels, paint_hole
from imprint.matte import matte_values
from imprint.preprocess import bounding_boxes, cut_out, prepare_object

from .shards import SCENE_SCALE, Record, Sample, list_shards, read_shards

KINDS = ("rendered", "still", "video", "piece")
PHOTO_SIDE = 384  # pixels of the square photos in memory
BOX = LEVELS.index("box")
MIN_OBJECT_SIDE = 0.15  # of the photo: smaller annotated objects show nothing to learn


class _Pictures:
    """What `Views` and `Photos` share: a dataclass of tensors on one device."""

    @classmethod
    def load(cls, place: str | os.PathLike, device: torch.device, limit: int | None = None, side: int | None = None):
        """All of a folder's shards, read by as many processes, or their first `limit` samples; `of` says what `side` is."""
        shards = list_shards(place)
        if limit is not None or len(shards) == 1:
            return cls.of(read_shards(shards, limit), side).to(device)
        workers = min(len(shards), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
        parts = DataLoader(_Shards(cls, shards, side), batch_size=None, num_workers=workers, collate_fn=_unchanged)
        return cls.join([cls(*map(torch.from_numpy, _raised(part))) for part in parts]).to(device)

    def to(self, device: torch.device):
        return type(self)(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


class _Shards(Dataset):
    """What `_Pictures.of` makes of each shard, as arrays: tensors would travel through the system's shared memory, of
    which a container has little. An error is an item, too: the loader would wrap it in a traceback."""

    def __init__(self, kind: type[_Pictures], shards: list[str], side: int | None):
        self.kind, self.shards, self.side = kind, shards, side

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> list[np.ndarray] | ImprintError:
        try:
            part = self.kind.of(read_shards([self.shards[index]]), self.side)
        except ImprintError as error:
            return error
        return [value.contiguous().numpy() for value in vars(part).values()]


def _unchanged(part):
    return part


def _raised(part: list[np.ndarray] | ImprintError) -> list[np.ndarray]:
    if isinstance(part, ImprintError):
        raise part
    return part


@dataclass
class Views(_Pictures):
    """Cut-outs: rgba (N, 4, S, S) uint8; an object's views are rows first ... first + count - 1.

    Some views come a second time, L in all, in the light of a place: the same camera, the same outline.
    """

    rgba: torch.Tensor
    boxes: torch.Tensor
    """(N, 4) as `bounding_boxes` gives them."""
    first: torch.Tensor
    count: torch.Tensor
    frames: torch.Tensor
    """(N,) the views' frame numbers."""
    gap: torch.Tensor
    """(K, 2) for each object the least and greatest distance of frames in a pair."""
    relit: torch.Tensor
    """(L, 4, S, S) uint8."""
    scenes: torch.Tensor
    """(L, 3, S', S') uint8: the places."""
    shadows: torch.Tensor
    """(L, 3) float32, as `Record.shadow` has them."""
    twin: torch.Tensor
    """(N,) row of a view's second, -1 where there is none."""

    @classmethod
    def of(cls, samples: Iterable[Sample], side: int | None = None) -> Views:
        """Views of samples: cut-outs, and the objects of photos that have masks, cut out. S is `side`, or the first one's.

        Raises `ImprintError` for a sample that is neither, and where there is none.
        """
        views: dict[tuple[str, int], list[tuple[torch.Tensor, int, tuple[int, int]]]] = {}
        places: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor, tuple[float, ...]]] = {}
        for record, picture, mask, scene in samples:
            for number, cutout in _cutouts(record, picture, mask):
                side = side or cutout.width
                pixels = _to_uint8(_resized(cutout, side))
                if scene is None:
                    views.setdefault((record.object, number), []).append((pixels, record.frame, record.gap))
                else:
                    place = _to_uint8(_resized(scene, round(side * SCENE_SCALE)))
                    places[record.object, record.frame] = pixels, place, record.shadow
        if not views:
            raise ImprintError("the shards of views hold no object; look at what training.prepare dropped")
        rows = [row for rows in views.values() for row in rows]
        rgba = torch.stack([cutout for cutout, _, _ in rows]).permute(0, 3, 1, 2)
        boxes = torch.cat([bounding_boxes(part[:, 3].float(), threshold=127) for part in rgba.split(1024)])
        count = torch.tensor([len(rows) for rows in views.values()])
        frames = torch.tensor([frame for _, frame, _ in rows])
        gap = torch.tensor([rows[0][2] for rows in views.values()])
        names = [(name, frame) for (name, _), own in views.items() for _, frame, _ in own]
        return cls(rgba, boxes, count.cumsum(0) - count, count, frames, gap, *_twins(names, places, side))

    @classmethod
    def join(cls, parts: Sequence[Views]) -> Views:
        """The views of several parts, as one."""
        joined = cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(cls)))
        before = torch.tensor([len(part.relit) for part in parts]).cumsum(0).roll(1)
        before[0] = 0
        added = before.repeat_interleave(torch.tensor([len(part.twin) for part in parts]))
        joined.twin = torch.where(joined.twin < 0, -1, joined.twin + added)
        joined.first = joined.count.cumsum(0) - joined.count
        return joined

    def pair(self, index: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B,) of two views of objects (B,), as far apart as the objects' `gap` asks, any of those alike.

        MVImgNet's views are at least an eighth of the frames apart (as AnyDoor pairs them); of a rendering any two will
        do, also one twice. Where no view fits, it is the farthest.
        """
        count = self.count[index]
        reference = self.first[index] + (draw.uniform(len(index)) * count).long()
        places = torch.arange(int(self.count.max()), device=index.device)
        rows = self.first[index, None] + torch.minimum(places, count[:, None] - 1)
        distance = (self.frames[rows] - self.frames[reference, None]).abs()
        low, high = self.gap[index].unbind(1)
        fits = (distance >= low[:, None]) & (distance <= high[:, None])
        fits |= (distance == distance.amax(1, keepdim=True)) & ~fits.any(1, keepdim=True)
        fits &= places < count[:, None]
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
    """(K, 4) their boxes, as `bounding_boxes` gives them."""
    partners: torch.Tensor
    """(K, P) items that show the same object in a neighbouring frame, padded with the item itself."""
    partner_count: torch.Tensor

    @classmethod
    def of(cls, samples: Iterable[Sample], side: int | None = None) -> Photos:
        """Photos of samples, each as one or two squares along its longer side, S = `side` or `PHOTO_SIDE`.

        Raises `ImprintError` where there is none.
        """
        size = (side or PHOTO_SIDE,) * 2
        rgb, objects, sources, items = [], [], [], []
        for record, picture, mask, _ in samples:
            picture = picture.convert("RGB")
            shorter = min(picture.size)
            spare = max(picture.size) - shorter
            for part in (0, 1) if spare > shorter // 4 else (0.5,):
                offset = round(spare * part)
                left, top = (offset, 0) if picture.width > picture.height else (0, offset)
                crop = (left, top, left + shorter, top + shorter)
                rgb.append(_to_uint8(picture.resize(size, Image.BILINEAR, box=crop)))
                square = Image.new("L", size) if mask is None else mask.resize(size, Image.NEAREST, box=crop)
                items += [(len(objects), number) for _, number in square.getcolors() if number]
                objects.append(_to_uint8(square)[..., 0])
                sources.append((record.clip, part, record.frame, record.gap))
        if not rgb:
            raise ImprintError("the shards of photos hold no picture; look at what training.prepare dropped")
        objects = torch.stack(objects)
        table = torch.tensor(items, dtype=torch.long).reshape(-1, 2)
        boxes = _object_boxes(objects, table)
        usable = _usable(boxes, size[0])
        table, boxes = table[usable], boxes[usable]
        partners = _neighbours(table, sources)
        counts = torch.tensor([len(row) for row in partners], dtype=torch.long)
        padded = [row + [index] * (int(counts.max()) + 1 - len(row)) for index, row in enumerate(partners)]
        width = len(padded[0]) if padded else 1
        rgb = torch.stack(rgb).permute(0, 3, 1, 2)
        return cls(rgb, objects, table, boxes, torch.tensor(padded).long().reshape(-1, width), counts)

    @classmethod
    def join(cls, parts: Sequence[Photos]) -> Photos:
        """The photos of several parts, as one."""
        tables, partners = [], []
        width = max(part.partners.shape[1] for part in parts)
        photos = items = 0
        for part in parts:
            tables.append(part.items + torch.tensor([photos, 0]))
            own = torch.arange(len(part.items))[:, None]
            padding = own.expand(-1, width - part.partners.shape[1])
            partners.append(torch.cat([part.partners, padding], 1) + items)
            photos, items = photos + len(part.rgb), items + len(part.items)
        rgb, objects, boxes, counts = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("rgb", "objects", "boxes", "partner_count")
        )
        return cls(rgb, objects, torch.cat(tables), boxes, torch.cat(partners), counts)


def _resized(picture: Image.Image, side: int) -> Image.Image:
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.BICUBIC)


def _twins(names: list[tuple[str, int]], places: dict[tuple[str, int], tuple], side: int) -> tuple[torch.Tensor, ...]:
    """`Views.relit`, `scenes`, `shadows` and `twin`, of views of these names."""
    found = [name for name in names if name in places]
    row = {name: number for number, name in enumerate(found)}
    twin = torch.tensor([row.get(name, -1) for name in names])
    if not found:
        sides = (4, side), (3, round(side * SCENE_SCALE))
        empty = (torch.zeros(0, channels, size, size, dtype=torch.uint8) for channels, size in sides)
        return *empty, torch.zeros(0, 3), twin
    relit, scenes, shadows = zip(*(places[name] for name in found))
    return *(torch.stack(part).permute(0, 3, 1, 2) for part in (relit, scenes)), torch.tensor(shadows), twin


def _cutouts(record: Record, picture: Image.Image, mask: Image.Image | None) -> Iterator[tuple[int, Image.Image]]:
    """The objects of a sample by number, each an RGBA picture that it fills to about 85 %."""
    if mask is None:
        if picture.mode != "RGBA":
            raise ImprintError(
                f"a view of '{record.object}' is {picture.mode} and has no mask; views are RGBA cut-outs, or photos with "
                "their objects' masks"
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
    """(H, W, C), as Pillow has it: to turn pictures one by one takes longer than to decode them."""
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.reshape(picture.height, picture.width, -1)


def _object_boxes(objects: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    rows = [bounding_boxes((objects[photo] == number)[None].float()) for photo, number in table.tolist()]
    return torch.cat(rows) if rows else torch.zeros(0, 4, dtype=torch.long)


def _usable(boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Objects of a useful size that the picture's border does not cut."""
    sides = (boxes[:, 2:] - boxes[:, :2]).float() / side
    within = (boxes[:, :2] > 1).all(1) & (boxes[:, 2:] < side - 1).all(1)
    return within & (sides.amin(1) > MIN_OBJECT_SIDE) & (sides.amax(1) < 0.9)


def _neighbours(table: torch.Tensor, sources: list[tuple[str, float, int, tuple[int, int]]]) -> list[list[int]]:
    """For each item the others with its clip, square and number that are as far away as its gap asks.

    sources: for each photo its clip, square, frame and gap, the least and greatest distance of frames.
    """
    groups: dict[tuple, list[tuple[int, int]]] = {}
    for index, (photo, number) in enumerate(table.tolist()):
        clip, part, frame, _ = sources[photo]
        groups.setdefault((clip, part, number), []).append((frame, index))
    rows: list[list[int]] = [[] for _ in range(len(table))]
    for members in groups.values():
        for frame, index in members:
            low, high = sources[table[index, 0]][3]
            rows[index] = [other for at, other in members if max(1, low) <= abs(at - frame) <= high]
    return rows


@dataclass
class Batch:
    """What a training step needs; latents as the UNet sees them."""

    reference: torch.Tensor
    """(B, 3, S, S) uint8: the cut-out of the reference view; or (B, N, C), a frozen encoder's tokens of it."""
    target: torch.Tensor
    """(B, C, h, w) latents of the target."""
    background: torch.Tensor
    """(B, C, h, w) latents of the background with its hole in grey."""
    hole: torch.Tensor
    """(B, 1, h, w) of 0 and 1."""
    matte: torch.Tensor
    """(B, 2 * matte**2, h, w) as `imprint.matte.matte_values` gives it; -1 = unknown."""

    text: torch.Tensor | None = None
    """(B, M, W) the text encoder's tokens of the caption, for the adapter's warm-up alone."""

    def __getitem__(self, index) -> Batch:
        return Batch(*(None if value is None else value[index] for value in vars(self).values()))

    @staticmethod
    def joined(parts: list[Batch]) -> Batch:
        columns = zip(*(vars(part).values() for part in parts))
        return Batch(*(None if column[0] is None else torch.cat(column) for column in columns))


@dataclass
class Pairs:
    """Pictures of pairs, before the autoencoder."""

    reference: torch.Tensor
    """(B, 3, S, S) the cut-out of the reference view in [0, 1]."""
    target: torch.Tensor
    """(B, 3, R, R)."""
    background: torch.Tensor
    """(B, 3, R, R), its hole in grey."""
    hole: torch.Tensor
    """(B, 1, R / 8, R / 8)."""
    matte: torch.Tensor
    """(B, 2 * matte**2, R / 8, R / 8), -1 = unknown."""
    text: torch.Tensor | None = None
    """(B, M, W) as in `Batch`."""


class PairMaker:
    """Draws pairs of one stage; `mix` gives the kinds' shares."""

    def __init__(self, config: ImprintConfig, stage: str, views: Views, photos: Photos, mix: dict[str, float]):
        self.config, self.stage, self.views, self.photos = config, stage, views, photos
        has = {
            "rendered": len(views.first) > 0,
            "still": len(photos.items) > 0,
            "video": bool((photos.partner_count > 0).any()),
            "piece": True,
        }
        self.mix = {kind: share for kind, share in mix.items() if share > 0 and has[kind]}
        self.moving = photos.partner_count.nonzero()[:, 0]

    def at(self, side: int) -> PairMaker:
        """The same, of pairs of another side. Raises `ImprintError` for one that the model cannot have."""
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, resolution=side)
        return other

    def __call__(self, count: int, generator: torch.Generator) -> Pairs:
        """`count` pairs of all kinds in random order."""
        draw = Draw(generator)
        total = sum(self.mix.values())
        ends = [round(count * sum(list(self.mix.values())[: i + 1]) / total) for i in range(len(self.mix))]
        made = []
        for kind, start, end in zip(self.mix, [0, *ends], ends):
            if end > start:
                made.append(
                    self._rendered(end - start, draw) if kind == "rendered" else self._photo(kind, end - start, draw)
                )
        order = draw.permutation(count)
        columns = zip(*(vars(pairs).values() for pairs in made))
        return Pairs(*(None if column[0] is None else torch.cat(column)[order] for column in columns))

    def _rendered(self, count: int, draw: Draw) -> Pairs:
        """Two views of a rendered object; for compositing the second stands in a photo."""
        views, side = self.views, self.config.resolution
        level = self._hole_levels(count, draw)
        index = draw.integers(len(views.first), count)
        first, second = views.pair(index, draw)
        # An outline asks for a pose. A box does not: there the object mostly stays as its photo shows it.
        same = draw.chance(torch.where(level == BOX, 0.7, 0.25), count) & (views.gap[index, 0] == 0)
        second = torch.where(same, first, second)
        twin = views.twin[second]
        lit = draw.chance(0.8, count) & (twin >= 0) & (self.stage == "compositing")

        # One hue turn for both: each identity has many colours. A mirrored pair is another object; a mirrored target
        # alone teaches that the outline decides which way the object looks. Fine-tuning learns one object as it is.
        often = 0.0 if self.stage == "finetune" else 1.0
        coloured = draw.chance(0.6 * often, count) & ~lit  # the colour of a light does not turn
        turn = hue_turn(torch.where(coloured, draw.uniform(count, 0, 2 * math.pi), 0.0))
        mirrored = draw.chance(0.5 * often, count)
        turned = mirrored ^ (draw.chance(0.25 * often, count) & (level != BOX))
        reference, target = (_float(views.rgba[rows]) for rows in (first, second))
        target[lit] = _float(views.relit[twin[lit]])
        reference = torch.where(mirrored[:, None, None, None], reference.flip(3), reference)

        tilted = draw.chance(0.35, count) & (level != BOX)
        to_view = self._object_to_frame(views.boxes[second], views.rgba.shape[-1], turned, draw, tilted)
        target = torch.cat([target[:, :3] * target[:, 3:], target[:, 3:]], 1)
        layer = warp(target, to_view, side)
        alpha = layer[:, 3:].clamp(0, 1)
        colour = recolour(layer[:, :3] / alpha.clamp(min=1e-3), turn).clamp(0, 1)
        # Each view was rendered in a light of its own, which nothing tells the model: take most of its strength out.
        strength = (_brightness(reference) / _brightness(torch.cat([colour, alpha], 1))).clamp(0.4, 2.5) ** 0.7
        colour = torch.where(lit[:, None, None, None], colour, (colour * strength).clamp(0, 1))
        cutout = prepare_object(recolour(reference[:, :3], turn).clamp(0, 1), reference[:, 3], self.config.encoder)[1]
        if self.stage == "views":
            return self._on_black(cutout, colour, alpha[:, 0])

        scene = self._photo_crop(draw.integers(len(self.photos.rgb), count), draw)
        scene[lit] = self._place(twin[lit], turned[lit], draw)
        shade = jitter_parameters(draw, count, draw.uniform((count, 1, 1, 1), 0.05, 0.35))
        scene = apply_jitter(scene, shade)
        # The scene's mean brightness, in part, is the light's. Not its colour: that of a meadow is the grass's.
        light = scene.mean((1, 2, 3), keepdim=True) / 0.45
        light = light.clamp(0.2, 1.8) ** draw.uniform((count, 1, 1, 1), 0.1, 0.6)
        colour = torch.where(lit[:, None, None, None], apply_jitter(colour, shade), (colour * light).clamp(0, 1))
        cast = torch.full((count, 3), torch.nan, device=alpha.device)
        cast[lit] = views.shadows[twin[lit]]
        cast[:, 0] = torch.where(turned, -cast[:, 0], cast[:, 0])
        shadow = contact_shadow(alpha, draw, cast) * (lit | draw.chance(0.8, count))[:, None, None, None]
        target = torch.lerp(scene * (1 - shadow), colour, alpha)
        return self._in_scene(cutout, target, scene, alpha[:, 0], shadow[:, 0], level, draw)

    def _photo(self, kind: str, count: int, draw: Draw) -> Pairs:
        """An object that stands in a photo is the target; its cut-out, warped or from another frame, the reference."""
        photos, side = self.photos, self.config.resolution
        photo_side = photos.rgb.shape[-1]
        level = self._hole_levels(count, draw)
        flip = draw.chance(0.0 if self.stage == "finetune" else 0.5, count)
        if kind == "piece":
            rows = source_rows = draw.integers(len(photos.rgb), count)
            to_photo = self._crop_matrix(flip, draw, count)
            sizes = (0.5, 0.9) if self.stage == "views" else (0.3, 0.75)
            outline = blobs(draw.uniform(count, *sizes), side, draw)
            boxes = bounding_boxes(outline)
            within = self._zoom(boxes, side, draw, level)
            zoom = to_photo @ within
        else:
            item = draw.integers(len(photos.items), count)
            if kind == "video":
                item = self.moving[draw.integers(len(self.moving), count)]
            other = item
            if kind == "video":
                pick = (draw.uniform(count) * photos.partner_count[item]).long()
                other = photos.partners[item, pick]
            rows, source_rows = photos.items[item, 0], photos.items[other, 0]
            to_photo = self._object_to_frame(photos.boxes[item], photo_side, flip, draw)
            mask = (photos.objects[rows] == photos.items[item, 1, None, None])[:, None].float()
            outline = (warp(mask, to_photo, side) > 0.5).float()[:, 0]
            empty = outline.flatten(1).amax(1) == 0
            outline[empty] = blobs(draw.uniform(count, 0.25, 0.65), side, draw)[empty]
            zoom = self._zoom(photos.boxes[other], photo_side, draw, level, flip)
            other_mask = (photos.objects[source_rows] == photos.items[other, 1, None, None])[:, None].float()

        rgb = _float(photos.rgb[rows])
        scene = warp(rgb, to_photo, side, "reflection")
        source = rgb if source_rows is rows else _float(photos.rgb[source_rows])
        reference = warp(source, zoom, side, "reflection")
        seen = warp(outline[:, None], within, side) if kind == "piece" else warp(other_mask, zoom, side)
        lost = seen.flatten(1).amax(1) < 0.5
        seen[lost] = 1.0
        shade = jitter_parameters(draw, count, 0.3)  # of the photo as a whole, shared; the reference's own comes on top
        scene = apply_jitter(scene, shade)
        reference = jitter(apply_jitter(reference, shade), draw, 0.2)
        cutout = prepare_object(reference, seen[:, 0], self.config.encoder)[1]
        if self.stage == "views":
            return self._on_black(cutout, scene, outline)
        return self._in_scene(cutout, scene, scene, outline, None, level, draw)

    def _on_black(self, cutout: torch.Tensor, pictures: torch.Tensor, masks: torch.Tensor) -> Pairs:
        """Stage 1: the target is the object alone, on black, and the hole is the whole picture.

        It is framed as the reference is. A random place and size, which nothing tells the model, would be most of the
        loss, and it would learn blots of the right colour before any detail.
        """
        masks = masks.clone()
        masks[masks.flatten(1).amax(1) == 0] = 1.0
        target = cut_out(pictures, masks, self.config.resolution, self.config.encoder.object_margin)
        cells = self.config.resolution // self.config.latent.downscale
        hole = target.new_ones(len(target), 1, cells, cells)
        alpha = cut_out(torch.ones_like(pictures), masks, self.config.resolution, self.config.encoder.object_margin)[
            :, 0
        ]
        return self._pairs(cutout, target, target, hole, alpha, None)

    def _in_scene(
        self,
        cutout: torch.Tensor,
        target: torch.Tensor,
        scene: torch.Tensor,
        alpha: torch.Tensor,
        shadow: torch.Tensor | None,
        level: torch.Tensor,
        draw: Draw,
    ) -> Pairs:
        """Stage 2: a place's light on all of it, and a hole of the given levels (B,), often with room for the shadow at
        every level but the tightest.

        alpha, shadow (B, R, R) in [0, 1]; None where a photo has a shadow that nobody has outlined.
        """
        count = len(alpha)
        light = place_light(draw, count)
        target, scene = ((picture * light).clamp(0, 1) for picture in (target, scene))
        # An object that is much smaller than the box that was drawn for it is what people like least.
        roomy = draw.uniform(count) < torch.tensor([0.0, 0.7, 0.7, 0.3], device=alpha.device)[level]
        outline = alpha > 0.3
        if shadow is not None:
            outline = outline | ((shadow > 0.08) & roomy[:, None, None])
        outline = outline.float()
        levels = mask_levels(outline)
        # A user's box may be as tight as the object itself: tighter than the level that contains all others.
        levels[:, -1] = loosened_box(box(outline), draw)
        hole = levels[torch.arange(count, device=alpha.device), level]
        hole = latent_hole(hole, self.config.latent.downscale)
        return self._pairs(cutout, target, scene, hole, alpha, shadow)

    def _hole_levels(self, count: int, draw: Draw) -> torch.Tensor:
        """(count,) levels of `mask_levels`. Stage 1 has no hole that would ask for a pose: all are boxes there."""
        if self.stage == "views":
            return torch.full((count,), BOX, device=draw.generator.device)
        return draw.categorical((0.15, 0.15, 0.2, 0.5), count)

    def _pairs(
        self,
        cutout: torch.Tensor,
        target: torch.Tensor,
        scene: torch.Tensor,
        hole: torch.Tensor,
        alpha: torch.Tensor,
        shadow: torch.Tensor | None,
    ) -> Pairs:
        matte = matte_values(alpha, torch.full_like(alpha, -1.0) if shadow is None else shadow, self.config)
        return Pairs(cutout, target, paint_hole(scene, hole, self.config.hole_value), hole, matte)

    def _object_to_frame(
        self, boxes: torch.Tensor, side: int, mirrored: torch.Tensor, draw: Draw, tilted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Matrices that put a source's boxed object into the frame: its size, place and turn there are drawn here.

        tilted (B,): for rendered objects, whether as far as a user's hole may ask for; photos have an upright side.
        """
        count = len(boxes)
        centre, extent = _centres(boxes, side)
        size, reach = draw.uniform(count, 0.35, 0.8), 0.5
        if self.stage == "views":  # large and central; the target is cut out of it
            size, reach = draw.uniform(count, 0.8, 0.9), 0.0
        angle = draw.normal(count) * (0.03 if tilted is None else torch.where(tilted, 0.5, 0.12))
        stretch = torch.exp(draw.normal(count) * torch.where(draw.chance(0.2, count), 0.25, 0.06))
        free = (1 - size).clamp(min=0)
        place = (draw.normal((count, 2)) * 0.3 * reach).clamp(-1, 1) * free[:, None]
        zoom = extent / size
        if tilted is not None:
            return _matrix(centre, zoom, angle, stretch, mirrored) @ _shift(-place)
        # A photo has an edge: the frame must lie within it, even if the object is then large or not central.
        zoom = zoom.clamp(max=1)
        spare = (1 - zoom)[:, None]
        centre = torch.minimum(torch.maximum(centre - place * zoom[:, None], -spare), spare)
        return _matrix(centre, zoom, angle, stretch, mirrored)

    def _zoom(
        self, boxes: torch.Tensor, side: int, draw: Draw, level: torch.Tensor, mirrored: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Matrices that show the boxed object large and warped: affine and perspective, and mirrored for some outlines."""
        count = len(boxes)
        centre, extent = _centres(boxes, side)
        angle = draw.normal(count) * 0.15
        stretch = torch.exp(draw.normal(count) * 0.1)
        mirrored = torch.zeros(count, dtype=torch.bool, device=boxes.device) if mirrored is None else mirrored
        mirrored = mirrored ^ (draw.chance(0.2, count) & (level != BOX))
        matrix = _matrix(centre, extent * draw.uniform(count, 1.15, 1.4), angle, stretch, mirrored)
        tilt = torch.eye(3, device=boxes.device).repeat(count, 1, 1)
        tilt[:, 2, :2] = draw.normal((count, 2)).clamp(-2, 2) * 0.08
        return matrix @ tilt

    def _crop_matrix(self, flip: torch.Tensor, draw: Draw, count: int) -> torch.Tensor:
        """A random square of a photo."""
        zoom = draw.uniform(count, 0.5, 1.0)
        place = draw.uniform((count, 2), -1, 1) * (1 - zoom)[:, None]
        return _matrix(place, zoom, draw.normal(count) * 0.03, torch.ones_like(zoom), flip)

    def _place(self, rows: torch.Tensor, mirrored: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Most of the places that relit views have their light from."""
        zoom = draw.uniform(len(rows), 0.7, 1.0)
        offset = draw.uniform((len(rows), 2), -1, 1) * (1 - zoom)[:, None]
        matrix = _matrix(offset, zoom, torch.zeros_like(zoom), torch.ones_like(zoom), mirrored)
        return warp(_float(self.views.scenes[rows]), matrix, self.config.resolution, "reflection")

    def _photo_crop(self, rows: torch.Tensor, draw: Draw) -> torch.Tensor:
        matrix = self._crop_matrix(draw.chance(0.5, len(rows)), draw, len(rows))
        return warp(_float(self.photos.rgb[rows]), matrix, self.config.resolution, "reflection")


class Draw:
    """Random numbers of one generator, on its device."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def uniform(self, shape, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        shape = (shape,) if isinstance(shape, int) else shape
        return torch.rand(shape, generator=self.generator, device=self.generator.device) * (high - low) + low

    def normal(self, shape) -> torch.Tensor:
        shape = (shape,) if isinstance(shape, int) else shape
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def integers(self, high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=self.generator, device=self.generator.device)

    def chance(self, probability: float | torch.Tensor, count: int) -> torch.Tensor:
        return self.uniform(count) < probability

    def categorical(self, weights: tuple[float, ...], count: int) -> torch.Tensor:
        table = torch.tensor(weights, device=self.generator.device).expand(count, -1)
        return torch.multinomial(table, 1, generator=self.generator)[:, 0]

    def permutation(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self.generator, device=self.generator.device)


def warp(images: torch.Tensor, matrices: torch.Tensor, side: int, beyond: str = "zeros") -> torch.Tensor:
    """Resample (B, C, H, W) by (B, 3, 3) to (B, C, side, side), at twice the side and averaged against aliasing."""
    line = (torch.arange(2 * side, device=images.device) + 0.5) / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)
    mapped = points @ matrices.transpose(1, 2)
    grid = (mapped[..., :2] / mapped[..., 2:]).unflatten(1, (2 * side, 2 * side))
    return F.avg_pool2d(F.grid_sample(images, grid, padding_mode=beyond, align_corners=False), 2)


def _matrix(
    centre: torch.Tensor, zoom: torch.Tensor, angle: torch.Tensor, stretch: torch.Tensor, mirrored: torch.Tensor
) -> torch.Tensor:
    """Turn, scale, mirror and move: (B, 3, 3). zoom < 1 enlarges; stretch > 1 widens x and narrows y in the source."""
    sign = torch.where(mirrored, -1.0, 1.0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [
        torch.stack([cos * stretch * sign, -sin * stretch, centre[:, 0]], 1),
        torch.stack([sin * sign / stretch, cos / stretch, centre[:, 1]], 1),
        torch.stack([torch.zeros_like(zoom), torch.zeros_like(zoom), torch.ones_like(zoom)], 1),
    ]
    return torch.stack(rows, 1)


def _shift(offset: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(3, device=offset.device).repeat(len(offset), 1, 1)
    matrix[:, :2, 2] = offset
    return matrix


def _centres(boxes: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in pixels -> centres (B, 2) as x, y in [-1, 1] and longer sides (B,) over the picture's."""
    boxes = boxes.float()
    centre = (boxes[:, :2] + boxes[:, 2:]).flip(1) / side - 1
    return centre, (boxes[:, 2:] - boxes[:, :2]).amax(1) / side


def _float(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def _brightness(layers: torch.Tensor) -> torch.Tensor:
    """(B, 4, H, W) -> (B, 1, 1, 1) mean colour where there is something."""
    alpha = layers[:, 3:]
    total = (layers[:, :3] * alpha).mean((1, 2, 3), keepdim=True)
    return total.clamp(min=1e-4) / alpha.mean((1, 2, 3), keepdim=True).clamp(min=1e-4)


def hue_turn(angles: torch.Tensor) -> torch.Tensor:
    """(B,) radians -> (B, 3, 3): rotations of RGB space about the grey axis."""
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    ones = torch.ones(3, 3, device=angles.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angles.device) / math.sqrt(3)
    return cos * torch.eye(3, device=angles.device) + (1 - cos) / 3 * ones + sin * cross


def recolour(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Apply (B, 3, 3) to the colours of (B, 3, H, W)."""
    return torch.einsum("bij,bjhw->bihw", matrices, images)


def jitter_parameters(draw: Draw, count: int, strength: float | torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Exposure and white balance as gains (B, 3, 1, 1), gamma and saturation (B, 1, 1, 1); strength may be (B, 1, 1, 1)."""
    gain = torch.exp(draw.normal((count, 1, 1, 1)) * strength * 0.7 + draw.normal((count, 3, 1, 1)) * strength * 0.25)
    gamma = torch.exp(draw.normal((count, 1, 1, 1)) * strength * 0.4)
    saturation = (1 + draw.normal((count, 1, 1, 1)) * strength).clamp(0, 2)
    return gain, gamma, saturation


def apply_jitter(images: torch.Tensor, parameters: tuple[torch.Tensor, ...]) -> torch.Tensor:
    gain, gamma, saturation = parameters
    images = (images.clamp(1e-3, 1) ** gamma * gain).clamp(0, 1)
    return torch.lerp(images.mean(1, keepdim=True), images, saturation).clamp(0, 1)


def jitter(images: torch.Tensor, draw: Draw, strength: float | torch.Tensor) -> torch.Tensor:
    """Change exposure, white balance, contrast and saturation of (B, 3, H, W), each picture on its own."""
    return apply_jitter(images, jitter_parameters(draw, len(images), strength))


def place_light(draw: Draw, count: int) -> torch.Tensor:
    """(B, 3, 1, 1) gains of a whole picture, object and all, half of them 1: the same place by night, lamp light or glare.

    The reference does not get them. They teach that a dark or tinted scene darkens and tints what is put into it.
    """
    exposure = draw.uniform((count, 1, 1, 1), math.log(0.25), math.log(1.4))
    warmth = draw.normal((count, 1, 1, 1)) * torch.tensor([0.12, 0.0, -0.2], device=exposure.device)[:, None, None]
    gains = torch.exp(exposure + warmth + draw.normal((count, 3, 1, 1)) * 0.06)
    return torch.where(draw.chance(0.5, count)[:, None, None, None], gains, 1.0)


def contact_shadow(alpha: torch.Tensor, draw: Draw, known: torch.Tensor | None = None) -> torch.Tensor:
    """(B, 1, R, R) alpha -> (B, 1, R, R) share of light lost on the ground that the object stands on.

    Two shadows of which the darker counts: the outline flattened onto the ground, leaning any way and soft to sharp, as a
    lamp or the sun casts it; and a narrow dark one where object and ground touch, which every light leaves. known (B, 3):
    lean, rise and depth of the first as `Record.shadow` has them, drawn where they are not a number.
    """
    count, side = len(alpha), alpha.shape[-1]
    solid = (alpha[:, 0] > 0.5).float()
    solid[solid.flatten(1).amax(1) == 0] = 1.0
    foot = bounding_boxes(solid)[:, 2].float() / side * 2 - 1

    def flattened(flat: torch.Tensor, shear: torch.Tensor) -> torch.Tensor:
        # Output to source: y is measured from the foot and stretched back up; x leans with the height.
        zero, one = torch.zeros_like(foot), torch.ones_like(foot)
        rows = [
            torch.stack([one, shear / flat, -shear / flat * foot], 1),
            torch.stack([zero, 1 / flat, foot - foot / flat], 1),
            torch.stack([zero, zero, one], 1),
        ]
        return warp(alpha, torch.stack(rows, 1), side)

    drawn = torch.stack(
        [draw.uniform(count, -0.8, 0.8), draw.uniform(count, 0.1, 0.45), draw.uniform(count, 0.2, 0.65)], 1
    )
    lean, rise, depth = (drawn if known is None else torch.where(known.isnan(), drawn, known)).unbind(1)
    cast = flattened(rise, lean)
    soft = [cast]
    for _ in range(2):
        soft.append(_box_blur(_box_blur(soft[-1], side // 24), side // 24))
    choice = draw.uniform((count, 1, 1, 1), 0.4, 2)
    cast = torch.where(choice < 1, torch.lerp(soft[0], soft[1], choice), torch.lerp(soft[1], soft[2], choice - 1))
    touch = _box_blur(flattened(torch.full_like(foot, 0.06), torch.zeros_like(foot)), side // 48)
    return torch.maximum(cast * depth[:, None, None, None], touch * draw.uniform((count, 1, 1, 1), 0.4, 0.8))


def _box_blur(images: torch.Tensor, radius: int) -> torch.Tensor:
    for kernel in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
        images = F.avg_pool2d(images, kernel, 1, tuple(k // 2 for k in kernel))
    return images


def blobs(size: torch.Tensor, side: int, draw: Draw) -> torch.Tensor:
    """(B,) sizes over the side -> (B, side, side) of 0 and 1: pieces of random outline, smooth to jagged."""
    count = len(size)
    line = (torch.arange(side, device=draw.generator.device) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    centre = (draw.normal((count, 2)) * 0.25).clamp(-0.8, 0.8) * (1 - size)[:, None]
    aspect = torch.exp(draw.normal(count) * 0.3).clamp(0.5, 2)
    dx = (x - centre[:, 0, None, None]) / (size * aspect.clamp(max=1))[:, None, None]
    dy = (y - centre[:, 1, None, None]) / (size / aspect.clamp(min=1))[:, None, None]
    angle = torch.atan2(dy, dx)
    radius = torch.ones_like(angle)
    for order in range(2, 8):
        strength = draw.normal((count, 1, 1)) * 0.28 / order**0.7
        radius = radius + strength * torch.cos(order * angle + draw.uniform((count, 1, 1), 0, 2 * math.pi))
    power = torch.where(draw.chance(0.5, count), 2.0, draw.uniform(count, 2, 8))[:, None, None]
    distance = (dx.abs() ** power + dy.abs() ** power) ** (1 / power)
    inside = (distance < radius.clamp(0.35, 1.0)).float()
    inside[inside.flatten(1).amax(1) == 0] = 1.0
    return inside


def loosened_box(boxes: torch.Tensor, draw: Draw) -> torch.Tensor:
    """(B, R, R) filled boxes -> boxes grown by a random part of their size on each side, more often little than much."""
    count = len(boxes)
    edges = bounding_boxes(boxes).float()
    extent = (edges[:, 2:] - edges[:, :2]).repeat(1, 2)
    most = torch.tensor([0.04, 0.2, 0.8], device=boxes.device)[draw.categorical((0.7, 0.22, 0.08), count)]
    room = draw.uniform((count, 4)) * extent * most[:, None]
    room[:, 2] *= draw.chance(0.5, count)  # in a box that a user draws, an object more often stands than it floats
    grown = torch.cat([(edges[:, :2] - room[:, :2]).floor(), edges[:, 2:] + room[:, 2:]], 1)
    return fill_boxes(grown, *boxes.shape[1:]).to(boxes)
