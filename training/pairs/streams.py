"""Data that do not fit into memory: a sliding window over a process's shards."""

from __future__ import annotations

import copy
import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from imprint.config import ImprintConfig

from ..data.shards import read_shards, shards_at
from .batches import Pairs
from .pair_maker import PairMaker
from .photos import Photos
from .pictures import Wanted
from .views import Views

Held = TypeVar("Held", Views, Photos)


class Pool(Generic[Held]):
    """`size` shards in memory; each turn replaces the oldest by the next, which is read during training.

    The contents of a turn depend only on the seed, the process and the turn, so that a resumed run sees the same as an
    uninterrupted one. If all of the process's shards fit, nothing is replaced.
    """

    def __init__(
        self, wanted: Wanted[Held], device: torch.device, size: int, part: tuple[int, int] = (0, 1), seed: int = 0
    ):
        """wanted: without a limit; part: which process of how many."""
        self.wanted, self.device, self.part, self.seed = wanted, device, part, seed
        share = -(-len(wanted.shards) // part[1])
        self.size, self.moves = min(size, share), size < share
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self.parts: dict[int, Future[Held]] = {}
        self.held: tuple[int, Held] | None = None

    def at(self, turn: int) -> Held:
        """The pictures of a turn, on the device. Raises `ImprintError` for a shard that cannot be read."""
        turn = turn if self.moves else 0
        if self.held is None or self.held[0] != turn:
            self.held = None  # frees the device's memory first
            window = range(turn, turn + self.size)
            self.parts = {number: part for number, part in self.parts.items() if number in window}
            for number in range(turn, turn + self.size + self.moves):  # the one after is read ahead
                if number not in self.parts:
                    self.parts[number] = self.reader.submit(self._read, number)
            self.held = turn, self.wanted.kind.join([self.parts[number].result() for number in window], self.device)
            if not self.moves:
                self.parts.clear()
        return self.held[1]

    def _read(self, number: int) -> Held:
        shards = shards_at(self.wanted.shards, self.part, self.seed, number, 1)
        return self.wanted.kind.of(read_shards(shards, bad=self.wanted.bad), self.wanted.side)


class StreamedPairs:
    """A `PairMaker` on the views and photos of two pools at `turn`."""

    def __init__(
        self, config: ImprintConfig, stage: str, views: Pool[Views], photos: Pool[Photos], mix: dict[str, float]
    ):
        self.config, self.stage, self.views, self.photos, self.mix = config, stage, views, photos, mix
        self.turn = 0
        self.current: tuple[int, PairMaker] | None = None

    def at(self, side: int) -> StreamedPairs:
        """As `PairMaker.at`, with the same pools."""
        other = copy.copy(self)
        other.config, other.current = dataclasses.replace(self.config, resolution=side), None
        return other

    def __call__(self, count: int, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> Pairs:
        """`count` pairs, as `PairMaker` makes them."""
        return self.now()(count, generator, part)

    def now(self) -> PairMaker:
        """The `PairMaker` of this turn."""
        if self.current is None or self.current[0] != self.turn:
            self.current = None  # releases the pictures first
            views, photos = self.views.at(self.turn), self.photos.at(self.turn)
            self.current = self.turn, PairMaker(self.config, self.stage, views, photos, self.mix)
        return self.current[1]
