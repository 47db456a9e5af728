"""The light network's training loop."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from imprint.errors import ImprintError
from imprint.files import require_writable, write_text
from imprint.lightnet import LightConfig, LightNet, load_light, save_light

from ..arguments import flattened, require_other
from ..data.shards import SPLITS
from .backbone import load_backbone
from .gains import fixed_pairs, gains
from .losses import WEIGHTS, losses, predicted
from .memory import GroupReader, load_photos
from .pairs import LightBatch, Variety, draw_photographed, draw_rendered
from .settings import Relight
from .teaching import taught

KNOWN = 96  # training groups that are measured too
DECAY, BETAS = 0.03, (0.9, 0.98)  # AdamW's
LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    index: int
    count: int
    device: torch.device

    @classmethod
    @contextmanager
    def start(cls, device: str) -> Iterator[Process]:
        """Read torchrun's environment; without it, there is one process. device: auto or cpu."""
        index, count, local = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        on_gpu = device == "auto" and torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(local)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        if count > 1:
            torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
        try:
            yield cls(index, max(count, 1), torch.device("cuda", local) if on_gpu else torch.device("cpu"))
        finally:
            if count > 1:
                torch.distributed.destroy_process_group()

    def agree(self, value: float) -> float:
        """Return the first process's value."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, 0)
        return float(shared)


class Averaged:
    """The moving average of a network's weights: each step keeps `decay` of it, less at first."""

    def __init__(self, net: LightNet, decay: float):
        self.net, self.decay = copy.deepcopy(net).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, net: LightNet, step: int) -> None:
        """step: counted from 1."""
        keep = min(self.decay, step / (step + 30))
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - keep)


@contextmanager
def told_to_stop() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in the list, instead of ending the process."""
    told: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: told.append(number)) for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield told
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def relight_training(settings: Relight) -> dict[str, float]:
    """Train, write the network, and return its held-out gains. See `training.relight`.

    Raises `ImprintError` for groups or a network that cannot be used, for an output that is also an input, and for a
    loss that is not finite.
    """
    require_writable(settings.output)
    require_other(settings.output, settings.init, *settings.teachers, settings.backbone)
    with Process.start(settings.device) as process:
        part = process.index, process.count
        reader = GroupReader(settings.groups, SPLITS[0], process.device, settings.capacity, part)
        measured = GroupReader(settings.groups, SPLITS[1], process.device, settings.held_out).groups
        photos = load_photos(settings.groups, process.device)
        net = make_net(settings, reader.side).to(process.device)
        nets = {path: load_teacher(path, reader.side).to(process.device) for path in settings.teachers}
        teachers = [nets[path] for path in settings.teachers]
        if process.device.type == "cuda":
            net = net.to(memory_format=torch.channels_last)
        run = LightRun(settings, process, net, teachers, reader, photos, list(fixed_pairs(measured)))
        with told_to_stop() as told:
            mean = run.train(told)
        if process.index == 0:
            save_light(settings.output, mean)
        return gains(mean, run.held_out)


def make_net(settings: Relight, side: int) -> LightNet:
    """The network of `--init`, or one with fresh weights.

    side: of the groups, in pixels. Raises `ImprintError` if the network's square has another.
    """
    torch.manual_seed(settings.seed)
    if settings.init:
        net = load_light(settings.init)
        found = f"the network of --init, {settings.init},"
        require_side(side, net.config.resolution, found, f"leave --init out and give --side {side}")
        net.requires_grad_(True)
        net.backbone.requires_grad_(False)
        return net.train()
    require_side(side, settings.side, "a new network", f"give --side {side}")
    net = LightNet(LightConfig(resolution=settings.side, widths=settings.widths))
    backbone = load_backbone(settings.backbone) if settings.backbone else load_light().backbone
    net.backbone.load_state_dict(backbone.state_dict())
    return net.train()


def load_teacher(path: Path, side: int) -> LightNet:
    """A network of `--teachers`. side: of the groups, in pixels. Raises `ImprintError` if its square has another."""
    net = load_light(path)
    require_side(side, net.config.resolution, f"a network of --teachers, {path},", f"give teachers for {side} px")
    return net


def require_side(side: int, seen: int, network: str, remedy: str) -> None:
    """Raise `ImprintError` unless groups of this side fit a network whose square has the side `seen`, in pixels."""
    if seen != side:
        raise ImprintError(
            f"the groups are {side} px wide, but {network} takes {seen} px; make groups of {seen} px, or {remedy}"
        )


class LightRun:
    """A run: its network, optimizer, data and log."""

    def __init__(
        self,
        settings: Relight,
        process: Process,
        net: LightNet,
        teachers: list[LightNet],
        reader: GroupReader,
        photos: torch.Tensor | None,
        held_out: list[LightBatch],
    ):
        self.settings, self.process, self.net, self.reader = settings, process, net, reader
        self.teachers, self.photos, self.held_out = teachers, photos, held_out
        # Only the first process writes a log.
        self.known = [] if process.index else list(fixed_pairs(reader.groups, KNOWN))
        self.variety = Variety(settings.repainted, settings.textured, settings.tinted, settings.mixed)
        self.model: torch.nn.Module = net
        if process.count > 1:
            ids = [process.device.index] if process.device.type == "cuda" else None
            self.model = torch.nn.parallel.DistributedDataParallel(net, device_ids=ids)
        self.optimizer = torch.optim.AdamW(net.parameters(), settings.lr, weight_decay=DECAY, betas=BETAS)
        self.mean = Averaged(net, settings.ema)
        self.sums = {name: torch.zeros((), device=process.device) for name in WEIGHTS}
        seeds = np.random.SeedSequence([settings.seed, process.index])
        torch.manual_seed(int(seeds.generate_state(1)[0]))

    def train(self, told: list[int]) -> LightNet:
        """Train until the time or the steps are used up, or `told` is not empty; return the averaged network."""
        settings, main = self.settings, self.process.index == 0
        if main:
            write_text(settings.output.with_suffix(".options.json"), json.dumps(flattened(settings), indent=1))
            settings.output.with_suffix(".stats.jsonl").unlink(missing_ok=True)
        began, step, logged = time.monotonic(), 0, 0
        with tqdm(desc=settings.output.name, unit="step", disable=not main, mininterval=2) as bar:
            while True:
                elapsed = time.monotonic() - began
                done = self.process.agree(1.0 if told else self.done(step, elapsed))
                if done >= 1:
                    break
                self.step(step, done)
                step += 1
                bar.update()
                if step % settings.refresh == 0:
                    self.reader.refresh()
                if step % settings.log_every == 0:
                    self.log(bar, step, step - logged, elapsed)
                    logged = step
            if step > logged:
                self.log(bar, step, step - logged, time.monotonic() - began)
        if not step:
            raise ImprintError("the run was over before its first step; nothing was written: give it more --seconds")
        return self.mean.net

    def done(self, step: int, elapsed: float) -> float:
        """Progress of the run, from 0 to 1. elapsed: seconds."""
        settings = self.settings
        return elapsed / settings.seconds if settings.steps is None else step / settings.steps

    def step(self, step: int, done: float) -> None:
        """One step of the optimizer and of the average, without waiting for the device."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, done)
        batch = self.draw()
        told = (torch.rand(len(batch), 1, device=self.process.device) < settings.told).float()
        if self.teachers:
            batch = taught(batch, self.teachers, told)
        parts = losses(predicted(self.model, batch, told), batch, told)
        sum(WEIGHTS[name] * value for name, value in parts.items()).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.mean.update(self.net, step + 1)
        for name, value in parts.items():
            self.sums[name] += value.detach()

    def draw(self) -> LightBatch:
        """Draw a batch of pairs from groups and, if there are any, photos."""
        settings, device = self.settings, self.process.device
        few = 0 if self.photos is None else round(settings.batch * settings.photo_share)
        groups = self.reader.groups
        batches = []
        if few < settings.batch:
            chosen = torch.randint(len(groups), (settings.batch - few,), device=device)
            batches.append(draw_rendered(groups, chosen, self.photos, self.variety))
        if few:
            batches.append(draw_photographed(self.photos, torch.randint(len(self.photos), (few,), device=device)))
        return batches[0] if len(batches) == 1 else batches[0].joined(batches[1])

    def log(self, bar: tqdm, step: int, steps: int, elapsed: float) -> None:
        """Log the mean losses of the last steps and the gains on held-out and training groups; write the network.

        Raises `ImprintError` for a loss that is not finite.
        """
        means = {name: float(value) / steps for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()
        if not all(map(math.isfinite, means.values())):
            raise ImprintError(f"the loss is not finite at step {step} ({means}); the file is as it was: lower --lr")
        if self.process.index:
            return
        found = gains(self.mean.net, self.held_out)
        line = {"step": step, "pictures": step * self.settings.batch * self.process.count, "seconds": elapsed}
        known = gains(self.mean.net, self.known)
        told = gains(self.mean.net, self.held_out, told=True)
        line |= {
            "groups": len(self.reader.groups),
            "losses": means,
            "gains": found,
            "known_gains": known,
            "told_gains": told,
        }
        with self.settings.output.with_suffix(".stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        save_light(self.settings.output, self.mean.net)
        bar.set_postfix({name: f"{value:+.3f}" for name, value in found.items()})


def learning_rate(settings: Relight, step: int, done: float) -> float:
    """Rises over the first steps, stays, and falls to 0 over the last part of the run.

    done: progress of the run, from 0 to 1.
    """
    rising = min(1.0, (step + 1) / settings.lr_warmup)
    return settings.lr * rising * min(1.0, (1 - done) / settings.cooldown)
