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
        """Raises `ImprintError` for a number that cannot be."""
        require(self, "workers")


@dataclass(frozen=True)
class Subject:
    """A few photos of one object, into shards."""

    folder: Path = option(positional=True)
    """of the photos"""
    output: Path = option()
    """folder; cutouts/ and photos/ are made in it"""
    backgrounds: Path | None = option(None)
    """folder of shards of photos"""
    limit: int = option(200)
    """of the backgrounds"""

    def check(self) -> None:
        """Raises `ImprintError` for a number that cannot be."""
        require(self, "limit")


@dataclass(frozen=True)
class Limits:
    """filters, of objects; sizes are those of the picture as it is stored"""

    min_area: float = 0.01
    """smallest object, as a share of the picture's area"""
    max_area: float = 0.64
    """largest object, likewise"""
    border: int = 4
    """an object with a pixel in this many outermost rows or columns is cut by the border; 0 keeps all and counts those
    that are cut, of which training from photos makes no targets"""
    max_edge: float = 3.0
    """greatest mean width in pixels of a mask's soft edge, where alpha lies between 10 and 90 %"""


@dataclass(frozen=True)
class Render:
    """multi-view sources"""

    views: int = option(8)
    """of each object"""
    resolution: int = option(256)
    """pixels of a rendering"""
    identities: int | None = option(None)
    """meshes with a material each, in all; by default one per mesh"""
    textures: tuple[Path, ...] = option(())
    """folders of pictures to cut textures from"""
    panoramas: tuple[Path, ...] = option(())
    """folders of .hdr panoramas, to light renderings with"""
    relit: int = option(0)
    """views of each object that are rendered again in a panorama's light"""
    seed: int = option(0)
    """of what is drawn for a rendering"""
    backend: str = option("egl", choices=BACKENDS)
    """OpenGL platform"""
    texture_files: tuple[Path, ...] = found(())
    """the pictures in them"""
    panorama_files: tuple[Path, ...] = found(())
    """likewise"""


@dataclass(frozen=True)
class Prepare:
    """A data set in its own layout, into shards."""

    source: str = option(positional=True)
    """the data set"""
    input: Path = option()
    """the data set's own folder, or its zips"""
    output: str = option()
    """folder, or a URL that fsspec knows, such as s3://bucket/folder"""
    licence: str | None = option(None)
    """of the pictures, written into each record where the data set gives none of its own"""
    name: str | None = option(None)
    """of the shards; by default the source and the input's folder"""
    exclude: Path | None = option(None)
    """text file that names pictures to leave out"""
    held_out: float = option(0.05)
    """share of the clips, objects or pictures kept for validation"""
    longest_side: int = option(640)
    """pixels to which larger pictures are reduced"""
    quality: int = option(85)
    """of JPEG and WebP"""
    shard_size: int = option(500)
    """pictures in a shard, about"""
    workers: int = option(2)
    """processes"""
    describe: str | None = option(None, metavar="ADDRESS")
    """for captions: a server that answers as OpenAI's chat completions do, such as http://localhost:8000/v1, which
    captions pictures that have none"""
    describe_model: str | None = option(None, metavar="NAME")
    """the server's name of the model that describes"""
    engine: str = option("processes", choices=ENGINES)
    """ray spreads the work over a cluster"""
    dry_run: bool = option(False)
    """print the resolved options and the number of shards, and stop"""
    limits: Limits
    render: Render
    excluded: frozenset[str] = found(frozenset())
    """the names in --exclude"""

    def check(self) -> None:
        """Raises `ImprintError` for options that do not go together."""
        require(self, "longest_side shard_size workers")
        require(self, "quality", 1, 100)
        require(self.render, "views resolution identities")
        require(self, "held_out", 0, 1)
        require(self.limits, "min_area max_area", 0, 1)
        require(self.limits, "border max_edge", 0)
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ImprintError(
                f"--name is {self.name!r}; files and samples are called so: letters, digits, _ and - were expected"
            )
        if self.describe is not None or self.describe_model is not None:
            if self.source != "captions" or None in (self.describe, self.describe_model):
                raise ImprintError("--describe and --describe-model go together, and with the source 'captions' alone")
            if not self.describe.startswith(("http://", "https://")):
                raise ImprintError(f"--describe is {self.describe!r}; an address that begins with http:// was expected")
        if self.render.relit and not self.render.panoramas:
            raise ImprintError("--relit needs the light of --panoramas")
        require(self.render, "relit", 0, self.render.views)

    def resolved(self, licensed: bool) -> Prepare:
        """With name and licence. licensed: whether each picture brings its own.

        Raises `ImprintError` where there is none.
        """
        if self.licence is None and not licensed:
            raise ImprintError(f"{self.source} does not say each picture's licence: give --licence")
        folder = re.sub(r"[^A-Za-z0-9-]+", "-", self.input.resolve().name)
        return replace(self, licence=self.licence or "unknown", name=self.name or f"{self.source}-{folder}")
