"""Work that runs concurrently with the training steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Ahead:
    """Makes the next item in advance, in its own thread and, on a GPU, on its own stream.

    Pairs are made by many small kernels, and Python sometimes waits for the device between them. Run in sequence with
    the steps, the device would idle between the kernels and drain its queue at each wait.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.thread = ThreadPoolExecutor(1, "ahead")
        self.next: tuple[int, Future] | None = None

    def take(self, number: int, make: Callable[[int], Any]) -> Any:
        """`make(number)`, ready for use on the current stream; starts `make(number + 1)`.

        The item taken before must be released first. Raises what `make` raised.
        """
        last, self.next = self.next, None
        if last is not None and last[0] != number:
            last[1].exception()  # waits for it and starts over
            last = None
        made = make(number) if last is None else last[1].result()
        if self.stream is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_stream(self.stream)
            # Queued steps may still read the released item: its memory is reused only after them.
            self.stream.wait_stream(here)
        self.next = number + 1, self.thread.submit(self._run, make, number + 1)
        return made

    def wait(self) -> None:
        """Wait until nothing is being made."""
        if self.next is not None:
            self.next[1].exception()

    def _run(self, make: Callable[[int], Any], number: int) -> Any:
        if self.stream is None:
            return make(number)
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            return make(number)
