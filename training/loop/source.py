"""Endless batches of encoded pairs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TypeAlias

import torch

from imprint.checkpoint import read_config
from imprint.config import ImprintConfig
from imprint.vae import encode

from ..data.shards import SPLITS, Bad, inside
from ..pairs.batches import Batch
from ..pairs.buckets import cut, require_bucket
from ..pairs.captions import Captions, Text
from ..pairs.draw import Draw
from ..pairs.pair_maker import PairMaker
from ..pairs.photos import Photos, photo_side
from ..pairs.pictures import Reading, Wanted
from ..pairs.streams import Pool, StreamedPairs
from ..pairs.views import Views
from ..settings import STAGES, Size, Train
from .ahead import Ahead
from .sizes import read_sizes

AnyPairMaker: TypeAlias = PairMaker | StreamedPairs | Captions
"""What makes pairs: calling it with a count and a generator gives so many."""


class BatchSource:
    """Endless batches: a block of pairs is made and encoded, then used `reuse` times with fresh noise.

    Making pairs costs about as much as training on them once; on a GPU the next block's are made during the steps. The
    pairs of a batch depend only on the seed, the process and the batch's number, so that a resumed run sees the same.
    """

    def __init__(
        self,
        maker: AnyPairMaker,
        autoencoder: torch.nn.Module,
        settings: Train,
        rank: int,
        device: torch.device,
        tokens: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        """tokens: `Model.tokens` of a frozen encoder, whose part is then done once a block as well."""
        self.maker, self.autoencoder, self.settings, self.rank, self.device = maker, autoencoder, settings, rank, device
        self.tokens = tokens
        self.side = maker.config.resolution
        shares = resolutions_and_shares(settings, maker.config)
        for size, _ in shares:
            if isinstance(size, tuple):
                require_bucket(size, maker.config)
        self.slots = interleave(shares, settings.block)
        self.block: tuple[int, dict[Size, Batch]] | None = None
        # The steps' own graphs are recorded during the first block, and once more when warm-up's second loss begins.
        self.recording = settings.compile == "reduce-overhead"
        # Not of streams, whose pictures change from turn to turn.
        alone = (StreamedPairs, Captions) if self.recording else StreamedPairs
        self.ahead = Ahead(device) if device.type == "cuda" and not isinstance(maker, alone) else None

    def generator(self, *numbers: int) -> torch.Generator:
        """A generator for this process that depends on nothing but the seed and the numbers."""
        seed = 0
        for number in (self.settings.seed, self.rank, *numbers):
            seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
        return torch.Generator(self.device).manual_seed(seed)

    def make(self, count: int, generator: torch.Generator, size: Size | None = None) -> Batch:
        """`count` encoded pairs, made in parts that fit the memory; size: by default the model's."""
        size = size or self.side
        side = longer_side(size)
        maker = self.maker if side == self.side else self.maker.at(side)
        parts, number = [], math.ceil(count / self._as_many_pixels(self.settings.chunk, side))
        half = self.settings.precision == "bf16"  # fp16's range is too small for some autoencoders
        precision = torch.bfloat16 if half else torch.float32
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            for index in range(number):
                with torch.autocast(self.device.type, enabled=False):
                    pairs = maker(count, generator, (index, number))
                    if isinstance(size, tuple):
                        pairs = cut(pairs, size, maker.config)
                images = torch.cat([pairs.target, pairs.background]).contiguous(memory_format=torch.channels_last)
                target, background = encode(self.autoencoder, images, maker.config.latent).to(precision).chunk(2)
                reference = (pairs.reference * 255).round().to(torch.uint8)
                if self.tokens:
                    reference = self.tokens(reference).to(precision)
                latents = target.contiguous(), background.contiguous()
                parts.append(Batch(reference, *latents, pairs.hole, pairs.matte.to(precision), pairs.text))
        return Batch.joined(parts)

    def draw(self, index: int) -> Draw:
        """The noise and all else that is drawn for a batch."""
        return Draw(self.generator(3, index))

    def weight(self, index: int) -> float:
        """Of a batch's mean loss in its step's."""
        return 1.0

    def size(self, index: int) -> int:
        """The pairs of a batch."""
        return self._count(self.slots[index % len(self.slots)])

    def batch(self, index: int) -> Batch:
        """The pairs of a batch, counted from the run's beginning."""
        number, within = divmod(index, len(self.slots) * self.settings.reuse)
        if self.block is None or self.block[0] != number:
            self.block = None  # frees the last one first
            beside = self.ahead and not self.recording
            self.block = number, self.ahead.take(number, self._made) if beside else self._made(number)
            self.recording = False
        turn, slot = divmod(within, len(self.slots))
        size = self.slots[slot]
        pairs, count, place = self.block[1][size], self._count(size), self.slots[:slot].count(size)
        order = torch.randperm(len(pairs.target), generator=self.generator(2, number, turn), device=self.device)
        return pairs[order[place * count : (place + 1) * count]]

    def wait(self) -> None:
        """Wait until no pairs are being made in the background."""
        if self.ahead:
            self.ahead.wait()

    def _made(self, number: int) -> dict[Size, Batch]:
        """The pairs of a block."""
        if isinstance(self.maker, StreamedPairs):
            self.maker.turn = number // self.settings.refresh
        generator = self.generator(1, number)
        return {
            size: self.make(self.slots.count(size) * self._count(size), generator, size)
            for size in dict.fromkeys(self.slots)
        }

    def _count(self, size: Size) -> int:
        return self._as_many_pixels(self.settings.batch, size)

    def _as_many_pixels(self, count: int, size: Size) -> int:
        """How many pictures of a size have as many pixels as `count` at the model's."""
        width, height = size if isinstance(size, tuple) else (size, size)
        return max(1, round(count * ((self.side / width) * (self.side / height))))


def longer_side(size: Size) -> int:
    return max(size) if isinstance(size, tuple) else size


def resolutions_and_shares(settings: Train, config: ImprintConfig) -> Sequence[tuple[Size, float]]:
    """Sizes of the training pictures and their shares of the steps."""
    return settings.resolutions or [(config.resolution, 1.0)]


def interleave(shares: Sequence[tuple[Size, float]], count: int) -> list[Size]:
    """`count` sizes, each as often as its share asks, spread evenly: the one furthest behind comes next."""
    total, slots = sum(share for _, share in shares), []
    for number in range(1, count + 1):
        slots.append(max(shares, key=lambda pair: number * pair[1] / total - slots.count(pair[0]))[0])
    return slots


def wanted(settings: Train, config: ImprintConfig, split: str) -> list[Wanted]:
    """A split's views and photos, in the order in which a run takes them. Raises `ImprintError` if there are none."""
    largest = max(longer_side(size) for size, _ in resolutions_and_shares(settings, config))
    bad = Bad(settings.skip_bad, split)
    return [
        Wanted(Views, inside(settings.cutouts, split), settings.limit, settings.cutout_resolution or largest, bad),
        Wanted(Photos, inside(settings.photos, split), settings.limit, photo_side(largest), bad),
    ]


@contextmanager
def read_ahead(settings: Train) -> Iterator[Reading | None]:
    """Begin to read a run's pictures, in the order in which it takes them; None if it takes none that way."""
    if settings.dry_run or settings.pool is not None or not STAGES[settings.stage].mix:
        yield None
        return
    config = read_config(settings.init) if settings.init else read_sizes(settings.sizes)
    splits = SPLITS if int(os.environ.get("RANK", 0)) == 0 else SPLITS[:1]
    with closing(Reading([each for split in splits for each in wanted(settings, config, split)])) as reading:
        yield reading


def open_pair_maker(
    settings: Train,
    config: ImprintConfig,
    split: str,
    device: torch.device,
    process: tuple[int, int],
    text: Text | None = None,
    pictures: Reading | None = None,
) -> AnyPairMaker:
    """What makes the pairs of a split; process: its index, and of how many; pictures: of `read_ahead`, whose next ones
    are this split's. Raises `ImprintError` for bad data.
    """
    stage = STAGES[settings.stage]
    if not stage.mix:
        bad = Bad(settings.skip_bad, split)
        return Captions(inside(settings.captions, split), config, text, device, settings.limit, bad)
    mix = dict(settings.mix) if split == "train" else stage.mix  # held-out pairs are a stage's
    if settings.pool is None:
        pictures = pictures or Reading(wanted(settings, config, split))
        return PairMaker(config, settings.stage, pictures.next(device), pictures.next(device), mix)
    # The held-out pairs are the first process's, of its first shards: the same in every run.
    part, seed = (process, settings.seed) if split == "train" else ((0, 1), 0)
    pools = (Pool(each, device, settings.pool, part, seed) for each in wanted(settings, config, split))
    return StreamedPairs(config, settings.stage, *pools, mix)
