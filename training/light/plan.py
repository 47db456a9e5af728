"""The places and meshes that groups are made of, and which of them are held out."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from imprint.errors import ImprintError
from imprint.files import replacing, write_text

from ..data.items import read_photos
from ..data.shards import SPLITS, name_hash
from ..render.meshes import read_meshes
from ..render.panoramas import read_radiance
from .radiance import irradiance

PANORAMA_ROWS = 384
"""Rows to which panoramas are reduced: a 40-degree view is then about 85 pixels high, and a hundred panoramas fit in
memory."""
BRIGHTEST = 1e6
"""Largest radiance of a panorama; higher values are clipped."""
PLAN, PANORAMAS = "plan.json", "panoramas.npy"
T = TypeVar("T", "Place", "LightMesh")


@dataclass(frozen=True)
class Place:
    """A panorama."""

    path: Path
    sky: bool
    """Whether it has no ground to stand on; then it lights only the object's own photo."""
    held_out: bool

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class LightMesh:
    """A mesh, with the source and licence from its folder's index."""

    path: Path
    source: str
    licence: str
    held_out: bool

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class LightPlan:
    """All places and meshes; groups refer to them by index."""

    places: tuple[Place, ...]
    meshes: tuple[LightMesh, ...]

    def places_of(self, split: str) -> list[int]:
        """Indices of the split's places with a ground. split: one of `SPLITS`."""
        return [number for number in _of(self.places, split) if not self.places[number].sky]

    def skies_of(self, split: str) -> list[int]:
        """Indices of the split's places without a ground."""
        return [number for number in _of(self.places, split) if self.places[number].sky]

    def meshes_of(self, split: str) -> list[int]:
        """Indices of the split's meshes."""
        return _of(self.meshes, split)

    @classmethod
    def make(
        cls,
        meshes: Sequence[Path],
        panoramas: Sequence[Path],
        sky: Sequence[str],
        held_out: float,
        exclude: Set[str],
    ) -> LightPlan:
        """Read the folders, without the files named in `exclude`.

        sky: words; a panorama whose name contains one has no ground. held_out: fraction of the places and of the meshes
        that is kept for measuring, at least one of each, chosen by a hash of their names. Raises `ImprintError` for
        fewer than two of either.
        """
        found = [
            LightMesh(folder / mesh.file, mesh.source, mesh.licence, False)
            for folder in meshes
            for mesh in read_meshes(folder)
            if Path(mesh.file).name not in exclude
        ]
        files = read_photos(panoramas, exclude, (".hdr", ".exr"))
        places = [Place(path, any(word in path.stem for word in sky), False) for path in files]
        if len(found) < 2 or sum(not place.sky for place in places) < 2:
            raise ImprintError(
                f"{' and '.join(map(str, meshes))} hold {len(found)} meshes (.glb), and "
                f"{' and '.join(map(str, panoramas))} {len(places)} panoramas (.hdr, .exr), of which "
                f"{sum(place.sky for place in places)} are skies; two meshes and two places with a ground are the "
                "least: one of each is held out"
            )
        grounds = _with_held_out([place for place in places if not place.sky], held_out)
        return cls((*grounds, *(place for place in places if place.sky)), tuple(_with_held_out(found, held_out)))

    def describe(self) -> dict[str, list[dict]]:
        """The content of plan.json: names, sources and licences, but no paths."""
        return {
            "places": [{"name": each.name, "sky": each.sky, "held_out": each.held_out} for each in self.places],
            "meshes": [
                {"name": each.name, "source": each.source, "licence": each.licence, "held_out": each.held_out}
                for each in self.meshes
            ],
        }

    def write(self, folder: Path) -> None:
        """Write plan.json, panoramas.npy (P, `PANORAMA_ROWS`, 2 * `PANORAMA_ROWS`, 3) and irradiance.npy.

        Training reads only the last. Existing files are kept. Raises `ImprintError` if they were made from other places
        or meshes.
        """
        described, path = self.describe(), folder / PLAN
        if path.exists():
            if read_plan(folder) != described:
                raise ImprintError(
                    f"{path} names other places or meshes than these; groups name them by number: give the same "
                    "folders, or another --output"
                )
            if (folder / PANORAMAS).exists():
                return
        with replacing(folder / PANORAMAS) as temporary:
            shape = (len(self.places), PANORAMA_ROWS, 2 * PANORAMA_ROWS, 3)
            file = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            for row, place in zip(file, self.places):
                row[:] = reduced(read_radiance(place.path))
            lights = [irradiance(torch.from_numpy(np.array(row))).numpy() for row in file]
            file.flush()
        with replacing(folder / "irradiance.npy") as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(lights))
        write_text(path, json.dumps(described, indent=1))


def read_plan(folder: Path) -> dict[str, list[dict]]:
    """Read a folder's plan.json. Raises `ImprintError` if it is missing or broken."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        plan["places"], plan["meshes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImprintError(
            f"{folder} is not a folder of groups ({error!r}); `python -m training.prepare light` makes one"
        ) from error
    return plan


def reduced(radiance: np.ndarray) -> np.ndarray:
    """Reduce linear radiance (H, W, 3) to (`PANORAMA_ROWS`, 2 * `PANORAMA_ROWS`, 3) by averaging."""
    pixels = torch.from_numpy(radiance.clip(0, BRIGHTEST)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, (PANORAMA_ROWS, 2 * PANORAMA_ROWS), mode="area")[0].permute(1, 2, 0).numpy()


def _of(things: Sequence[T], split: str) -> list[int]:
    return [number for number, thing in enumerate(things) if thing.held_out == (split == SPLITS[1])]


def _with_held_out(things: list[T], share: float) -> list[T]:
    """Mark those with the lowest hashes as held out; two of the same name are on the same side."""
    order = sorted({thing.name for thing in things}, key=name_hash)
    kept = set(order[: max(1, round(share * len(order)))])
    return [replace(thing, held_out=thing.name in kept) for thing in things]
