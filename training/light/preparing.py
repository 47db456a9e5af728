"""Make data for the light network: python -m training.prepare light MESHES ... --panoramas FOLDER --output FOLDER

Path-traces the meshes on the ground of the panoramas with Mitsuba 3 (pip install ".[light]"), in --workers processes,
until --seconds are over or there are --count groups; running the same command again adds more. Training can start
meanwhile. OUTPUT gets

  options.json            these options
  plan.json               places and meshes, and which are held out: a group's mesh and places are of the same split
  train-WWW-NNNNNN.npz    groups: radiance (n, C, S, S) float16, places and turns (n, 4), meshes (n,); linear, unexposed
  held-out-...            the same, held out
  irradiance.npy          (P, 3, 16, 32): logarithm of what a white matt surface returns in each place, by its normal
  panoramas.npy           the reduced panoramas, for the processes; can be deleted when they have finished
  photos.npy              (N, 4, S, S) uint8: photos and their object's mask
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch

from imprint.errors import ImprintError
from imprint.files import read_json, replacing, write_text

from ..arguments import flattened
from ..data.engines import in_processes
from ..data.items import read_names, read_photos
from ..data.shards import SPLITS, inside, read_shards
from .memory import count_groups, read_array
from .photographs import cut_squares
from .plan import LightPlan
from .settings import PrepareLight
from .trace import TraceJob, run_job
from .tracer import resolve_variant


def prepare_light(settings: PrepareLight) -> dict[str, int]:
    """Make groups and photos, and return how many there are.

    Raises `ImprintError` for unusable folders, for an output that was made with other places, meshes or sizes, and if
    Mitsuba is not installed.
    """
    began, output = time.time(), settings.output
    output.mkdir(parents=True, exist_ok=True)
    excluded = read_names(settings.exclude)
    plan = LightPlan.make(settings.meshes, settings.panoramas, settings.sky, settings.held_out, excluded)
    _require_same_side(settings)
    plan.write(output)
    # Not earlier: this ties the folder to a size, and should not happen if the panoramas cannot be read.
    write_text(output / "options.json", json.dumps(flattened(settings), indent=1))
    photos = cut_photos(settings)
    jobs = plan_jobs(settings, plan, read_photos(settings.textures, excluded), began)
    for _ in in_processes(run_job, jobs, settings.workers, "groups"):
        pass
    return count_splits(output) | {"photos": photos}


def plan_jobs(settings: PrepareLight, plan: LightPlan, textures: tuple[Path, ...], began: float) -> list[TraceJob]:
    """One job per process. began: a time, as from `time.time()`."""
    variant = resolve_variant(settings.variant)
    there = count_splits(settings.output)
    wanted = {SPLITS[0]: math.inf if settings.count is None else settings.count, SPLITS[1]: settings.held_out_groups}
    gpus = _gpus(settings.gpus) if variant.startswith("cuda") else []
    return [
        TraceJob(
            worker=worker,
            gpu=gpus[worker % len(gpus)] if gpus else None,
            parent=os.getpid(),
            output=settings.output,
            plan=plan,
            textures=textures,
            variant=variant,
            side=settings.side,
            samples=settings.samples,
            seed=settings.seed,
            deadline=began + (math.inf if settings.seconds is None else settings.seconds),
            counts={split: _part(wanted[split] - there[split], worker, settings.workers) for split in SPLITS},
        )
        for worker in range(settings.workers)
    ]


def cut_photos(settings: PrepareLight) -> int:
    """Write photos.npy unless it exists, and return its number of squares."""
    path = settings.output / "photos.npy"
    if path.exists():
        return len(read_array(path))
    rng = np.random.default_rng(settings.seed)
    squares = [
        square
        for url in settings.photos
        for square in cut_squares(
            read_shards(inside(url, SPLITS[0]), settings.limit), settings.side, settings.photos_per_object, rng
        )
    ]
    if settings.photos and not squares:
        raise ImprintError(f"{' and '.join(settings.photos)} hold no object that can be used; see docs/light.md")
    if squares:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(squares))
    return len(squares)


def count_splits(folder: Path) -> dict[str, int]:
    """Number of groups in a folder, by split. Raises `ImprintError` for a file that cannot be read."""
    return {split: sum(map(count_groups, folder.glob(f"{split}-*.npz"))) for split in SPLITS}


def _require_same_side(settings: PrepareLight) -> None:
    """Raise `ImprintError` if options.json says another size."""
    path = settings.output / "options.json"
    if path.exists():
        remedy = f"delete it if the groups beside it are of {settings.side} px, or give another --output"
        side = read_json(path, remedy).get("side")
        if side != settings.side:
            raise ImprintError(f"{path} says {side} px, not {settings.side}; give --side {side}, or another --output")


def _gpus(count: int | None) -> list[str]:
    """The first `count` GPUs that this process may use, or all, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    if count is not None and count > len(names):
        raise ImprintError(f"--gpus is {count}, and there are {len(names)}")
    return names[:count]


def _part(count: float, index: int, parts: int) -> float:
    """The size of part `index` when `count` is divided as evenly as possible."""
    count = max(0, count)
    return count if math.isinf(count) else count // parts + (index < count % parts)
