"""What a run says of its pictures before it begins: what is usable and why the rest is not, how much is enlarged, whose
they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..data.shards import MIN_OBJECT_SIDE, Sample
from .framing import CENTRAL_SIZES, SIZES

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_OF_SIDE = 0.9  # of a square, at most, is a usable object's longer side
USABLE = "usable"
SMALL = f"under {MIN_OBJECT_SIDE:.0%} of their square"
LARGE = f"over {MOST_OF_SIDE:.0%} of their square"
CUT = "cut by their square's border"
STRETCHED = 1.5  # times as large as it is stored, an object lacks detail that its target should have
PATCH_ZOOM = 0.75  # of a photo, in the middle, is what a patch's target shows


@dataclass
class About:
    """What is counted of pictures while they are read."""

    licences: Counter[str] = field(default_factory=Counter)
    """Pictures by licence."""
    objects: Counter[str] = field(default_factory=Counter)
    """Annotated objects of photos by what becomes of them: `USABLE`, or why not."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Pictures that are not used, by reason."""

    def counted(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples, their licences counted."""
        for sample in samples:
            self.licences[sample.record.licence or "unknown"] += 1
            yield sample

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        columns = zip(*(vars(part).values() for part in parts))
        return cls(*(sum(column, Counter()) for column in columns))


def fates(owners: Sequence[tuple[int, int]], boxes: torch.Tensor, usable: torch.Tensor, side: int) -> Counter[str]:
    """What becomes of each annotated object, which may be in several squares.

    owners: for each row of boxes (K, 4) and of usable (K,) its sample and its number there, in squares of a side.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).float() / side
    whole = (boxes[:, :2] > 1).all(1) & (boxes[:, 2:] < side - 1).all(1)
    kinds = torch.where(sides.amax(1) >= MOST_OF_SIDE, 1, torch.where(whole, 2, 3))
    kinds = torch.where(usable, 0, kinds).tolist()
    found: dict[tuple[int, int], int] = {}
    for owner, kind in zip(owners, kinds):
        found[owner] = min(kind, found.get(owner, kind))
    return Counter((USABLE, LARGE, SMALL, CUT)[kind] for kind in found.values())


def enlargement(stored: torch.Tensor, shown: torch.Tensor | float) -> dict[str, float]:
    """How much larger things are in targets than in the pictures that they come from.

    stored (K,) pixels of each as it is stored, and shown (K,) in a target. Median, and the share above `STRETCHED`.
    """
    times = (shown / stored.float().clamp(min=1)).cpu()
    return {
        "median": round(float(times.quantile(0.5)) if len(times) < 2**24 else float(times.median()), 2),
        f"share above {STRETCHED:g}": round(float((times > STRETCHED).float().mean()), 3),
    }


def object_size(stage: str) -> float:
    """The middle of the sizes that objects are shown at, of the target's side."""
    return sum(CENTRAL_SIZES if stage == "identity" else SIZES) / 2


def sentences(split: str, found: dict[str, Any], resolution: int) -> list[str]:
    """Lines of an account as `PairMaker.usable` gives it."""
    counts = {name: value for name, value in found.items() if isinstance(value, int)}
    lines = [", ".join(f"{value:,} {name}" for name, value in counts.items())]
    if found["why not"]:
        lines.append("why not: " + ", ".join(f"{value:,} {why}" for why, value in found["why not"].items()))
    for name, value in found.get("mix", {}).items():
        lines.append(f"{name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in value.items()))
    for kind, value in found["enlargement"].items():
        share = value[f"share above {STRETCHED:g}"]
        lines.append(
            f"{kind}: shown {value['median']:g} times as large as stored in targets of {resolution} px (median; "
            f"{share:.0%} more than {STRETCHED:g} times)"
        )
    for kind, licences in found["licences"].items():
        total = sum(licences.values())
        lines.append(f"licences of {kind}: " + ", ".join(f"{n} {c / total:.0%}" for n, c in licences.items()))
    for kind, value in found["enlargement"].items():
        if value[f"share above {STRETCHED:g}"] > 0.5:
            lines.append(
                f"warning: {kind} are smaller than targets of {resolution} px need: more than half are enlarged over "
                f"{STRETCHED:g} times, and their detail cannot be learned; prepare larger ones (--longest-side of "
                "photos, --resolution of meshes), hold them so (--cutout-resolution), or train at fewer pixels"
            )
    return [f"{split}: {line}" if not line.startswith("warning") else line for line in lines]
