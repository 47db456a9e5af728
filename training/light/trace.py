"""Write groups of random objects in random places to files: the work of each process of `training.prepare light`."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imprint.errors import ImprintError
from imprint.files import replacing

from ..data.shards import SPLITS
from ..render.meshes import load_parts
from ..render.textures import STYLES, retexture
from .plan import PANORAMAS, LightPlan
from .scenes import LIGHTS, channels, draw_view, merge_parts
from .tracer import Tracer

VIEWS = 4
"""Views of one object with one set of textures, since loading it takes longer than tracing it."""
LEAST_COVER = 0.02
"""Smallest fraction of the picture that an object covers."""
CHUNK = 24
"""Groups per file."""
ORIGINAL = 0.6
"""Fraction of the objects with their own textures: how bright an object is tells how it will look in other light."""
MOST_FAILURES = 50
"""Unreadable meshes in a row after which the run stops."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TracedGroup:
    """A group, and what it was made from."""

    radiance: np.ndarray
    """(C, S, S) float16 as in `training.light.scenes.CHANNELS`."""
    places: list[int]
    """`LIGHTS` + 1 panoramas by index; the last lights only the object."""
    turns: list[float]
    """Their rotations about the vertical, in degrees."""
    mesh: int
    horizon: float
    """As in `training.light.scenes.View`."""


@dataclass(frozen=True)
class TraceJob:
    """The work of one process."""

    worker: int
    gpu: str | None
    """The GPU to use, as CUDA_VISIBLE_DEVICES names it; by default what Mitsuba chooses."""
    parent: int
    """The process that waits for the job; the job ends with it."""
    output: Path
    plan: LightPlan
    textures: tuple[Path, ...]
    variant: str
    side: int
    samples: int
    seed: int
    deadline: float
    """As from `time.time()`."""
    counts: dict[str, float]
    """Largest number of groups to make, for each of `SPLITS`; held-out groups come first."""

    def goes_on(self) -> bool:
        """Whether there is time left and the parent process still waits."""
        return time.time() < self.deadline and self.parent in (os.getpid(), os.getppid())


def run_job(job: TraceJob) -> dict[str, int]:
    """Make a job's groups, and return how many of each split."""
    if job.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpu
    panoramas = np.load(job.output / PANORAMAS, mmap_mode="r")
    tracer = Tracer(job.variant, list(panoramas), job.side, job.samples)
    made = {}
    for split in reversed(SPLITS):
        stem = f"{split}-{job.worker:03d}"
        number = next_number(job.output, stem)
        rng = np.random.default_rng([job.seed, SPLITS.index(split), job.worker, number])
        groups = trace_groups(tracer, job.plan, split, job.textures, rng)
        made[split] = write_groups(groups, job.output, stem, number, job.counts[split], job.goes_on)
    return made


def trace_groups(
    tracer: Tracer, plan: LightPlan, split: str, textures: tuple[Path, ...], rng: np.random.Generator
) -> Iterator[TracedGroup]:
    """Yield groups of the split's meshes in its places, without end.

    textures: pictures for some objects' textures. Raises `ImprintError` if no mesh can be read.
    """
    meshes, places, skies = plan.meshes_of(split), plan.places_of(split), plan.skies_of(split)
    styles = [style for style in STYLES if style != "original"]
    weights = np.array([STYLES[style] for style in styles])
    failures = 0
    while True:
        index = int(rng.choice(meshes))
        path = plan.meshes[index].path
        try:
            parts = load_parts(path)
        except ImprintError:  # trimesh is missing: not this mesh's fault
            raise
        except Exception as error:  # trimesh's loaders raise errors of any class
            failures += 1
            if failures == MOST_FAILURES:
                raise ImprintError(
                    f"none of {failures} {split} meshes drawn in a row could be read, the last being {path} ({error}); "
                    "replace them by .glb files that trimesh reads, or name them in --exclude and give another --output"
                ) from error
            _log.warning("%s cannot be read: %s", path, error)
            continue
        failures = 0
        style = "original" if rng.uniform() < ORIGINAL else str(rng.choice(styles, p=weights / weights.sum()))
        retexture(parts, style, rng, textures)
        shape = merge_parts(parts)
        for _ in range(VIEWS):
            chosen = rng.choice(places, LIGHTS, replace=len(places) < LIGHTS).tolist()
            chosen.append(int(rng.choice(places + skies)))
            turns = rng.uniform(0, 360, LIGHTS + 1).tolist()
            view = draw_view(rng, shape)
            radiance = tracer.render(shape, view, chosen, turns, int(rng.integers(1 << 30)))
            if (radiance[channels("alpha")] > 0.9).mean() >= LEAST_COVER:
                yield TracedGroup(radiance, chosen, turns, index, view.horizon)


def next_number(folder: Path, stem: str) -> int:
    """Number of the next file STEM-NNNNNN.npz: one more than the last, even if files in between were deleted."""
    return max((int(path.stem.rpartition("-")[2]) + 1 for path in folder.glob(f"{stem}-*.npz")), default=0)


def write_groups(
    groups: Iterator[TracedGroup], folder: Path, stem: str, first: int, count: float, goes_on: Callable[[], bool]
) -> int:
    """Write groups, `CHUNK` per file, as STEM-NNNNNN.npz from number `first` on, and return how many.

    Each file is complete or absent.
    """
    written = 0
    for number in itertools.count(first):
        held = []
        while written + len(held) < count and len(held) < CHUNK and goes_on():
            held.append(next(groups))
        if not held:
            return written
        with replacing(folder / f"{stem}-{number:06d}.npz") as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                radiance=np.stack([group.radiance for group in held]),
                places=np.array([group.places for group in held]),
                turns=np.array([group.turns for group in held], np.float32),
                meshes=np.array([group.mesh for group in held]),
                horizons=np.array([group.horizon for group in held], np.float32),
            )
        written += len(held)
