"""Which objects are worth learning from: neither tiny nor filling the picture, not cut off, and sharply outlined.

The thresholds are the defaults of `Limits` and options of the command; sizes refer to the picture as stored.
"""

from __future__ import annotations

import numpy as np

from .settings import Limits

ALPHA_THRESHOLD = 128 / 255  # alpha above this is the object, as AnyDoor reads MVImgNet


def unusable_objects(labels: np.ndarray, limits: Limits) -> dict[int, str]:
    """The objects of labels (H, W) uint8 to drop, and why."""
    areas = np.bincount(labels.ravel(), minlength=256) / labels.size
    rim = _rim(labels, limits.border)
    reasons = {}
    for number in np.flatnonzero(areas[1:]) + 1:
        if areas[number] < limits.min_area:
            reasons[int(number)] = f"object under {limits.min_area:.0%} of the picture"
        elif areas[number] > limits.max_area:
            reasons[int(number)] = f"object over {limits.max_area:.0%} of the picture"
        elif number in rim:
            reasons[int(number)] = "object cut by the border"
    return reasons


def objects_at_the_edge(labels: np.ndarray) -> int:
    """The number of objects in labels (H, W) uint8 that are cut by the picture's border. Training does not use them as
    targets, since the photo does not show them beyond the border.
    """
    return len(_rim(labels, 2) - {0})


def _rim(labels: np.ndarray, width: int) -> set[int]:
    """The numbers in the outermost rows and columns."""
    if width == 0:
        return set()
    edges = labels[:width], labels[-width:], labels[:, :width], labels[:, -width:]
    return set(np.unique(np.concatenate([edge.ravel() for edge in edges])).tolist())


def edge_width(alpha: np.ndarray) -> float:
    """Mean width in pixels of the half-transparent edge of alpha (H, W) in [0, 1]; 0 for a hard mask."""
    inside = alpha > ALPHA_THRESHOLD
    length = (inside[1:] != inside[:-1]).sum() + (inside[:, 1:] != inside[:, :-1]).sum()
    return float(((alpha > 0.1) & (alpha < 0.9)).sum() / max(1, length))
