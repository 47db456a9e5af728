"""How a step's pictures are split among processes and batches, and how a run resumes with another split.

Which pictures a step sees, and with what noise, is fixed when the run starts: batch number `index` of process `rank` is
a function of the seed and these two numbers. If processes or batches have changed, each takes its part of the original
batches: the same pictures make the same step, except for the order of rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from imprint.errors import ImprintError

from ..pairs.batches import Batch
from ..pairs.draw import Draw
from .source import BatchSource


@dataclass(frozen=True)
class Layout:
    """How the pictures of a step are split: each process has `accumulate` batches of `batch` pictures."""

    processes: int
    accumulate: int
    batch: int

    @property
    def step_size(self) -> int:
        """Number of pictures in a step."""
        return self.processes * self.accumulate * self.batch

    def __str__(self) -> str:
        return f"{self.processes} x {self.accumulate} x {self.batch}"


def make_layout(processes: int, batch: int, accumulate: int, global_batch: int | None) -> Layout:
    """Raise `ImprintError` if `global_batch`, when given, is not a whole number of batches."""
    if global_batch is None:
        return Layout(processes, accumulate, batch)
    accumulate, rest = divmod(global_batch, processes * batch)
    if rest or not accumulate:
        raise ImprintError(
            f"--global-batch {global_batch} is not a multiple of {processes * batch}, which {processes} process(es) "
            f"with --batch {batch} have at once; give another --batch"
        )
    return Layout(processes, accumulate, batch)


@dataclass(frozen=True)
class Piece:
    """Pictures `start` to `stop` of the `whole` in an original batch."""

    rank: int
    index: int
    start: int
    stop: int
    whole: int


class Rearranged:
    """A process's `BatchSource` in a run that started with another layout."""

    def __init__(self, source: Callable[[int], BatchSource], begun: Layout, now: Layout, process: int):
        """source: the original source of a rank. Raises `ImprintError` if there are too few pictures to split, or if
        batches of several resolutions would become one.
        """
        self.find, self.begun, self.now, self.process = source, begun, now, process
        self.sources: dict[int, BatchSource] = {}
        first = self.source(next(iter(self._ranks())))
        self.maker = first.maker
        if len(set(first.slots)) > 1 and begun.batch % now.batch:
            raise ImprintError(
                f"with --resolutions, batches of {begun.batch} can only be divided; give a --batch that divides it, "
                f"not {now.batch}"
            )
        for index in range(len(first.slots) * now.accumulate):
            if not all(piece.stop > piece.start for piece in self.pieces(index)):
                raise ImprintError(
                    f"batches of {begun.batch} pictures have too few of the largest of --resolutions to be shared out "
                    f"as {now.batch} at once; give a larger --batch"
                )

    def source(self, rank: int) -> BatchSource:
        """The original source of this rank."""
        if rank not in self.sources:
            self.sources[rank] = self.find(rank)
        return self.sources[rank]

    def pieces(self, index: int) -> list[Piece]:
        """The pieces that make up a batch of this process."""
        step, number = divmod(index, self.now.accumulate)
        size = self.begun.batch
        low = (self.process * self.now.accumulate + number) * self.now.batch
        high, pieces = low + self.now.batch, []
        for place in range(low // size, math.ceil(high / size)):
            rank, within = divmod(place, self.begun.accumulate)
            own = step * self.begun.accumulate + within
            whole = self.source(rank).size(own)  # more or fewer than `size` at another resolution
            start, stop = (round(min(max(end - place * size, 0), size) * whole / size) for end in (low, high))
            pieces.append(Piece(rank, own, start, stop, whole))
        return pieces

    def batch(self, index: int) -> Batch:
        """As `BatchSource.batch`."""
        pieces = self.pieces(index)
        return Batch.joined([self.source(one.rank).batch(one.index)[slice(one.start, one.stop)] for one in pieces])

    def draw(self, index: int) -> Draw:
        """As `BatchSource.draw`: the same numbers are drawn for each picture as originally."""
        pieces = self.pieces(index)
        return Joined([(self.source(one.rank).draw(one.index), one) for one in pieces])

    def weight(self, index: int) -> float:
        """Weight of a batch's mean loss in its step's, since batches may differ in size."""
        pieces = self.pieces(index)
        count, before, now = sum(one.stop - one.start for one in pieces), self.begun, self.now
        return now.processes * now.accumulate * count / (before.processes * before.accumulate * pieces[0].whole)

    def _ranks(self) -> range:
        """The original ranks whose pictures this process has."""
        share, size = self.now.accumulate * self.now.batch, self.begun.accumulate * self.begun.batch
        return range(self.process * share // size, math.ceil((self.process + 1) * share / size))


class Joined(Draw):
    """Random numbers for pieces of batches: drawn for each whole batch, then sliced and concatenated."""

    def __init__(self, parts: list[tuple[Draw, Piece]]):
        super().__init__(parts[0][0].generator)
        self.parts = parts

    def _joined(self, draw: Callable[[Draw, int], torch.Tensor]) -> torch.Tensor:
        return torch.cat([draw(one, piece.whole)[piece.start : piece.stop] for one, piece in self.parts])

    def uniform(self, shape: int | tuple[int, ...], low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return self._joined(lambda draw, whole: draw.uniform(_of(shape, whole), low, high))

    def normal(self, shape: int | tuple[int, ...]) -> torch.Tensor:
        return self._joined(lambda draw, whole: draw.normal(_of(shape, whole)))

    def integers(self, high: int, count: int) -> torch.Tensor:
        return self._joined(lambda draw, whole: draw.integers(high, whole))


def _of(shape: int | tuple[int, ...], whole: int) -> tuple[int, ...]:
    return (whole, *(shape[1:] if isinstance(shape, tuple) else ()))
