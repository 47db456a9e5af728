"""What a run reports about its data when it starts."""

from __future__ import annotations

import sys
from typing import Any

from ..pairs.account import captioned, sentences, usable
from ..pairs.captions import Captions
from ..pairs.streams import StreamedPairs
from .layout import Rearranged
from .source import AnyPairMaker, BatchSource, longer_side


def account_of(source: BatchSource | Rearranged, held_out: AnyPairMaker) -> dict[str, dict[str, Any]]:
    """What each split's pairs are made from, also printed to standard error; for streamed data, what is in memory now.

    source: after its first batch, whose block determines how many pairs of each size are drawn.
    """
    if isinstance(source, Rearranged):
        source = next(iter(source.sources.values()))
    block = source.block[1] if source.block else {}
    largest = max(map(longer_side, block), default=held_out.config.resolution)
    found = {}
    for split, maker in {"train": source.maker, "held-out": held_out}.items():
        if isinstance(maker, Captions):
            found[split] = captioned(maker, largest)
        else:
            now = maker.now() if isinstance(maker, StreamedPairs) else maker
            found[split] = usable(now.views, now.photos, now.stage, largest)
            if isinstance(maker, StreamedPairs):
                pools = {"cut-outs": maker.views, "photos": maker.photos}
                found[split]["shards"] = {kind: [pool.size, len(pool.wanted.shards)] for kind, pool in pools.items()}
            if split == "train":
                drawn = {_named(size): now.shares(len(batch.target)) for size, batch in block.items()}
                found[split]["mix"] = {f"pairs of {size} px as drawn": shares for size, shares in drawn.items()}
        print("\n".join(sentences(split, found[split], largest)), file=sys.stderr)
    return found


def _named(size: int | tuple[int, int]) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
