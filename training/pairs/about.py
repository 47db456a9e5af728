"""What is counted while pictures are read: licences, which annotated objects are usable, and why others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..data.shards import MIN_OBJECT_SIDE, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_OF_SIDE = 0.9  # the longest side of a usable object, relative to its square
UNKNOWN = "unknown"  # a picture's licence
USABLE = "usable"
SMALL = f"under {MIN_OBJECT_SIDE:.0%} of their square"
LARGE = f"over {MOST_OF_SIDE:.0%} of their square"
CUT = "cut by their square's border"
OUTCOMES = (USABLE, LARGE, SMALL, CUT)
"""Of an annotated object, from the best to the worst."""


@dataclass
class About:
    """Counts made while pictures are read."""

    licences: Counter[str] = field(default_factory=Counter)
    """Number of pictures by licence."""
    objects: Counter[str] = field(default_factory=Counter)
    """Number of annotated objects of photos by outcome: `USABLE`, or why not."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of unused pictures by reason."""

    def counted(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Pass the samples on, counting their licences."""
        for sample in samples:
            self.licences[sample.record.licence or UNKNOWN] += 1
            yield sample

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        columns = zip(*(vars(part).values() for part in parts))
        return cls(*(sum(column, Counter()) for column in columns))


def outcomes(boxes: torch.Tensor, side: int) -> torch.Tensor:
    """(K,) the outcomes, as indices of `OUTCOMES`, of objects with boxes (K, 4) in squares of this side."""
    sides = (boxes[:, 2:] - boxes[:, :2]).float() / side
    whole = (boxes[:, :2] > 1).all(1) & (boxes[:, 2:] < side - 1).all(1)
    found = torch.where(whole, torch.where(sides.amin(1) > MIN_OBJECT_SIDE, 0, 2), 3)
    return torch.where(sides.amax(1) < MOST_OF_SIDE, found, 1)


def count_outcomes(owners: Sequence[tuple[int, int]], found: torch.Tensor) -> Counter[str]:
    """Count the outcomes of objects, each of which may be in several squares: its best one counts.

    owners: for each row of found (K,), from `outcomes`, its sample and its number there.
    """
    best: dict[tuple[int, int], int] = {}
    for owner, outcome in zip(owners, found.tolist()):
        best[owner] = min(outcome, best.get(owner, outcome))
    return Counter(OUTCOMES[outcome] for outcome in best.values())
