"""The data format: WebDataset shards of pictures with their objects.

A sample is `<key>.jpg|.png|.webp` (the picture), `<key>.json` (`Record`'s fields) and, for a picture without an alpha
channel, `<key>.mask.png` if it has annotated objects: 8-bit, 0 = background, n = the n-th object. A cut-out's alpha
channel is its mask; `<key>.scene.jpg` is the scene in whose light it was taken. `<key>.txt` holds captions, one per
line. Frames of one clip share `clip` and are in one shard; views of one object share `object` and are adjacent.

Shards are in a folder, at any URL that fsspec supports (s3://, gs://, hf://, memory://), or on a web server (http://,
https://), which has no listing and therefore needs the `shards.txt` written by training.prepare. WebDataset's own
opener is not used: it runs a shell command for a URL that begins with pipe:, and curl for a web URL.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from imprint.errors import ImprintError
from imprint.files import replacing
from imprint.images import to_rgb

if TYPE_CHECKING:
    import webdataset

SPLITS = ("train", "held-out")
USUAL = ("JPEG", "PNG", "WEBP")  # formats of pictures in shards
INDEX = "shards.txt"  # names of a folder's shards, one per line, for servers without listings
ATTEMPTS = 3  # at reading a remote shard, before the run stops
MAX_FRAME_GAP = 7  # IMPRINT's |n1 - n2| <= 7 (arXiv 2403.10701, section 3.4)
VIDEO_GAP = (1, MAX_FRAME_GAP)
ANY_GAP = (0, 1 << 30)  # any two of an object's pictures make a pair
MIN_OBJECT_SIDE = 0.15  # relative to the photo: smaller annotated objects are useless for learning
SCENE_SCALE = 0.75  # a scene's side relative to its cut-out's: panoramas are less sharp


@dataclass(frozen=True)
class Record:
    """The metadata of a picture."""

    object: str
    clip: str
    frame: int
    source: str
    licence: str
    gap: tuple[int, int] = VIDEO_GAP
    """The smallest and largest difference of `frame` at which two pictures of the clip or object make a pair."""
    shadow: tuple[float, float, float] | None = None
    """For a cut-out with a scene, its shadow on level ground: how far its top lies to the right and up in the picture,
    relative to the object's height, and the fraction of the ground's sRGB value that it removes."""


class Sample(NamedTuple):
    """A decoded picture of a shard."""

    record: Record
    picture: Image.Image
    mask: Image.Image | None = None
    scene: Image.Image | None = None


def held_out(name: str, part: float) -> bool:
    """Whether a clip or mesh is held out for validation, by a hash of its name, so that the split never changes."""
    return name_hash(name) / 2**32 < part


def name_hash(name: str) -> int:
    """32 bits that are the same on every machine."""
    return int(name_digest(name)[:8], 16)


def name_digest(name: str) -> str:
    """SHA-256 of a name, in hexadecimal; also for file names that are not UTF-8."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


# --- URLs ------------------------------------------------------------------------------------------------------------


def inside(url: str | os.PathLike, *names: str) -> str:
    """The URL or path of something in a folder."""
    return "/".join([str(url).rstrip("/"), *names])


def write_file(url: str | os.PathLike, data: bytes) -> None:
    """Write the whole file or nothing: by renaming on a disk, by a single upload elsewhere."""
    if is_local(url):
        with replacing(url) as temporary:
            temporary.write_bytes(data)
        return
    system, path = _system(url)
    try:
        system.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        system.pipe_file(path, data)
    except Exception as error:  # each kind of storage has errors of its own
        raise ImprintError(f"{url} cannot be written ({error!r}); check the URL and your rights there") from error


def read_file(url: str | os.PathLike, span: tuple[int, int] | None = None) -> bytes:
    """A whole file, or its bytes from span[0] up to span[1], fewer if it is shorter.

    A remote read is tried three times, always from the start, so that no data are seen twice. Raises
    `FileNotFoundError` or another OSError for a local file, otherwise `ImprintError`.
    """
    if is_local(url):
        with open(url, "rb") as file:
            file.seek(span[0] if span else 0)
            return file.read(span[1] - span[0] if span else -1)
    system, path = _system(url)
    for attempt in range(ATTEMPTS):
        try:
            data = system.cat_file(path, *(span or ()))
            whole = span is not None and len(data) > span[1] - span[0]  # some web servers send all of a file
            return data[slice(*span)] if whole else data
        except FileNotFoundError:
            raise
        except Exception as error:  # each kind of storage has errors of its own
            if attempt == ATTEMPTS - 1:
                raise ImprintError(f"{url} cannot be read ({error!r}), tried {ATTEMPTS} times") from error
            time.sleep(2**attempt)


def is_local(url: str | os.PathLike) -> bool:
    """Whether it is a path on this machine, and not a URL."""
    return "://" not in str(url)


def _system(url: str | os.PathLike) -> tuple:
    """fsspec's file system for a URL, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(str(url))
    except (ImportError, ValueError) as error:
        raise ImprintError(f"{url} cannot be reached: {error}") from error


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def shard_writer(url: str | os.PathLike) -> Iterator[webdataset.TarWriter]:
    """A `webdataset.TarWriter`; the shard appears at its URL only when it is complete."""
    import webdataset

    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0) as writer:
        yield writer
    write_file(url, buffer.getvalue())


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture encoded as a kind such as "PNG"; options: as for `Image.save`."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sample(
    key: str,
    picture: bytes,
    kind: str,
    record: Record,
    mask: Image.Image | None = None,
    text: str = "",
    scene: bytes = b"",
) -> dict:
    """A sample for `TarWriter.write`; `kind` is the picture's ending, `scene` a JPEG."""
    parts = {"__key__": key, kind: picture, "json": json.dumps(dataclasses.asdict(record)).encode()}
    if mask is not None:
        parts["mask.png"] = encoded(mask, "PNG", optimize=True)
    if text:
        parts["txt"] = text.encode(errors="replace")
    if scene:
        parts["scene.jpg"] = scene
    return parts


@dataclass
class Bad:
    """Skipped samples, at most `most`; each is counted once, however often it is read.

    split: printed to standard error with each one found; without it nothing is printed.
    """

    most: int = 0
    split: str = ""
    found: dict[str, None] = dataclasses.field(default_factory=dict)

    def take(self, message: str) -> None:
        """Count one. Raises `ImprintError` if there are too many."""
        known = message in self.found
        self.found[message] = None
        if len(self.found) > self.most:
            more = f"; {len(self.found)} samples are bad, and --skip-bad allows {self.most}" if self.most else ""
            raise ImprintError(message + more)
        if self.split and not known:
            print(f"{self.split}: left out, {len(self.found)} of {self.most} allowed: {message}", file=sys.stderr)


# --- reading ---------------------------------------------------------------------------------------------------------


def list_shards(url: str | os.PathLike) -> list[str]:
    """The shards of a folder, in order, as URLs or paths; for a shard, only itself. Raises `ImprintError` for none."""
    url = str(url).rstrip("/")
    if url.endswith(".tar"):
        return [url]
    if url.startswith(("http://", "https://")):
        try:
            names = read_file(inside(url, INDEX)).decode().split()
        except FileNotFoundError:
            raise ImprintError(
                f"{url} has no {INDEX}, which lists the shards of a web server's folder; training.prepare leaves one"
            ) from None
    elif is_local(url):
        names = sorted(path.name for path in Path(url).glob("*.tar"))
    else:
        system, path = _system(url)
        names = sorted(found.rsplit("/", 1)[1] for found in system.glob(f"{path}/*.tar"))
    if not names:
        raise ImprintError(f"{url} holds no .tar shard; make some with training.prepare")
    return [inside(url, name) for name in names]


def shards_at(shards: Sequence[str], part: tuple[int, int], seed: int, first: int, count: int) -> list[str]:
    """Shards first ... first + count - 1 of the endless sequence of process `part` = (index, processes).

    In each epoch the processes together go through all shards, in an order determined by seed and epoch; if they cannot
    be divided evenly, a few shards are read by two processes. What a process reads depends only on these numbers, so
    that a run resumes where it stopped.
    """
    index, processes = part
    share = math.ceil(len(shards) / processes)
    found = []
    for number in range(first, first + count):
        epoch, position = divmod(number, share)
        order = np.random.default_rng([seed, epoch]).permutation(len(shards))
        found.append(shards[order[(position * processes + index) % len(shards)]])
    return found


def read_shards(
    url: str | os.PathLike | Sequence[str],
    limit: int | None = None,
    bad: Bad | None = None,
    threads: int = 16,
) -> Iterator[Sample]:
    """The samples of all shards of a folder, or of a list of shards, in order, decoded in so many threads.

    bad: collects samples that lack a part or cannot be decoded; by default the first one is an error. Raises
    `ImprintError`, naming sample or shard, for one too many, and if there is no shard, or one is lost or damaged.
    """
    bad = bad or Bad()
    shards = list_shards(url) if isinstance(url, (str, os.PathLike)) else url
    with ThreadPoolExecutor(threads) as pool:
        waiting = []
        for index, parts in enumerate(parts for shard in shards for parts in read_parts(shard)):
            if limit is not None and index >= limit:
                break
            waiting.append(pool.submit(decode_sample, parts))
            if len(waiting) >= 16 * threads:
                yield from _good(waiting.pop(0), bad)
        for future in waiting:
            yield from _good(future, bad)


def _good(future: Future[Sample], bad: Bad) -> Iterator[Sample]:
    try:
        decoded = future.result()
    except ImprintError as error:
        bad.take(str(error))
        return
    yield decoded


def open_shard(shard: str) -> BinaryIO:
    """A shard's bytes as a file, for a remote shard in memory. Raises OSError or `ImprintError`."""
    return open(shard, "rb") if is_local(shard) else io.BytesIO(read_file(shard))


def read_parts(shard: str) -> Iterator[dict]:
    """The undecoded samples of a shard: bytes by ending, with `__key__` and `__url__`."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    try:
        with open_shard(shard) as stream:
            _require_end(stream)
            files: Iterable[dict] = (file | {"__url__": shard} for file in tar_file_iterator(stream))
            yield from group_by_keys(files)
    except FileNotFoundError as error:
        raise ImprintError(f"{shard}: no such shard; it was there when the run began, or is in {INDEX}") from error
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise ImprintError(
            f"{shard} cannot be read as a shard ({error!r}); make it again with training.prepare"
        ) from error


def _require_end(stream: BinaryIO) -> None:
    """Raise EOFError if a tar lacks its final zeros: truncated between two members it would seem complete, only
    shorter.
    """
    start = stream.read(512)
    if start[257:262] == b"ustar":  # not compressed
        stream.seek(max(512, stream.seek(0, io.SEEK_END) - 1024))
        if (end := stream.read()).strip(b"\0") or len(end) < 1024:
            raise EOFError("it was cut off")
    stream.seek(0)


def open_picture(data: bytes) -> Image.Image:
    """Open a file's bytes as a picture, without decoding it.

    Raises ValueError, always with the same message, for anything else.
    """
    for formats in (USUAL, None):  # Pillow tries all that it knows, one by one
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        except UnidentifiedImageError:  # its message contains the buffer's address
            pass
    raise ValueError(f"no picture in {len(data):,} bytes")


def decode_sample(parts: dict) -> Sample:
    """Decode a sample of `read_parts`. Raises `ImprintError`, naming sample and shard."""
    key, shard = parts["__key__"], parts["__url__"]
    try:
        record = _record(json.loads(parts["json"]))
        kind = next(kind for kind in ("jpg", "png", "webp") if kind in parts)
        picture = open_picture(parts[kind])
        picture.load()
        if picture.mode not in ("RGB", "RGBA"):
            picture = picture.convert("RGBA") if picture.has_transparency_data else to_rgb(picture)
        mask = open_picture(parts["mask.png"]).convert("L") if "mask.png" in parts else None
        scene = open_picture(parts["scene.jpg"]).convert("RGB") if "scene.jpg" in parts else None
        if mask is not None and mask.size != picture.size:
            raise ValueError(f"its mask is {mask.width}x{mask.height}, the picture {picture.width}x{picture.height}")
    except Exception as error:  # Pillow's decoders raise errors of any class
        raise ImprintError(f"{shard}: sample '{key}' is not as docs/data.md describes it ({error!r})") from error
    return Sample(record, picture, mask, scene)


def _record(fields: Any) -> Record:
    """Parse a sample's JSON. Raises ValueError, KeyError or TypeError for anything else."""
    record = Record(*(fields[name] for name in ("object", "clip", "frame", "source", "licence")))
    shadow = None if fields.get("shadow") is None else tuple(map(float, fields["shadow"]))
    record = dataclasses.replace(record, gap=tuple(fields.get("gap", VIDEO_GAP)), shadow=shadow)
    texts, numbers = (record.object, record.clip, record.source, record.licence), (record.frame, *record.gap)
    if not (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int and abs(number) < 2**53 for number in numbers)
    ):
        raise ValueError(f"its fields are {fields}; texts, and whole numbers as frame and gap, were expected")
    if len(record.gap) != 2 or (shadow is not None and not (len(shadow) == 3 and all(map(math.isfinite, shadow)))):
        raise ValueError(f"its gap is {record.gap} and its shadow {shadow}; two and three numbers were expected")
    return record
