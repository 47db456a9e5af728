"""Groups and photos from `training.prepare light`'s folders in a device's memory, including files that still arrive."""

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
    """Open a file of groups. Raises `ImprintError` if it is truncated, or was written by earlier code."""
    try:
        file = np.load(path)
        file["horizons"]  # earlier code did not write it
        return file
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ImprintError(f"{path} cannot be read as groups ({error}); delete it") from error


def read_array(path: Path) -> torch.Tensor:
    """Read a .npy file. Raises `ImprintError` if it cannot be read."""
    try:
        return torch.from_numpy(np.load(path))
    except (OSError, ValueError, EOFError) as error:
        raise ImprintError(f"{path} cannot be read ({error}); {_AGAIN}") from error


def count_groups(path: Path) -> int:
    """Number of groups in a file. Raises `ImprintError` as `open_groups` does."""
    with open_groups(path) as file:
        return len(file["meshes"])


class GroupReader:
    """The groups of one split; each file is read once.

    folders: written by `training.prepare light`. capacity: largest number of groups to hold, by default those that
    exist. part: (index, processes); each process reads its share of the files. Raises `ImprintError` if there is no
    file for this process.
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
        """All files assigned so far, in the order in which they appeared; the same in every process."""
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
        """Read files that have appeared since, as far as there is room. Every process must call it."""
        self._read(self._mine())

    @property
    def groups(self) -> LightGroups:
        """The groups read so far."""
        there = slice(self.count)
        return LightGroups(
            self.radiance[there], self.places[there], self.turns[there], self.horizons[there], self.lights
        )

    def _mine(self) -> list[Path]:
        """This process's share of the new files."""
        seen = set(self.files)
        found = [path for folder in self.folders for path in sorted(folder.glob(f"{self.split}-*.npz"))]
        fresh = [path for path in found if path not in seen]
        index, processes = self.part
        if processes > 1:  # all use the first one's list: a file could appear between two listings
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
    """The photos of all folders, (N, 4, S, S) uint8; None if there are none."""
    paths = [folder / "photos.npy" for folder in folders]
    parts = [read_array(path) for path in paths if path.exists()]
    return torch.cat(parts).to(device) if parts else None


def _side(folders: tuple[Path, ...]) -> int:
    """The groups' side in pixels. Raises `ImprintError` if the folders differ."""
    sides = {str(folder): read_json(folder / "options.json", _AGAIN).get("side") for folder in folders}
    if len(set(sides.values())) > 1:
        found = ", ".join(f"{folder}: {side} px" for folder, side in sides.items())
        raise ImprintError(f"the folders' groups differ in size ({found}); one size was expected")
    return next(iter(sides.values()))
