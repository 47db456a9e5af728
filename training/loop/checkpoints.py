"""The checkpoints of a run: one at every save, the newest few of them kept, the best and the last."""

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

    The main process alone keeps them, each after the state of its step: so none is of a step that is lost. Other
    processes may call the methods, which then do nothing.
    """

    def __init__(self, state: State, write: Callable[[Path], None]):
        """write: the averaged model, whole or not at all, into a file."""
        self.state, self.folder, self.kept, self.write = state, state.folder, state.settings.keep, write
        self.name, self.main = STAGES[state.settings.stage].product, state.accelerator.is_main_process

    def resume(self, pictures: int) -> None:
        """Drop those of steps that will be done again, and make the one that a run broken off still owes."""
        for path in self.numbered() if self.main else []:
            if path.stem > self._path(pictures).stem:
                path.unlink()
        if pictures:
            self.keep(pictures)

    def keep(self, pictures: int) -> None:
        """The model after so many pictures; the one of the least held-out loss is the best, by the run's own log."""
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
        """The last one, under the name that a run's result has."""
        if self.main:
            _link(self._path(pictures), self.folder / f"{self.name}.safetensors")

    def numbered(self) -> list[Path]:
        """Those of the saves, the newest last."""
        return sorted(self.folder.glob(f"{self.name}-{'[0-9]' * 9}.safetensors"))

    def _path(self, pictures: int) -> Path:
        return self.folder / f"{self.name}-{pictures:09d}.safetensors"


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the disk has no hard links; what had the name is replaced at once."""
    if same_file(source, target):
        return
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
