"""Passing pictures from one process to another without copying.

Through a pipe, receiving 36,000 views takes half a minute, since each byte is copied four times.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

SMALL = 2**20
"""The largest tensor, in bytes, to send through a pipe."""


class Handed(NamedTuple):
    """Pictures in memory of a process on this machine, which must live until they are `taken`."""

    path: str
    shape: tuple[int, ...]


class Stack:
    """Pictures, written one after the other to where they stay.

    shared: in anonymous memory that another process can map, on Linux. It is ordinary memory, not /dev/shm, which is
    small in containers, and is freed when this process has ended and the other one has released the pictures.
    """

    def __init__(self, shared: bool = False):
        self.path = None
        if shared and hasattr(os, "memfd_create"):
            file = os.memfd_create("imprint")
            self.path, self.file = f"/proc/{os.getpid()}/fd/{file}", open(file, "wb", closefd=False)
        else:
            self.file = io.BytesIO()
        self.count = 0

    def add(self, picture: Image.Image) -> int:
        """Write a picture, channel after channel, and return its number."""
        for channel in picture.split():  # takes half as long as reordering the values later
            self.file.write(channel.tobytes())
        self.count += 1
        return self.count - 1

    def tensor(self, *shape: int, order: Sequence[int] | None = None) -> torch.Tensor:
        """(N, *shape) uint8: all pictures, or those of these numbers; at least one."""
        if self.path is None:
            whole = torch.frombuffer(self.file.getbuffer(), dtype=torch.uint8).reshape(-1, *shape)
        else:
            self.file.flush()
            whole = _mapped(self.path, (self.count, *shape))
        if order is None or order == list(range(self.count)):
            return whole
        ordered = Stack(self.path is not None)
        for number in order:
            ordered.file.write(whole[number].numpy().data)
            ordered.count += 1
        return ordered.tensor(*shape)


def handed(tensor: torch.Tensor) -> np.ndarray | Handed:
    """What to send instead of a tensor: of a shared `Stack` where it is, of anything else its values."""
    path = tensor.untyped_storage().filename
    if path is None or tensor.nbytes <= SMALL:
        return tensor.numpy()
    return Handed(path, tuple(tensor.shape))


def taken(value: np.ndarray | Handed) -> torch.Tensor:
    """The tensor that another process has `handed`; it must not be written to."""
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else _mapped(*value)


def _mapped(path: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_file(path, shared=True, size=int(np.prod(shape)), dtype=torch.uint8).reshape(shape)
