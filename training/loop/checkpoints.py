"""The checkpoints of a run: the newest few, the best and the last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from imprint.files import replacing, same_file

from ..settings import STAGES
from .state import State

BEST = "best.safetensors"


class Checkpoints:
    """checkpoint-PICTURES.safetensors, best.safetensors and, at the end, checkpoint.safetensors; or lora-... of LoRAs.

    Only the main process writes them, each after the state of its step, so that no checkpoint is of a lost step. In
    other processes the methods do nothing.
    """

    def __init__(self, state: State, write: Callable[[Path], None]):
        """write: writes the averaged model to a file, completely or not at all."""
        self.state, self.folder, self.kept, self.write = state, state.folder, state.settings.keep, write
        self.name, self.main = STAGES[state.settings.stage].product, state.accelerator.is_main_process

    def resume(self, pictures: int) -> None:
        """Remove those of steps that will be repeated, and write the one that an interrupted run is missing."""
        for path in self.numbered() if self.main else []:
            if path.stem > self._path(pictures).stem:
                path.unlink()
        if pictures:
            self.keep(pictures)

    def keep(self, pictures: int) -> None:
        """Write the model after this many pictures; the best has the lowest held-out loss in the run's log."""
        if not self.main:
            return
        path, losses = self._path(pictures), self.state.held_out_losses()
        if not path.exists():
            self.write(path)
        if losses and (best := self._path(min(losses, key=losses.get))).exists():
            _link(best, self.folder / BEST)
        for old in self.numbered()[: -self.kept]:
            old.unlink()

    def finish(self, pictures: int) -> None:
        """Write the last one, under the name of a run's result."""
        if self.main:
            _link(self._path(pictures), self.folder / f"{self.name}.safetensors")

    def numbered(self) -> list[Path]:
        """The checkpoints of the saves, newest last."""
        return sorted(self.folder.glob(f"{self.name}-{'[0-9]' * 9}.safetensors"))

    def _path(self, pictures: int) -> Path:
        return self.folder / f"{self.name}-{pictures:09d}.safetensors"


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the disk has no hard links; an existing file is replaced atomically."""
    if same_file(source, target):
        return
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
