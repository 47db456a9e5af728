"""How many threads PyTorch computes with on a processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """For many operations on small pictures, among which several threads would mostly wait for each other: ten times as
    long as the work takes, or more, where other programs use the processor too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
