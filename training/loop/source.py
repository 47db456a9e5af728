"""Endless batches of encoded pairs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from imprint.config import ImprintConfig
from imprint.unet import encode

from ..pairs.batches import Batch
from ..pairs.captions import Captions
from ..pairs.making import PairMaker
from ..pairs.streams import StreamedPairs


class Source:
    """Endless batches: a block of pairs is made and encoded, then used `reuse` times with fresh noise.

    Making pairs costs about as much as training on them once. Which pairs a step sees depends on the seed, the process
    and the step alone, so that a continued run sees the same.
    """

    def __init__(
        self,
        maker: PairMaker | StreamedPairs | Captions,
        autoencoder,
        options: argparse.Namespace,
        rank: int,
        device: torch.device,
        tokens: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        """tokens: `Model.tokens` of a frozen encoder, whose part is then done once a block as well."""
        self.maker, self.autoencoder, self.options, self.rank, self.device = maker, autoencoder, options, rank, device
        self.tokens = tokens
        self.side = maker.config.resolution
        self.slots = interleave(sides_and_shares(options, maker.config), options.block)
        self.block: tuple[int, dict[int, Batch]] | None = None

    def generator(self, *numbers: int) -> torch.Generator:
        """A generator for this process that depends on nothing but the seed and the numbers."""
        seed = 0
        for number in (self.options.seed, self.rank, *numbers):
            seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
        return torch.Generator(self.device).manual_seed(seed)

    def make(self, count: int, generator: torch.Generator, side: int | None = None) -> Batch:
        """`count` encoded pairs, made in parts that fit the memory; side: by default the model's."""
        maker = self.maker.at(side) if side and side != self.side else self.maker
        parts, chunk = [], self._as_many_pixels(self.options.chunk, side or self.side)
        precision = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            for start in range(0, count, chunk):
                with torch.autocast(self.device.type, enabled=False):
                    pairs = maker(min(chunk, count - start), generator)
                images = torch.cat([pairs.target, pairs.background]).contiguous(memory_format=torch.channels_last)
                target, background = encode(self.autoencoder, images, maker.config.latent).to(precision).chunk(2)
                reference = (pairs.reference * 255).round().to(torch.uint8)
                if self.tokens:
                    reference = self.tokens(reference).to(precision)
                latents = target.contiguous(), background.contiguous()
                parts.append(Batch(reference, *latents, pairs.hole, pairs.matte.to(precision), pairs.text))
        return Batch.joined(parts)

    def batch(self, step: int) -> Batch:
        """The pairs of a step."""
        number, within = divmod(step, len(self.slots) * self.options.reuse)
        if self.block is None or self.block[0] != number:
            self.block = None  # frees the last one first
            if isinstance(self.maker, StreamedPairs):
                self.maker.turn = number // self.options.refresh
            generator = self.generator(1, number)
            made = {
                side: self.make(self.slots.count(side) * self._size(side), generator, side)
                for side in dict.fromkeys(self.slots)
            }
            self.block = number, made
        turn, index = divmod(within, len(self.slots))
        side = self.slots[index]
        pairs, size, place = self.block[1][side], self._size(side), self.slots[:index].count(side)
        order = torch.randperm(len(pairs.target), generator=self.generator(2, number, turn), device=self.device)
        return pairs[order[place * size : (place + 1) * size]]

    def _size(self, side: int) -> int:
        return self._as_many_pixels(self.options.batch, side)

    def _as_many_pixels(self, count: int, side: int) -> int:
        """How many pictures of a side have as many pixels as `count` at the model's."""
        return max(1, round(count * (self.side / side) ** 2))


def sides_and_shares(options: argparse.Namespace, config: ImprintConfig) -> list[tuple[int, float]]:
    """Sides of the training pictures and their shares of the steps."""
    return options.sides or [(config.resolution, 1.0)]


def interleave(shares: Sequence[tuple[int, float]], count: int) -> list[int]:
    """`count` sides, each as often as its share asks, spread as evenly as can be: the one furthest behind comes next."""
    total, slots = sum(share for _, share in shares), []
    for number in range(1, count + 1):
        slots.append(max(shares, key=lambda pair: number * pair[1] / total - slots.count(pair[0]))[0])
    return slots
