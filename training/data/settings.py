"""The settings of preparing data."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from imprint.errors import ImprintError

from ..arguments import found, option, require

ENGINES = ("processes", "ray")
BACKENDS = ("egl", "x11", "wgl", "darwin")


@dataclass(frozen=True)
class Cutout:
    """Cutting objects out of photos."""

    photos: Path = option(positional=True)
    """folder of photos, at any depth"""
    masks: Path | None = option(None, metavar="FOLDER")
    """by default PHOTOS/masks"""
    workers: int = option(2)
    """processes"""

    def check(self) -> None:
        """Raise `ImprintError` for a number out of range."""
        require(self, "workers")


@dataclass(frozen=True)
class Subject:
    """Turning a few photos of one object into shards."""

    folder: Path = option(positional=True)
    """folder of the photos"""
    output: Path = option()
    """folder in which cutouts/ and photos/ are created"""
    backgrounds: Path | None = option(None)
    """folder of shards of photos"""
    limit: int = option(200)
    """read at most this many backgrounds"""

    def check(self) -> None:
        """Raise `ImprintError` for a number out of range."""
        require(self, "limit")


@dataclass(frozen=True)
class Limits:
    """filters, of objects; sizes are those of the picture as it is stored"""

    min_area: float = 0.01
    """smallest object, as a fraction of the picture's area"""
    max_area: float = 0.64
    """largest object, likewise"""
    border: int = 4
    """an object with a pixel in this many outermost rows or columns counts as cut by the border; 0 keeps and counts
    such objects, which training from photos never uses as targets"""
    max_edge: float = 3.0
    """largest mean width in pixels of a mask's soft edge, where alpha is between 10 and 90 %"""


@dataclass(frozen=True)
class Render:
    """multi-view sources"""

    views: int = option(8)
    """views of each object"""
    resolution: int = option(256)
    """side of a rendering, in pixels"""
    identities: int | None = option(None)
    """total number of meshes with a random material; by default one per mesh"""
    textures: tuple[Path, ...] = option(())
    """folders of pictures to cut textures from"""
    panoramas: tuple[Path, ...] = option(())
    """folders of .hdr panoramas to light renderings with"""
    relit: int = option(0)
    """number of views of each object to render once more in a panorama's light"""
    seed: int = option(0)
    """seed of the renderings"""
    backend: str = option("egl", choices=BACKENDS)
    """OpenGL platform"""
    texture_files: tuple[Path, ...] = found(())
    """the pictures in them"""
    panorama_files: tuple[Path, ...] = found(())
    """likewise"""


@dataclass(frozen=True)
class Prepare:
    """Turning a data set in its original layout into shards."""

    source: str = option(positional=True)
    """the data set"""
    input: Path = option()
    """the data set's own folder, or its zips"""
    output: str = option()
    """folder, or a URL that fsspec supports, such as s3://bucket/folder"""
    licence: str | None = option(None)
    """licence of the pictures, stored with each unless the data set has its own"""
    name: str | None = option(None)
    """name of the shards; by default the source and the input's folder"""
    exclude: Path | None = option(None)
    """text file with the names of pictures to leave out"""
    held_out: float = option(0.05)
    """fraction of the clips, objects or pictures held out for validation"""
    longest_side: int = option(640)
    """largest side in pixels; larger pictures are reduced to it"""
    quality: int = option(85)
    """quality of JPEG and WebP"""
    shard_size: int = option(500)
    """approximate number of pictures per shard"""
    workers: int = option(2)
    """processes"""
    describe: str | None = option(None, metavar="ADDRESS")
    """for captions: a server with OpenAI's chat completions API, such as http://localhost:8000/v1, that captions
    pictures without captions"""
    describe_model: str | None = option(None, metavar="NAME")
    """the server's name of the model to use"""
    engine: str = option("processes", choices=ENGINES)
    """ray distributes the work over a cluster"""
    dry_run: bool = option(False)
    """print the resolved options and the number of shards, and stop"""
    limits: Limits
    render: Render
    excluded: frozenset[str] = found(frozenset())
    """the names in --exclude"""

    def check(self) -> None:
        """Raise `ImprintError` for options that contradict each other."""
        require(self, "longest_side shard_size workers")
        require(self, "quality", 1, 100)
        require(self.render, "views resolution identities")
        require(self, "held_out", 0, 1)
        require(self.limits, "min_area max_area", 0, 1)
        require(self.limits, "border max_edge", 0)
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ImprintError(
                f"--name is {self.name!r}; it names files and samples: use only letters, digits, _ and -"
            )
        if self.describe is not None or self.describe_model is not None:
            if self.source != "captions" or None in (self.describe, self.describe_model):
                raise ImprintError("--describe and --describe-model go together, and only with the source 'captions'")
            if not self.describe.startswith(("http://", "https://")):
                raise ImprintError(f"--describe is {self.describe!r}; expected an address that starts with http://")
        if self.render.relit and not self.render.panoramas:
            raise ImprintError("--relit needs the light of --panoramas")
        require(self.render, "relit", 0, self.render.views)

    def resolved(self, licensed: bool) -> Prepare:
        """The settings with name and licence filled in. licensed: whether each picture has its own licence.

        Raises `ImprintError` if there is none.
        """
        if self.licence is None and not licensed:
            raise ImprintError(f"{self.source} does not say each picture's licence: give --licence")
        folder = re.sub(r"[^A-Za-z0-9-]+", "-", self.input.resolve().name)
        return replace(self, licence=self.licence or "unknown", name=self.name or f"{self.source}-{folder}")
