"""The data's one format: WebDataset shards of pictures with their object.

A sample is `<key>.jpg|.png|.webp` (the picture), `<key>.json` (`Record`'s fields) and, for a picture without an alpha
channel, `<key>.mask.png` if it has annotated objects: 8-bit, 0 = background, n = the n-th object. A cut-out's alpha channel
is its mask. Frames of one clip share `clip`; views of one object share `object` and stand next to each other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from imprint.errors import ImprintError
from imprint.files import replacing


@dataclass(frozen=True)
class Record:
    """What is known of one picture."""

    object: str
    clip: str
    frame: int
    source: str
    licence: str


def held_out(name: str, part: float) -> bool:
    """Whether a clip or mesh is kept for validation: by a hash of its name, so that the split never moves."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < part


@contextmanager
def shard_writer(path: Path):
    """A `webdataset.TarWriter` on a temporary name; the shard takes its own name only when it is whole."""
    import webdataset

    with replacing(path) as temporary, webdataset.TarWriter(str(temporary), mtime=0) as writer:
        yield writer


def sample(key: str, picture: bytes, kind: str, record: Record, mask: Image.Image | None = None) -> dict:
    """A sample as `TarWriter.write` takes it; `kind` is the picture's ending."""
    parts = {"__key__": key, kind: picture, "json": json.dumps(dataclasses.asdict(record)).encode()}
    if mask is not None:
        buffer = io.BytesIO()
        mask.save(buffer, "PNG", optimize=True)
        parts["mask.png"] = buffer.getvalue()
    return parts


def read_shards(
    folder: str | os.PathLike, limit: int | None = None
) -> Iterator[tuple[Record, Image.Image, Image.Image | None]]:
    """Records, pictures and masks of all shards in a folder (or of one shard), in order, decoded by threads.

    Raises `ImprintError` when there is no shard, or a sample lacks a part or cannot be decoded, naming both.
    """
    import webdataset

    folder = Path(folder)
    paths = [str(folder)] if folder.is_file() else sorted(str(path) for path in folder.glob("*.tar"))
    if not paths:
        raise ImprintError(f"{folder} holds no .tar shard; make some with training.render or training.photos")
    # Every process reads every shard: which pairs it draws from them is what differs.
    raw = webdataset.WebDataset(paths, shardshuffle=False, nodesplitter=iter, empty_check=False)
    with ThreadPoolExecutor() as pool:
        waiting = []
        for index, parts in enumerate(raw):
            if limit is not None and index >= limit:
                break
            waiting.append(pool.submit(_decode, parts))
            if len(waiting) >= 256:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _decode(parts: dict) -> tuple[Record, Image.Image, Image.Image | None]:
    key, shard = parts["__key__"], parts["__url__"]
    try:
        fields = json.loads(parts["json"])
        record = Record(**{field.name: fields[field.name] for field in dataclasses.fields(Record)})
        kind = next(kind for kind in ("jpg", "png", "webp") if kind in parts)
        picture = Image.open(io.BytesIO(parts[kind]))
        picture.load()
        mask = Image.open(io.BytesIO(parts["mask.png"])).convert("L") if "mask.png" in parts else None
    except (KeyError, StopIteration, OSError, ValueError) as error:
        raise ImprintError(f"{shard}: sample '{key}' is not as training/README.md describes it ({error!r})") from error
    return record, picture, mask
