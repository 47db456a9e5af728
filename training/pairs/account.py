"""What a run reports about its pictures at the start: what is usable and why the rest is not, enlargement, licences."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from .about import USABLE
from .captions import Captions
from .framing import CENTRAL_SIZES, SIZES
from .photos import Photos
from .views import Views

CAPTIONED = "captioned pictures"
STRETCHED = 1.5  # enlarged by more than this, an object lacks detail that its target should have
PATCH_ZOOM = 0.75  # the central fraction of a photo that a patch's target shows


def enlargement(stored: torch.Tensor, shown: torch.Tensor | float) -> dict[str, float]:
    """By how much things are enlarged from their pictures to targets: the median, and the share above `STRETCHED`.

    stored (K,): pixels of each in its picture; shown (K,): in a target.
    """
    times = (shown / stored.float().clamp(min=1)).cpu()
    return {
        "median": round(float(times.quantile(0.5)) if len(times) < 2**24 else float(times.median()), 2),
        f"share above {STRETCHED:g}": round(float((times > STRETCHED).float().mean()), 3),
    }


def object_size(stage: str) -> float:
    """The middle of the range of object sizes, relative to the target's side."""
    return sum(CENTRAL_SIZES if stage == "identity" else SIZES) / 2


def usable(views: Views, photos: Photos, stage: str, resolution: int) -> dict[str, Any]:
    """Usable data by kind, why the rest is unusable, how much targets of a resolution enlarge it, and licences."""
    moving = int(photos.partner_count.count_nonzero())
    why = photos.about.objects + photos.about.left_out
    if one := int((views.count == 1).sum()):
        why["objects of one view, which pairs with itself"] = one
    if alone := len(photos.items) - moving:
        why["objects without another frame, for video"] = alone
    return {
        "views": len(views.rgba),
        "objects of views": len(views.first),
        "squares of photos": len(photos.rgb),
        "annotated objects": photos.annotated,
        "usable objects": photos.about.objects[USABLE],
        "usable in squares (still)": len(photos.items),
        "with another frame (video)": moving,
        "why not": {reason: count for reason, count in why.items() if count and reason != USABLE},
        "enlargement": _enlargements(views, photos, stage, resolution),
        "licences": {
            kind: dict(pictures.about.licences) for kind, pictures in (("cut-outs", views), ("photos", photos))
        },
    }


def captioned(captions: Captions, resolution: int) -> dict[str, Any]:
    """As `usable`, of captioned pictures, whose central squares are the targets."""
    sides = torch.tensor([span.side for span in captions.spans if span.side] or [resolution])
    return {
        CAPTIONED: len(captions.spans),
        "why not": {},
        "enlargement": {CAPTIONED: enlargement(sides, resolution)},
        "licences": {CAPTIONED: dict(Counter(span.licence for span in captions.spans))},
    }


def _enlargements(views: Views, photos: Photos, stage: str, resolution: int) -> dict[str, dict[str, float]]:
    """`enlargement` by kind of picture, at the middle of the range of sizes; a picture held at less than its stored
    resolution counts as it is held.
    """
    size = object_size(stage) * resolution
    found = {"cut-outs": enlargement(_extent(views.boxes) * views.scale.clamp(max=1), size)}
    squares = photos.rgb.shape[-1] * photos.scale.clamp(max=1)
    if len(photos.items):
        rows = photos.items[:, 0]
        extent = _extent(photos.boxes) * photos.scale[rows].clamp(max=1)
        # A photo ends at its border: at most all of it is shown.
        shown = torch.maximum(extent * resolution / squares[rows], extent * 0 + size)
        found["objects of photos"] = enlargement(extent, shown)
    found["photos"] = enlargement(squares, resolution / PATCH_ZOOM)
    return found


def _extent(boxes: torch.Tensor) -> torch.Tensor:
    """(K,) the longer sides of boxes (K, 4)."""
    return (boxes[:, 2:] - boxes[:, :2]).amax(1).float()


def sentences(split: str, found: dict[str, Any], resolution: int) -> list[str]:
    """The lines to print of an account from `usable`.

    found: for streamed data also `shards`: by kind, how many are held, and of how many.
    """
    counts = {name: value for name, value in found.items() if isinstance(value, int)}
    lines = [", ".join(f"{value:,} {name}" for name, value in counts.items())]
    if partial := [f"{n:,} of {of:,} shards of {kind}" for kind, (n, of) in found.get("shards", {}).items() if n < of]:
        lines.append(f"all this is of what the first process holds now: {', '.join(partial)}")
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
