"""Groups and photos of `training.prepare light`'s folders in a device's memory, and those that still come."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from imprint.errors import ImprintError
from imprint.files import read_json

from .pairs import LightGroups
from .plan import read_plan
from .radiance import settle_shadows
from .scenes import CHANNELS, LIGHTS

_AGAIN = "make the folder again with `python -m training.prepare light`"


def open_groups(path: Path) -> np.lib.npyio.NpzFile:
    """The arrays of a file of groups. Raises `ImprintError` for one that is cut off, or that earlier code wrote."""
    try:
        file = np.load(path)
        file["horizons"]  # which earlier code did not write
        return file
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ImprintError(f"{path} cannot be read as groups ({error}); delete it") from error


def read_array(path: Path) -> torch.Tensor:
    """Of a .npy file. Raises `ImprintError` for one that cannot be read."""
    try:
        return torch.from_numpy(np.load(path))
    except (OSError, ValueError, EOFError) as error:
        raise ImprintError(f"{path} cannot be read ({error}); {_AGAIN}") from error


def count_groups(path: Path) -> int:
    """Groups in a file. Raises `ImprintError` as `open_groups` does."""
    with open_groups(path) as file:
        return len(file["meshes"])


class GroupReader:
    """The groups of one split, read once each.

    folders: `training.prepare light`'s; capacity: groups held at most, by default those that are there; part: (index,
    processes), of which this one reads every so-manyth file. Raises `ImprintError` where there is none for it.
    """

    def __init__(
        self,
        folders: tuple[Path, ...],
        split: str,
        device: torch.device,
        capacity: int | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        self.folders, self.split, self.part = folders, split, part
        self.files: list[Path] = []
        """All that were given out so far, in the order in which they came; the same in every process."""
        self.first = np.cumsum([0] + [len(read_plan(folder)["places"]) for folder in folders]).tolist()
        self.lights = torch.cat([read_array(folder / "irradiance.npy") for folder in folders]).to(device)
        mine = self._mine()
        if not mine:
            raise ImprintError(
                f"{' and '.join(map(str, folders))} hold {len(self.files)} files of {split} groups, which is not one "
                f"for each of {part[1]} processes; make more with `python -m training.prepare light`"
            )
        self.side = _side(folders)
        capacity = capacity or sum(map(count_groups, mine))
        size = capacity, sum(CHANNELS.values()), self.side, self.side
        self.radiance = torch.empty(size, dtype=torch.float16, device=device)
        self.places = torch.empty(capacity, LIGHTS + 1, dtype=torch.long, device=device)
        self.turns = torch.empty(capacity, LIGHTS + 1, device=device)
        self.horizons = torch.empty(capacity, device=device)
        self.count = 0
        self._read(mine)

    def refresh(self) -> None:
        """Read what has come since, as far as there is room. Every process must call it."""
        self._read(self._mine())

    @property
    def groups(self) -> LightGroups:
        """Those that are there by now."""
        there = slice(self.count)
        return LightGroups(
            self.radiance[there], self.places[there], self.turns[there], self.horizons[there], self.lights
        )

    def _mine(self) -> list[Path]:
        """This process's share of the files that have come."""
        seen = set(self.files)
        found = [path for folder in self.folders for path in sorted(folder.glob(f"{self.split}-*.npz"))]
        fresh = [path for path in found if path not in seen]
        index, processes = self.part
        if processes > 1:  # what the first one sees, lest a file come between two looks
            shared = [fresh]
            torch.distributed.broadcast_object_list(shared, 0)
            fresh = shared[0]
        before = len(self.files)
        self.files += fresh
        return [path for number, path in enumerate(fresh, before) if number % processes == index]

    def _read(self, paths: list[Path]) -> None:
        for path in paths:
            with open_groups(path) as file:
                room = slice(self.count, min(self.count + len(file["meshes"]), len(self.radiance)))
                count = room.stop - room.start
                if not count:
                    return
                for name in ("radiance", "places", "turns", "horizons"):
                    held = getattr(self, name)
                    held[room] = torch.from_numpy(file[name][:count]).to(held)
            settle_shadows(self.radiance[room])
            self.places[room] += self.first[self.folders.index(path.parent)]
            self.count = room.stop


def load_photos(folders: tuple[Path, ...], device: torch.device) -> torch.Tensor | None:
    """(N, 4, S, S) uint8 of all folders; None where none has any."""
    paths = [folder / "photos.npy" for folder in folders]
    parts = [read_array(path) for path in paths if path.exists()]
    return torch.cat(parts).to(device) if parts else None


def _side(folders: tuple[Path, ...]) -> int:
    """Of the groups, in pixels. Raises `ImprintError` where the folders differ."""
    sides = {str(folder): read_json(folder / "options.json", _AGAIN).get("side") for folder in folders}
    if len(set(sides.values())) > 1:
        found = ", ".join(f"{folder}: {side} px" for folder, side in sides.items())
        raise ImprintError(f"the folders' groups differ in size ({found}); one size was expected")
    return next(iter(sides.values()))
