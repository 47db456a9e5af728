"""The learning rate of a step."""

from __future__ import annotations

import math

from ..settings import Train


def learning_rate(done: int, settings: Train, images: int | None = None) -> float:
    """The peak times a linear warm-up, times the schedule, which stays at 1 or decays to `final_lr`.

    done: pictures so far; images: those of the whole run, by default the settings'. `cosine` is half a period's (arXiv
    1608.03983, equation 5, without restarts).
    """
    warm = (done + 1) / max(1, settings.lr_warmup)
    progress = min(1.0, done / (images or settings.images))
    left = {
        "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
        "linear": 1 - progress,
        "constant": 1.0,
    }[settings.schedule]
    return settings.lr * min(1.0, warm) * (settings.final_lr + (1 - settings.final_lr) * left)
