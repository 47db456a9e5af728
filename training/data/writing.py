"""Common to all sources: splitting into shards, filtering, and writing."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from imprint.errors import ImprintError
from imprint.images import to_srgb
from imprint.mask_reading import alpha_to_tensor

from . import shards
from .filters import ALPHA_THRESHOLD, Limits, edge_width, objects_at_the_edge, unusable_objects
from .items import Dropped, Group, Item, Source, open_picture
from .settings import Prepare

CUTOUT_SIDE = 0.8  # the longest side of a cut-out, relative to its picture
GROUND = (128, 128, 128)


@dataclass(frozen=True)
class ShardJob:
    """A shard to write."""

    split: str
    number: int
    groups: tuple[Group, ...]


def plan(groups: list[Group], options: Prepare) -> list[ShardJob]:
    """Divide both sides of the split into shards, with the groups ordered by the hash of their names."""
    jobs, held = [], held_out_keys(groups, options.held_out)
    for split in shards.SPLITS:
        side = [group for group in groups if ((group.key or group.name) in held) == (split == "held-out")]
        pieces: list[list[Group]] = []
        for group in sorted(side, key=lambda group: (shards.name_hash(group.name), group.name)):
            if not pieces or sum(member.size for member in pieces[-1]) + group.size > options.shard_size:
                pieces.append([])
            pieces[-1].append(group)
        jobs += [ShardJob(split, number, tuple(piece)) for number, piece in enumerate(pieces)]
    return jobs


def held_out_keys(groups: list[Group], part: float) -> set[str]:
    """The keys of the held-out groups, by a hash of each; with two or more, at least one is on either side."""
    keys = sorted({group.key or group.name for group in groups}, key=lambda key: (shards.name_hash(key), key))
    held = {key for key in keys if shards.held_out(key, part)}
    if len(keys) > 1 and 0 < part < 1:
        held |= {keys[0]}
        held -= {keys[-1]}
    return held


def write_shard(job: ShardJob, source: Source, options: Prepare) -> dict[str, Any]:
    """Read, filter and write the groups of a shard; returns its report, which is also written beside the shards.

    The report is written last: a shard with a report is complete. If nothing is left there is no shard.
    """
    samples: list[dict] = []
    counts: Counter[str] = Counter()
    dropped: list[Dropped] = []
    for group in job.groups:
        made, objects = [], Counter()
        for item in _items(source, group, options):
            try:
                if isinstance(item, Dropped):
                    raise item
                parts, kept, lost = make_sample(item, source, options)
            except Dropped as reason:
                dropped.append(reason)
                continue
            except OSError as error:  # of a disk that cannot be read; nothing is written here
                dropped.append(Dropped("unreadable", item.name, repr(error)))
                continue
            dropped += lost
            made.append(parts)
            objects.update(kept)
        if len(made) < source.least:
            dropped += [Dropped(f"fewer than {source.least} pictures left", group.name)] if made else []
            continue
        samples += made
        counts.update(pictures=len(made), objects=objects.pop("objects", 0), groups=1)
        counts.update(objects)
    if samples:
        with shards.shard_writer(shard_url(job, options)) as writer:
            for number, parts in enumerate(samples):
                writer.write({"__key__": f"{options.name}-{job.split}-{job.number:06d}-{number:05d}"} | parts)
    report = {
        "split": job.split,
        "size": len(job.groups),
        "counts": counts,
        "dropped": [[entry.reason, entry.what, entry.detail] for entry in dropped],
    }
    shards.write_file(report_url(job, options), json.dumps(report).encode())
    return report


def _items(source: Source, group: Group, options: Prepare) -> Iterator[Item | Dropped]:
    try:
        yield from source.read(group, options)
    except Dropped as reason:
        yield reason
    except OSError as error:
        yield Dropped("unreadable", group.name, repr(error))


def make_sample(item: Item, source: Source, options: Prepare) -> tuple[dict, dict[str, int], list[Dropped]]:
    """A sample without its key, counts of its objects, and the dropped objects. Raises `Dropped`."""
    if isinstance(item.picture, Image.Image):
        return _cutout_sample(item, options)
    picture, alpha = _opened(item, options)
    if item.cutout:
        if alpha is None:
            raise Dropped("no mask", item.name, "opaque, and no mask beside it")
        return _cutout_sample(replace(item, picture=_in_square(picture, alpha, options)), options)
    return _photo_sample(item, picture, alpha, source, options)


def _opened(item: Item, options: Prepare) -> tuple[Image.Image, np.ndarray | None]:
    """An item's picture in sRGB and, where its transparency counts, its alpha (H, W) in [0, 1]. Raises `Dropped`."""
    if item.picture.name in options.excluded:
        raise Dropped("excluded", item.name)
    if not item.picture.is_file():
        raise Dropped("no picture", item.name)
    try:
        opened = open_picture(item.picture)
        picture = to_srgb(opened)
        alpha = alpha_to_tensor(opened) if item.own_alpha or item.cutout else None
    except ImprintError as error:
        raise Dropped("broken picture", item.name, error) from error
    return picture, None if alpha is None else alpha[0].numpy()


def _photo_sample(
    item: Item, picture: Image.Image, alpha: np.ndarray | None, source: Source, options: Prepare
) -> tuple[dict, dict[str, int], list[Dropped]]:
    """As `make_sample`, of a photo with its objects' mask, or of a cut-out on a plain ground."""
    values = None
    bare = source.bare and alpha is None  # a cut-out without its object is useless
    lost: list[Dropped] = []
    try:
        if alpha is not None:
            picture, values = _on_ground(picture, alpha)
        elif item.mask:
            values = item.mask()
        if values is not None and values.shape != picture.size[::-1]:
            wide, high = values.shape[::-1]
            raise Dropped("mask of another size", item.name, f"{wide} x {high} for {picture.width} x {picture.height}")
    except Dropped as reason:
        if not source.bare or reason.reason == "no mask":
            raise
        lost, values = [reason], None  # a still without a mask is a background
    picture.thumbnail((options.longest_side, options.longest_side), Image.LANCZOS)
    labels, more = (None, []) if values is None else usable_labels(values, picture.size, options.limits, item.name)
    kept = {"objects": 0 if labels is None else len(np.unique(labels[labels > 0]))}
    if labels is not None and (cut := objects_at_the_edge(labels)):
        kept["cut by the border (no training targets)"] = cut
    if labels is not None and not kept["objects"]:
        more = more or [Dropped("empty mask", item.name)]
        if not bare:
            raise more[0]
        labels = None
    file = shards.encoded(picture, "JPEG", quality=options.quality)
    mask = None if labels is None else Image.fromarray(labels)
    return _parts(item, "jpg", file, mask), kept, lost + more


def _on_ground(picture: Image.Image, alpha: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Put a cut-out, RGB and (H, W) in [0, 1], on grey, padded so that it fills at most `CUTOUT_SIDE`."""
    mask = Image.fromarray((alpha * 255).round().astype(np.uint8))
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    room = math.ceil(max(right - left, bottom - top) * (1 / CUTOUT_SIDE - 1) / 2)
    x, y = max(0, room - left), max(0, room - top)
    size = max(x + picture.width, x + right + room), max(y + picture.height, y + bottom + room)
    ground, where = Image.new("RGB", size, GROUND), Image.new("L", size)
    ground.paste(picture, (x, y), mask)
    where.paste(mask, (x, y))
    return ground, np.asarray(where, np.float32) / 255


def _in_square(picture: Image.Image, alpha: np.ndarray, options: Prepare) -> Image.Image:
    """Centre a cut-out, RGB and (H, W) in [0, 1], as RGBA in a square of which it fills `CUTOUT_SIDE`."""
    mask = Image.fromarray((alpha * 255).round().astype(np.uint8))
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    side = math.ceil(max(right - left, bottom - top) / CUTOUT_SIDE)
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    picture.putalpha(mask)
    square = picture.crop((x, y, x + side, y + side))
    square.thumbnail((options.longest_side, options.longest_side), Image.LANCZOS)
    return square


def usable_labels(
    values: np.ndarray, size: tuple[int, int], limits: Limits, name: str
) -> tuple[np.ndarray, list[Dropped]]:
    """The numbers of the usable objects at the stored size (width, height), and the others.

    values (H, W): uint8 numbers, or float32 alpha of one object.
    """
    if values.dtype != np.uint8:
        alpha = np.asarray(Image.fromarray(values).resize(size, Image.BOX))
        if (width := edge_width(alpha)) > limits.max_edge:
            return np.zeros(size[::-1], np.uint8), [Dropped("soft mask", name, f"its edge is {width:.1f} pixels wide")]
        values = (alpha > ALPHA_THRESHOLD).astype(np.uint8)
    labels = np.array(Image.fromarray(values).resize(size, Image.NEAREST))
    reasons = unusable_objects(labels, limits)
    labels[np.isin(labels, list(reasons))] = 0
    return labels, [Dropped(reason, f"{name} object {number}") for number, reason in reasons.items()]


def _cutout_sample(item: Item, options: Prepare) -> tuple[dict, dict[str, int], list[Dropped]]:
    """A rendered view; it is framed by its object, which may fill it."""
    seen = np.asarray(item.picture.getchannel("A")) > 127
    limits = Limits(options.limits.min_area, max_area=1.0, border=0)
    if reasons := unusable_objects(seen.astype(np.uint8), limits):
        raise Dropped(reasons[1], item.name)
    if not seen.any():
        raise Dropped("empty mask", item.name)
    file = shards.encoded(item.picture, "WEBP", quality=options.quality, exact=True)
    scene = b"" if item.scene is None else shards.encoded(item.scene, "JPEG", quality=options.quality)
    return _parts(item, "webp", file, None, scene), {"objects": 1}, []


def _parts(item: Item, kind: str, picture: bytes, mask: Image.Image | None, scene: bytes = b"") -> dict:
    parts = shards.sample("", picture, kind, item.record, mask, item.text, scene)
    return {name: value for name, value in parts.items() if name != "__key__"}


def shard_url(job: ShardJob, options: Prepare) -> str:
    return shards.inside(options.output, job.split, f"{options.name}-{job.number:06d}.tar")


def report_url(job: ShardJob, options: Prepare) -> str:
    return shards.inside(options.output, "reports", options.name, f"{job.split}-{job.number:06d}.json")
