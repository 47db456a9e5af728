"""A run's folder: its description, and the states to resume from."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file

from imprint.errors import ImprintError
from imprint.files import read_json, write_text

from ..data.shards import SPLITS, decode_sample, inside, is_local, list_shards, read_parts
from ..settings import OLD_NAMES, STAGES, Train, renamed_options
from .resuming import require_same

KEPT_STATES = 2


BROKEN = "repair it, or give another --output"


class State:
    """The folder of a run: options.json, data.json, stats.jsonl and state-*/."""

    def __init__(self, settings: Train, accelerator: Accelerator):
        self.settings, self.accelerator, self.folder = settings, accelerator, settings.output
        accelerator.register_load_state_pre_hook(self._load_weights)
        accelerator.register_save_state_pre_hook(self._save_the_model_alone)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder until the block or the process ends.

        Raises `ImprintError` if another run holds it.
        """
        if not self.accelerator.is_main_process:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ImprintError(
                f"another run is writing into {self.folder}; wait for it to end, or give another --output"
            ) from error
        except (OSError, NotImplementedError) as error:  # some network shares cannot lock files
            print(f"warning: {lock.lock_file} cannot be locked ({error}); start no second run there", file=sys.stderr)
        try:
            yield
        finally:
            lock.release()

    def resume(self, described: dict) -> tuple[int, dict]:
        """Resume from the newest state, if any; returns the steps done, and the previous contents of options.json.

        described: the run's new options.json. Raises `ImprintError` if the run was started with other options.
        """
        main = self.accelerator.is_main_process
        if main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.folder / "state.tmp", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        states = self.states()
        step, before = 0, described
        if states:
            before = renamed_options(read_json(self.folder / "options.json", BROKEN))
            require_same(before, described, self.folder)
            self._same_data()
            self._load(states[-1])
            step = int(states[-1].name.removeprefix("state-"))
        if main:
            self.forget_after(step)
        self.accelerator.wait_for_everyone()  # nobody writes options.json before all have read it
        return step, before

    def _load(self, state: Path) -> None:
        """Raise `ImprintError` for a state that is no longer complete."""
        try:
            self.accelerator.load_state(str(state))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # safetensors, torch and pickle raise many kinds on truncated or missing files
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ImprintError(
                f"{state} cannot be read ({reason}); delete it: the same command then resumes from the state before "
                "it, or starts over"
            ) from error

    def _save_the_model_alone(self, models: list[torch.nn.Module], weights: list[dict], folder: str) -> None:
        """A teacher stays what it was."""
        del weights[1:]

    def _load_weights(self, models: list[torch.nn.Module], folder: str) -> None:
        """Instead of accelerate's own, whose names are DDP's if several processes trained. A teacher is not loaded."""
        for model in models[:1]:
            tensors = load_file(Path(folder) / "model.safetensors")
            plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
            self.accelerator.unwrap_model(model).load_state_dict(plain)
        models.clear()

    def describe(self, described: dict) -> None:
        """Write options.json and data.json."""
        write_text(self.folder / "options.json", json.dumps(described, indent=1))
        write_text(self.folder / "data.json", json.dumps(self._shards(), indent=1))

    def save(self, step: int) -> None:
        """Write a state to resume from: under a temporary name, then renamed; the newest few are kept."""
        self.accelerator.wait_for_everyone()
        temporary, final = self.folder / "state.tmp", self.folder / f"state-{step:09d}"
        if final.exists():
            return
        try:
            self.accelerator.save_state(str(temporary))
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch has no class of its own for a file that cannot be written
            if isinstance(error, RuntimeError) and not re.search("inline_container|PytorchStreamWriter", str(error)):
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            raise ImprintError(
                f"the state of step {step} cannot be written ({str(error).partition(chr(10))[0]}); {self.last()}: make "
                "room on the disk and run the same command again"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            os.replace(temporary, final)
            for old in self.states()[:-KEPT_STATES]:
                shutil.rmtree(old)

    def log_usable(self, counts: dict[str, dict[str, Any]]) -> None:
        """Write usable.json: how much of the data can be used in pairs, and why the rest cannot."""
        write_text(self.folder / "usable.json", json.dumps(counts, indent=1))

    def log(self, line: dict) -> None:
        """Append a line to stats.jsonl."""
        with (self.folder / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Remove log lines of steps that an interrupted run made after its last state."""
        path = self.folder / "stats.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_text(path, "".join(line for line in lines if _step_of(line) <= step))

    def held_out_losses(self) -> dict[int, float]:
        """The held-out losses in the log, by number of pictures."""
        path = self.folder / "stats.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if '"held_out_loss"' in line]
        return {line["pictures"]: line["held_out_loss"] for line in found if math.isfinite(line["held_out_loss"])}

    def states(self) -> list[Path]:
        """The complete states, newest last."""
        return sorted(path for path in self.folder.glob("state-*") if re.fullmatch(r"state-\d{9,}", path.name))

    def last(self) -> str:
        """What is saved of the run, for a message."""
        states = self.states()
        return f"{states[-1]} is the last complete state" if states else f"{self.folder} holds no state yet"

    def _shards(self) -> dict[str, dict[str, int | None]]:
        """The run's shards, with the sizes in bytes of local ones: which pairs a step sees depends on all of them."""
        found = {}
        for name in STAGES[self.settings.stage].data_sets:
            for split in SPLITS:
                shards = list_shards(inside(getattr(self.settings, name), split))
                found[f"{name}/{split}"] = {
                    Path(shard).name: Path(shard).stat().st_size if is_local(shard) else None for shard in shards
                }
        return found

    def try_data(self) -> None:
        """Read the first sample of each data set. Raises `ImprintError` if it is missing or cannot be read."""
        for name in STAGES[self.settings.stage].data_sets:
            for split in SPLITS:
                for parts in islice(read_parts(list_shards(inside(getattr(self.settings, name), split))[0]), 1):
                    if name != "captions":  # they need only a picture and a text
                        decode_sample(parts)

    def _same_data(self) -> None:
        """Raise `ImprintError` unless the shards are those that the run started with."""
        path = self.folder / "data.json"
        if not path.exists():
            return
        before, now = {}, self._shards()
        for folder, sizes in read_json(path, BROKEN).items():
            name, _, split = folder.partition("/")
            if not isinstance(sizes, dict):
                raise ImprintError(f"{path} does not hold the shards' sizes; {BROKEN}")
            before[f"{OLD_NAMES.get(name, name)}/{split}"] = sizes
        for folder in sorted(before.keys() | now.keys()):
            then, there = before.get(folder, {}), now.get(folder, {})
            for shard in sorted(then.keys() | there.keys()):
                if then.get(shard) != there.get(shard):
                    was, is_now = (f"of {part[shard]:,} bytes" if shard in part else "absent" for part in (then, there))
                    raise ImprintError(
                        f"the shard {folder}/{shard} was {was} when {self.folder} was started, and is {is_now} now; "
                        "restore it to resume, or give another --output"
                    )


def _step_of(line: str) -> float:
    """The step of a log line; infinity for an incomplete line."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
