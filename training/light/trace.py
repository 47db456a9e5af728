"""Trace groups in a process of its own, until a deadline or a count: what `training.prepare light` starts several of."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.render import STYLES, Mesh, load_parts, retexture

from .scenes import LIGHTS, Tracer, draw_view, merge_parts

VIEWS = 4
"""Views of one object with one set of textures: loading it takes longer than tracing it."""
LEAST_COVER = 0.02
"""Share of the picture that an object covers at least."""
_log = logging.getLogger(__name__)


def trace_groups(
    tracer: Tracer,
    folder: Path,
    meshes: list[Mesh],
    places: list[int],
    skies: list[int],
    photos: list[Path],
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, list[int], list[float]]]:
    """Endless groups of random objects in random places: what `Tracer.render` gives, places, turns in degrees.

    skies: panoramas without a ground to stand on; they light only the object's own photo.
    """
    styles, weights = list(STYLES), np.array(list(STYLES.values()))
    while True:
        mesh = meshes[rng.integers(len(meshes))]
        try:
            parts = load_parts(folder / mesh.file)
        except Exception as error:  # a mesh that trimesh cannot read is one of hundreds
            _log.warning("%s cannot be read: %s", mesh.file, error)
            continue
        retexture(parts, str(rng.choice(styles, p=weights / weights.sum())), rng, photos)
        shape = merge_parts(parts)
        for _ in range(VIEWS):
            chosen = rng.choice(places, LIGHTS, replace=len(places) < LIGHTS).tolist()
            chosen.append(int(rng.choice(places + skies)))
            turns = rng.uniform(0, 360, LIGHTS + 1).tolist()
            group = tracer.render(shape, draw_view(rng, shape), chosen, turns, int(rng.integers(1 << 30)))
            if (group[-4] > 0.9).mean() >= LEAST_COVER:
                yield group, chosen, turns


def write_groups(groups: Iterator, out: Path, name: str, deadline: float, count: int, chunk: int = 64) -> int:
    """Write groups as `NAME-NN.npy` with places and turns in `NAME-NN.npz`; how many. deadline: as `time.time()`."""
    written, held = 0, []
    while written + len(held) < count and time.time() < deadline:
        held.append(next(groups))
        if len(held) == chunk or written + len(held) == count or time.time() >= deadline:
            stem = out / f"{name}-{written:06d}"
            np.savez(stem.with_suffix(".npz"), places=[each[1] for each in held], turns=[each[2] for each in held])
            np.save(stem.with_suffix(".npy"), np.stack([each[0] for each in held]))
            written, held = written + len(held), []
    return written
