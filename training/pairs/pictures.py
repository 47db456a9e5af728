"""Reading pictures from shards, in several processes, into the device's memory."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from imprint.errors import ImprintError

from ..data.shards import Bad, list_shards, read_shards
from .about import About
from .handing import Handed, handed, taken

if TYPE_CHECKING:
    from typing_extensions import Self


class Pictures:
    """The common base of `Views` and `Photos`: a dataclass of tensors on one device."""

    @classmethod
    def load(
        cls,
        url: str | os.PathLike,
        device: torch.device,
        limit: int | None = None,
        side: int | None = None,
        bad: Bad | None = None,
    ) -> Self:
        """Read all of a folder's shards in several processes, or their first `limit` samples; side: as of `of`, bad: as
        of `read_shards`.
        """
        shards, bad = list_shards(url), bad or Bad()
        if limit is not None or len(shards) == 1:
            return cls.of(read_shards(shards, limit, bad), side).to(device)
        loading = dict(batch_size=None, num_workers=min(len(shards), own_cores()), collate_fn=_unchanged)
        parts = []
        for part, found in DataLoader(_Shards(cls, shards, side, bad.most), **loading):
            for message in found:
                bad.take(message)
            parts.append(cls(*map(_as_tensor, _raised(part))))
        return cls.join(parts).to(device)

    def to(self, device: torch.device) -> Self:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return type(self)(*(value if isinstance(value, About) else value.to(device) for value in values))


def own_cores() -> int:
    """Cores for this process: all that it may run on, divided by the processes of a launcher on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class _Shards(Dataset):
    """What `Pictures.of` makes of each shard, as arrays: tensors would pass through shared memory, which is small in
    containers; large arrays are `handed`. Errors are items too: the loader would wrap them in a traceback."""

    def __init__(self, kind: type[Pictures], shards: list[str], side: int | None, most_bad: int):
        self.kind, self.shards, self.side, self.most_bad = kind, shards, side, most_bad

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[list[np.ndarray | Handed | About] | ImprintError, list[str]]:
        bad = Bad(self.most_bad)
        try:
            part = self.kind.of(read_shards([self.shards[index]], bad=bad), self.side)
        except ImprintError as error:
            return error, []
        values = vars(part).values()
        arrays = [value if isinstance(value, About) else handed(value.contiguous().numpy()) for value in values]
        return arrays, list(bad.found)


def _unchanged(part: Any) -> Any:
    return part


def _as_tensor(value: np.ndarray | Handed | About) -> torch.Tensor | About:
    return value if isinstance(value, About) else torch.from_numpy(taken(value))


def _raised(part: list[np.ndarray | Handed | About] | ImprintError) -> list[np.ndarray | Handed | About]:
    if isinstance(part, ImprintError):
        raise part
    return part


def to_uint8(picture: Image.Image) -> torch.Tensor:
    """A picture's values (H, W, C), as in Pillow: permuting pictures one by one takes longer than decoding them."""
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.reshape(picture.height, picture.width, -1)
