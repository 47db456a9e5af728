"""Captioned pictures for the adapter's warm-up, drawn from their shards during training.

A sample is `<key>.jpg|.png|.webp` and `<key>.txt`, with one caption per line; `<key>.json` may name the licence, and
other members are ignored. Only the samples' offsets, sizes and licences are kept in memory. Shards may be anywhere that
`data.shards` can read from; remote ones are each read once at the start, and after that only the drawn samples. What is
drawn depends only on the generator.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import torch
from PIL import Image, ImageOps

from imprint.config import ImprintConfig
from imprint.errors import ImprintError
from imprint.images import image_to_tensor, to_rgb
from imprint.masks import paint_hole

from ..data.shards import Bad, list_shards, open_picture, open_shard, read_file
from .about import UNKNOWN
from .batches import Pairs

PICTURES = ("jpg", "png", "webp")


class Text(Protocol):
    """Captions -> the text encoder's tokens (B, M, W)."""

    nothing: torch.Tensor
    """(1, M, W): the empty caption's."""

    def __call__(self, captions: list[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Span:
    """A sample's picture and caption as bytes of a shard, each (offset, size)."""

    shard: str
    key: str
    picture: tuple[int, int]
    caption: tuple[int, int]
    licence: str
    side: int
    """The picture's shorter side in pixels; 0 if it cannot be read."""


class Captions:
    """Draws captioned pictures as `Pairs`: the central square is reference and target, and the hole is all of it."""

    def __init__(
        self,
        folder: str | os.PathLike,
        config: ImprintConfig,
        text: Text,
        device: torch.device,
        limit: int | None = None,
        bad: Bad | None = None,
    ):
        """bad: collects samples that lack a part or cannot be decoded, which the next sample replaces. Raises
        `ImprintError` for one too many, by default the first, also while drawing; for a folder without shards or
        samples; and for a shard that cannot be read.
        """
        self.config, self.text, self.device = config, text, device
        self.bad = bad or Bad()
        self.spans = [span for shard in list_shards(folder) for span in _spans(shard, self.bad)][:limit]
        if not self.spans:
            raise ImprintError(
                f"{folder} holds no picture with captions; make its shards with training.prepare captions"
            )
        self.pool = ThreadPoolExecutor()

    def __call__(self, count: int, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> Pairs:
        """`count` pairs, or a part of them, as (index, parts)."""
        count = len(range(part[0], count, part[1]))
        rows, lines = (
            torch.randint(high, (count,), generator=generator, device=generator.device).tolist()
            for high in (len(self.spans), 2**31)
        )
        references, targets, captions = zip(*self.pool.map(self._read, rows, lines))
        reference, target = (torch.cat(pictures).to(self.device) for pictures in (references, targets))
        cells = self.config.resolution // self.config.latent.downscale
        hole = target.new_ones(count, 1, cells, cells)
        unknown = target.new_full(
            (count, self.config.unet.out_channels - self.config.latent.channels, cells, cells), -1
        )
        background = paint_hole(target, hole, self.config.hole_value)
        return Pairs(reference, target, background, hole, unknown, self.text(list(captions)))

    def _read(self, row: int, line: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        """The sample's square at the encoder's and the model's resolution, and a caption; for a bad sample the next
        good one's.
        """
        for number in range(row, row + len(self.spans)):
            span = self.spans[number % len(self.spans)]
            try:
                return self._decode(span, line)
            except Exception as error:  # Pillow's decoders raise errors of any class
                self.bad.take(f"{span.shard}: sample '{span.key}' cannot be read ({error}); make the shard again")
        raise ImprintError(f"all {len(self.spans)} captioned pictures are bad; make their shards again")

    def _decode(self, span: Span, line: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        """As `_read`, for this sample only.

        Raises any error for a bad sample, and `ImprintError` if its shard is lost or truncated.
        """
        try:
            picture, caption = (_bytes(span.shard, *part) for part in (span.picture, span.caption))
        except OSError as error:
            raise ImprintError(f"{span.shard} ends before sample '{span.key}', or is lost ({error})") from error
        image = to_rgb(open_picture(picture))
        sides = self.config.encoder.image_size, self.config.resolution
        squares = [image_to_tensor(ImageOps.fit(image, (side, side), Image.BICUBIC)) for side in sides]
        captions = caption.decode().strip().splitlines() or [""]
        return *squares, captions[line % len(captions)]


def _spans(shard: str, bad: Bad) -> list[Span]:
    """The offsets of a shard's samples, in order; bad: collects those that lack a part."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    sides: dict[str, int] = {}
    licences: dict[str, str] = {}
    try:
        with open_shard(shard) as stream, tarfile.open(fileobj=stream) as archive:
            for member in archive:
                folder, name = os.path.split(member.name)
                key, _, kind = name.partition(".")
                key, kind = os.path.join(folder, key), kind.lower()
                samples.setdefault(key, {})[kind] = member.offset_data, member.size
                if kind in PICTURES:
                    sides[key] = _side(archive.extractfile(member))
                elif kind == "json":
                    licences[key] = sys.intern(_licence(archive.extractfile(member)))
    except (OSError, tarfile.TarError) as error:
        raise ImprintError(f"{shard} is not a complete tar file ({error}); make it again") from error
    spans = []
    for key, parts in samples.items():
        picture = next((parts[kind] for kind in PICTURES if kind in parts), None)
        if picture is None or "txt" not in parts:
            bad.take(f"{shard}: sample '{key}' has {sorted(parts)}; it needs a txt, and a jpg, png or webp")
            continue
        spans.append(Span(shard, key, picture, parts["txt"], licences.get(key, UNKNOWN), sides[key]))
    return spans


def _side(picture: BinaryIO) -> int:
    try:
        return min(Image.open(picture).size)
    except Exception:  # Pillow raises errors of any class; the sample is named when it is drawn
        return 0


def _licence(record: BinaryIO) -> str:
    try:
        return str(json.load(record)["licence"] or UNKNOWN)
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError):
        return UNKNOWN


def _bytes(shard: str, offset: int, size: int) -> bytes:
    data = read_file(shard, (offset, offset + size))
    if len(data) < size:
        raise OSError("the file ends before it")
    return data
