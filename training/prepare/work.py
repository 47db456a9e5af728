"""What all sources share: cutting into shards, filtering, writing them in parallel, going on, counting, and the picture to look at."""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import math
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from imprint.errors import ImprintError
from imprint.images import open_image, to_rgb

from .. import shards
from . import captions, multiview, stills, video
from .filters import ALPHA_THRESHOLD, Limits, edge_width, unusable_objects
from .items import Dropped, Group, Item, Source

T, R = TypeVar("T"), TypeVar("R")

SOURCES: dict[str, Source] = multiview.SOURCES | video.SOURCES | stills.SOURCES | captions.SOURCES
SHEET_SIDE, SHEET_COLUMNS, SHEET_ROWS = 192, 8, 6  # of the contact sheet
COLOURS = ((255, 70, 70), (70, 220, 70), (90, 130, 255), (255, 200, 0), (255, 80, 255), (0, 220, 220))


@dataclass(frozen=True)
class Job:
    """One shard."""

    split: str
    number: int
    groups: tuple[Group, ...]


def plan(groups: list[Group], options: argparse.Namespace) -> list[Job]:
    """Cut both sides of the split into shards, the groups in an order by the hash of their names."""
    jobs = []
    for split in shards.SPLITS:
        side = [
            group
            for group in groups
            if shards.held_out(group.key or group.name, options.held_out) == (split == "held-out")
        ]
        pieces: list[list[Group]] = []
        for group in sorted(side, key=lambda group: (shards.name_hash(group.name), group.name)):
            if not pieces or sum(member.size for member in pieces[-1]) + group.size > options.shard_size:
                pieces.append([])
            pieces[-1].append(group)
        jobs += [Job(split, number, tuple(piece)) for number, piece in enumerate(pieces)]
    return jobs


# --- one shard -------------------------------------------------------------------------------------------------------


def write_shard(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Read, filter and write the groups of a shard; returns its report, which is also kept beside the shards.

    The report is written last: a shard with a report is whole. Where nothing is left there is no shard.
    """
    source = SOURCES[options.source]
    samples: list[dict] = []
    counts: Counter[str] = Counter()
    dropped: list[Dropped] = []
    for group in job.groups:
        made, objects = [], 0
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
            objects += kept
        if len(made) < source.least:
            dropped += [Dropped(f"fewer than {source.least} pictures left", group.name)] if made else []
            continue
        samples += made
        counts.update(pictures=len(made), objects=objects, groups=1)
    if samples:
        with shards.shard_writer(_shard(job, options)) as writer:
            for number, parts in enumerate(samples):
                writer.write({"__key__": f"{options.name}-{job.split}-{job.number:06d}-{number:05d}"} | parts)
    report = {
        "split": job.split,
        "size": len(job.groups),
        "counts": counts,
        "dropped": [[entry.reason, entry.what, entry.detail] for entry in dropped],
    }
    shards.write_file(_report(job, options), json.dumps(report).encode())
    return report


def _items(source: Source, group: Group, options: argparse.Namespace) -> Iterator[Item | Dropped]:
    try:
        yield from source.read(group, options)
    except Dropped as reason:
        yield reason
    except OSError as error:
        yield Dropped("unreadable", group.name, repr(error))


def make_sample(item: Item, source: Source, options: argparse.Namespace) -> tuple[dict, int, list[Dropped]]:
    """A sample without its key, how many objects it has, and the objects that were left out. Raises `Dropped`."""
    if isinstance(item.picture, Image.Image):
        return _cutout_sample(item, options)
    if item.picture.name in options.excluded:
        raise Dropped("excluded", item.name)
    if not item.picture.is_file():
        raise Dropped("no picture", item.name)
    try:
        picture = to_rgb(open_image(item.picture))
    except ImprintError as error:
        raise Dropped("broken picture", item.name, error) from error
    values = None
    lost: list[Dropped] = []
    try:
        values = item.mask() if item.mask else None
        if values is not None and values.shape != picture.size[::-1]:
            wide, high = values.shape[::-1]
            raise Dropped("mask of another size", item.name, f"{wide} x {high} for {picture.width} x {picture.height}")
    except Dropped as reason:
        if not source.bare or reason.reason == "no mask":
            raise
        lost, values = [reason], None  # a still without its mask is a background
    picture.thumbnail((options.longest_side, options.longest_side), Image.LANCZOS)
    labels, more = (None, []) if values is None else usable_labels(values, picture.size, options.limits, item.name)
    kept = 0 if labels is None else len(np.unique(labels[labels > 0]))
    if labels is not None and not kept:
        more = more or [Dropped("empty mask", item.name)]
        if not source.bare:
            raise more[0]
        labels = None
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=options.quality)
    mask = None if labels is None else Image.fromarray(labels)
    return _parts(item, "jpg", buffer, mask), kept, lost + more


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


def _cutout_sample(item: Item, options: argparse.Namespace) -> tuple[dict, int, list[Dropped]]:
    """A rendered view; it is framed by its object, which may be as large as fits."""
    seen = np.asarray(item.picture.getchannel("A")) > 127
    limits = Limits(options.limits.min_area, max_area=1.0, border=0)
    if reasons := unusable_objects(seen.astype(np.uint8), limits):
        raise Dropped(reasons[1], item.name)
    if not seen.any():
        raise Dropped("empty mask", item.name)
    buffer = io.BytesIO()
    item.picture.save(buffer, "WEBP", quality=options.quality, exact=True)
    scene = io.BytesIO()
    if item.scene is not None:
        item.scene.save(scene, "JPEG", quality=options.quality)
    return _parts(item, "webp", buffer, None, scene.getvalue()), 1, []


def _parts(item: Item, kind: str, picture: io.BytesIO, mask: Image.Image | None, scene: bytes = b"") -> dict:
    parts = shards.sample("", picture.getvalue(), kind, item.record, mask, item.text, scene)
    return {name: value for name, value in parts.items() if name != "__key__"}


def _shard(job: Job, options: argparse.Namespace) -> str:
    return shards.inside(options.output, job.split, f"{options.name}-{job.number:06d}.tar")


def _report(job: Job, options: argparse.Namespace) -> str:
    return shards.inside(options.output, "reports", options.name, f"{job.split}-{job.number:06d}.json")


# --- all shards ------------------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Write the shards that are missing, the report and the contact sheet; returns the report.

    Raises `ImprintError` for a folder of another layout, and where OUTPUT holds the same name with other options.
    """
    groups = list(SOURCES[options.source].groups(options.input, options))
    if not groups:
        raise ImprintError(f"{options.input} holds nothing that {options.source} reads; see its layout with --help")
    jobs = plan(groups, options)
    resolved = _resolved(groups, options)
    summary = shards.inside(options.output, f"{options.name}.json")
    before = _read_json(summary)
    if before is not None and before["options"] != resolved:
        changed = next(name for name in resolved if before["options"].get(name) != resolved[name])
        raise ImprintError(
            f"{summary} was begun with {changed} = {before['options'].get(changed)!r}, not {resolved[changed]!r}; "
            "repeat that, or give another --output or --name"
        )
    if options.dry_run:
        return {"options": resolved, "shards": len(jobs)}
    shards.write_file(summary, json.dumps({"options": resolved}, indent=1).encode())

    with ThreadPoolExecutor() as pool:
        known = list(zip(jobs, pool.map(lambda job: _read_json(_report(job, options)), jobs)))
    reports = [report for _, report in known if report is not None]
    missing = [job for job, report in known if report is None]
    done = sum(report["size"] for report in reports)
    with tqdm(total=len(groups), initial=done, unit="group", desc=options.name) as bar:
        for report in ENGINES[options.engine](missing, options):
            reports.append(report)
            bar.update(report["size"])
    return _finish(jobs, reports, resolved, summary, options)


def _resolved(groups: list[Group], options: argparse.Namespace) -> dict[str, Any]:
    """All that decides what is in the shards."""
    names = (
        "source",
        "licence",
        "longest_side",
        "quality",
        "held_out",
        "shard_size",
        "views",
        "resolution",
        "identities",
        "relit",
        "seed",
    )
    digest = hashlib.sha256("\n".join(sorted(group.name for group in groups)).encode())
    left_out = hashlib.sha256("\n".join(sorted(options.excluded)).encode())
    return {name: getattr(options, name) for name in names} | {
        "input": str(options.input),
        "textures": [str(path) for path in options.textures],
        "panoramas": [str(path) for path in options.panoramas],
        "limits": asdict(options.limits),
        "excluded": left_out.hexdigest()[:16] if options.excluded else "",
        "groups": len(groups),
        "names": digest.hexdigest()[:16],
    }


def _read_json(place: str) -> dict | None:
    """A report; None where there is none yet, or a broken one."""
    try:
        return json.loads(shards.read_file(place))
    except (FileNotFoundError, ValueError):
        return None


def _finish(
    jobs: list[Job], reports: list[dict], resolved: dict, summary: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Add up the reports; write summary, list of what was dropped, list of shards and contact sheet."""
    counts = {split: Counter() for split in shards.SPLITS}
    dropped = []
    for report in reports:
        counts[report["split"]].update(report["counts"])
        dropped += report["dropped"]
    result = {"options": resolved, "counts": counts, "dropped": Counter(reason for reason, _, _ in dropped)}
    lines = sorted("\t".join(" ".join(field.split()) for field in entry) for entry in dropped)
    shards.write_file(
        shards.inside(options.output, f"{options.name}.dropped.tsv"), "".join(f"{line}\n" for line in lines).encode()
    )
    made = []
    for split in shards.SPLITS:
        if counts[split]["pictures"]:
            found = shards.list_shards(shards.inside(options.output, split))
            index = "".join(f"{place.rsplit('/', 1)[1]}\n" for place in found)
            shards.write_file(shards.inside(options.output, split, shards.INDEX), index.encode())
            mine = {_shard(job, options) for job in jobs if job.split == split}
            made += [place for place in found if place in mine]
    buffer = io.BytesIO()
    contact_sheet(made).save(buffer, "PNG")
    shards.write_file(shards.inside(options.output, f"{options.name}.png"), buffer.getvalue())
    shards.write_file(summary, json.dumps(result, indent=1).encode())
    return result


def contact_sheet(places: list[str]) -> Image.Image:
    """Samples from all over the shards, their objects outlined; cut-outs on their scene, or on grey."""
    total = SHEET_COLUMNS * SHEET_ROWS
    tiles = []
    chosen = [places[index * len(places) // min(len(places), total)] for index in range(min(len(places), total))]
    for number, shard in enumerate(chosen):
        wanted = total * (number + 1) // len(chosen) - total * number // len(chosen)
        samples = list(shards.read_parts(shard))
        wanted = min(wanted, len(samples))
        for index in range(wanted):
            sample = shards.decode_sample(samples[index * len(samples) // wanted])
            tiles.append(outlined(sample.picture, sample.mask, sample.scene))
    return sheet_of(tiles)


def sheet_of(tiles: list[Image.Image]) -> Image.Image:
    """Tiles of at most `SHEET_SIDE` pixels in rows of `SHEET_COLUMNS`."""
    rows = max(1, math.ceil(len(tiles) / SHEET_COLUMNS))
    sheet = Image.new("RGB", (SHEET_COLUMNS * SHEET_SIDE, rows * SHEET_SIDE), (40, 40, 40))
    for place, tile in enumerate(tiles):
        row, column = divmod(place, SHEET_COLUMNS)
        sheet.paste(tile, (column * SHEET_SIDE, row * SHEET_SIDE))
    return sheet


def outlined(picture: Image.Image, mask: Image.Image | None, scene: Image.Image | None = None) -> Image.Image:
    """A tile of the sheet, a coloured line around each object. mask: 8-bit, n = the n-th object."""
    ground = Image.new("RGB", picture.size, (128, 128, 128))
    if scene is not None:
        ground.paste(scene.resize(picture.size))
    ground.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    ground.thumbnail((SHEET_SIDE - 4, SHEET_SIDE - 4))
    if mask is not None:
        labels = np.asarray(mask.resize(ground.size, Image.NEAREST))
        pixels = np.array(ground)
        edge = np.zeros(labels.shape, bool)
        edge[:-1] |= labels[1:] != labels[:-1]
        edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
        inner = np.maximum(labels, np.maximum(np.roll(labels, -1, 0), np.roll(labels, -1, 1)))  # the object at the edge
        pixels[edge] = np.array(COLOURS)[(inner[edge] - 1) % len(COLOURS)]
        ground = Image.fromarray(pixels)
    return ground


# --- engines ---------------------------------------------------------------------------------------------------------


def _in_processes(jobs: list[Job], options: argparse.Namespace) -> Iterator[dict]:
    return in_processes(functools.partial(write_shard, options=options), jobs, options.workers, "shards")


def in_processes(work: Callable[[T], R], jobs: list[T], workers: int, made: str) -> Iterator[R]:
    """What `work` makes of each job, as it is ready; with one worker, in this process.

    made: what is written by a job, for the `ImprintError` that a worker's death raises.
    """
    if workers == 1:
        yield from map(work, jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        for done in as_completed([pool.submit(work, job) for job in jobs]):
            yield done.result()
    except BrokenProcessPool as error:  # multiprocessing.Pool would wait for the lost job for ever
        raise ImprintError(
            f"a worker process has died, perhaps for want of memory (any error of its own stands above); finished {made} are "
            "kept: run the same command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(jobs: list[Job], options: argparse.Namespace) -> Iterator[dict]:
    """The same work as Ray Data's tasks, one a shard, on the cluster of RAY_ADDRESS or else on this machine.

    Every node needs this checkout, and input and output at the same address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImprintError(f'--engine ray cannot be used ({error}): pip install ".[ray]"') from error
    if not jobs:
        return
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    rows = [{"job": pickle.dumps((job, options))} for job in jobs]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_ray_task)
    for row in done.iter_rows():
        yield json.loads(row["report"])


def _ray_task(row: dict) -> dict:
    job, options = pickle.loads(row["job"])
    return {"report": json.dumps(write_shard(job, options))}


ENGINES = {"processes": _in_processes, "ray": _on_ray}
