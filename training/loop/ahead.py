"""Work that is done beside the training steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Ahead:
    """Makes what will be needed next, in a thread of its own and, on a GPU, on a stream of its own.

    Pairs are made by many small kernels, between which Python at times waits for the device. Done in line with the
    steps, the device idles between the one and empties its queue at the other.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.thread = ThreadPoolExecutor(1, "ahead")
        self.next: tuple[int, Future] | None = None

    def take(self, number: int, make: Callable[[int], Any]) -> Any:
        """`make(number)`, ready to be used on the present stream; begins with `make(number + 1)`.

        What was taken before must be let go first. Raises what `make` raised.
        """
        last, self.next = self.next, None
        if last is not None and last[0] != number:
            last[1].exception()  # ends with it, and begins anew
            last = None
        made = make(number) if last is None else last[1].result()
        if self.stream is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_stream(self.stream)
            # What was let go may still be read by steps that wait in the queue: its memory is used again after them.
            self.stream.wait_stream(here)
        self.next = number + 1, self.thread.submit(self._run, make, number + 1)
        return made

    def wait(self) -> None:
        """Until nothing is being made."""
        if self.next is not None:
            self.next[1].exception()

    def _run(self, make: Callable[[int], Any], number: int) -> Any:
        if self.stream is None:
            return make(number)
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            return make(number)
