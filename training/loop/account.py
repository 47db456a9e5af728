"""What a run says of its data when it begins."""

from __future__ import annotations

import sys
from typing import Any

from ..pairs.account import sentences
from ..pairs.captions import Captions
from ..pairs.making import PairMaker
from ..pairs.streams import StreamedPairs
from .layout import Rearranged
from .source import Source


def account_of(
    source: Source | Rearranged, held_out: PairMaker | StreamedPairs | Captions
) -> dict[str, dict[str, Any]]:
    """What each split's pairs are made of, which is said on standard error as well; of data that stream, what is in
    memory now. Nothing of captions.

    source: once it has made its first batch, whose block says how many pairs of each size are drawn.
    """
    if isinstance(source, Rearranged):
        source = next(iter(source.sources.values()))
    block = source.block[1] if source.block else {}
    sides = [max(size) if isinstance(size, tuple) else size for size in block]
    largest = max(sides, default=held_out.config.resolution)
    found = {}
    for split, maker in {"train": source.maker, "held-out": held_out}.items():
        if isinstance(maker, Captions):
            continue
        maker = maker.now() if isinstance(maker, StreamedPairs) else maker
        found[split] = maker.at(largest).usable()
        if split == "train":
            found[split]["mix"] = {
                f"pairs of {_named(size)} px as drawn": maker.shares(len(batch.target)) for size, batch in block.items()
            }
        print("\n".join(sentences(split, found[split], largest)), file=sys.stderr)
    return found


def _named(size: int | tuple[int, int]) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
