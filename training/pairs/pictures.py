"""Reading pictures from shards, in several processes, into the device's memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

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

CPU = torch.device("cpu")


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
        wanted = Wanted(cls, url, limit, side, bad)
        if len(wanted.jobs) == 1:
            return cls.of(read_shards(wanted.shards, limit, wanted.bad), side).to(device)
        return Reading([wanted]).next(device)

    def to(self, device: torch.device) -> Self:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return type(self)(*(value if isinstance(value, About) else value.to(device) for value in values))


Held = TypeVar("Held", bound=Pictures)


class Wanted(Generic[Held]):
    """A folder whose pictures are to be read, by what `Pictures.load` is given."""

    def __init__(
        self,
        kind: type[Held],
        url: str | os.PathLike,
        limit: int | None = None,
        side: int | None = None,
        bad: Bad | None = None,
    ):
        self.kind, self.limit, self.side, self.bad = kind, limit, side, bad or Bad()
        self.shards = list_shards(url)
        self.jobs = [self.shards] if limit is not None else [[shard] for shard in self.shards]


class Reading:
    """Folders' pictures, which other processes read while this one does something else."""

    def __init__(self, wanted: Sequence[Wanted]):
        import webdataset  # noqa: F401  here once, not in each process

        Image.init()  # likewise
        self.wanted = list(wanted)
        jobs = _Jobs(self.wanted)
        workers = min(len(jobs), own_cores())
        self.parts = iter(
            DataLoader(
                jobs,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=-(-len(jobs) // workers),  # they need not wait for this process
                collate_fn=_unchanged,
                generator=torch.Generator(),  # draws none of the run's random numbers
            )
        )

    def next(self, device: torch.device) -> Pictures:
        """The pictures of the next folder, on the device. Raises `ImprintError` as `read_shards` does."""
        wanted, parts = self.wanted.pop(0), []
        try:
            for _ in wanted.jobs:
                values, found = next(self.parts)
                for message in found:
                    wanted.bad.take(message)
                if isinstance(values, ImprintError):
                    raise values
                parts.append(wanted.kind(*(value if isinstance(value, About) else taken(value) for value in values)))
        except ImprintError:
            self.close()
            raise
        whole = wanted.kind.join(parts, device)
        if not self.wanted:
            del parts
            self.close()  # so that the memory that they have handed over is free
        return whole

    def close(self) -> None:
        """End the processes. Left to the garbage collector, each of them would be waited for in vain for 5 seconds."""
        self.parts = None


class _Jobs(Dataset):
    """What `Pictures.of` makes of each shard, `handed` over. Errors are items too: the loader would wrap them in a
    traceback."""

    def __init__(self, wanted: Sequence[Wanted]):
        self.jobs = [(each, shards) for each in wanted for shards in each.jobs]
        self.threads = max(1, own_cores() // len(self.jobs))

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> tuple[list[np.ndarray | Handed | About] | ImprintError, list[str]]:
        wanted, shards = self.jobs[index]
        bad = Bad(wanted.bad.most)
        try:
            part = wanted.kind.of(read_shards(shards, wanted.limit, bad, self.threads), wanted.side, shared=True)
        except ImprintError as error:
            return error, []
        return [value if isinstance(value, About) else handed(value) for value in vars(part).values()], list(bad.found)


def _unchanged(part: tuple) -> tuple:
    return part


def joined(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Concatenate tensors in main memory: pictures on the device, so that main memory does not hold them twice."""
    if parts[0].dtype != torch.uint8:
        return torch.cat(parts)
    whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=torch.uint8, device=device)
    for place, part in zip(whole.split([len(part) for part in parts]), parts):
        place.copy_(part)
    return whole


def own_cores() -> int:
    """Cores for this process: all that it may run on, divided by the processes of a launcher on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
