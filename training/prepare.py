"""A data set in its own layout into shards for training: python -m training.prepare SOURCE --input FOLDER --output PLACE

The same command again goes on: finished shards are kept. OUTPUT gets train/ and held-out/ with the shards and, for the run's
name, NAME.json (options, counts, what was dropped and how often), NAME.dropped.tsv (each thing dropped, and why) and NAME.png
(a contact sheet to look at).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from imprint.errors import ImprintError

from .data import captions, multiview, stills, video
from .data.engines import ENGINES
from .data.filters import Limits
from .data.items import read_photos
from .data.preparing import prepare
from .render import sources

SOURCES = multiview.SOURCES | sources.SOURCES | video.SOURCES | stills.SOURCES | captions.SOURCES


def parse(argv: list[str] | None) -> argparse.Namespace:
    limits = Limits()
    layouts = "\n".join(f"\n{name}:\n  {source.groups.__doc__.strip()}" for name, source in SOURCES.items())
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description=__doc__,
        epilog=f"layouts that are read:\n{layouts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", choices=SOURCES)
    add("--input", type=Path, required=True, help="the data set's own folder")
    add("--output", required=True, help="folder, or an address that fsspec knows, such as s3://bucket/folder")
    add("--licence", help="of the pictures, written into each record where the data set gives none of its own")
    add("--name", help="of the shards; by default the source and the input's folder")
    add("--exclude", type=Path, help="text file that names pictures to leave out")
    add("--held-out", type=float, default=0.05, help="part of the clips, objects or pictures kept for validation")
    add("--longest-side", type=int, default=640, help="larger pictures are reduced to this, in pixels")
    add("--quality", type=int, default=85, help="of JPEG and WebP")
    add("--shard-size", type=int, default=500, help="pictures in a shard, about")
    add("--workers", type=int, default=2, help="processes")
    add("--engine", choices=ENGINES, default="processes", help="ray spreads the work over a cluster")
    add("--dry-run", action="store_true", help="print the resolved options and the number of shards, and stop")
    filters = parser.add_argument_group("filters, of objects")
    filters.add_argument("--min-area", type=float, default=limits.min_area, help="least share of the picture")
    filters.add_argument("--max-area", type=float, default=limits.max_area, help="greatest share of the picture")
    filters.add_argument("--border", type=int, default=limits.border, help="outermost pixels to keep clear of; 0 = any")
    filters.add_argument(
        "--max-edge", type=float, default=limits.max_edge, help="width in pixels of a mask's soft edge"
    )
    views = parser.add_argument_group("multi-view sources")
    views.add_argument("--views", type=int, default=8, help="of each object")
    views.add_argument("--resolution", type=int, default=256, help="pixels a side of a rendering")
    views.add_argument("--identities", type=int, help="meshes with a material each, in all; by default one a mesh")
    views.add_argument("--textures", type=Path, nargs="+", default=[], help="folders of pictures to cut textures from")
    views.add_argument(
        "--panoramas", type=Path, nargs="+", default=[], help="folders of .hdr panoramas, to light renderings with"
    )
    views.add_argument(
        "--relit", type=int, default=0, help="views of each object that are rendered again in a panorama's light"
    )
    views.add_argument("--seed", type=int, default=0, help="of what is drawn for a rendering")
    views.add_argument("--backend", choices=("egl", "x11", "wgl", "darwin"), default="egl", help="OpenGL platform")
    options = parser.parse_args(argv)
    for name in ("longest_side", "shard_size", "workers", "views", "resolution", "identities"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be 1 or more")
    if options.relit and not options.panoramas:
        parser.error("--relit needs the light of --panoramas")
    if not 0 <= options.relit <= options.views:
        parser.error(f"--relit is {options.relit}; it is a number of the {options.views} views")
    if options.licence is None:
        if not SOURCES[options.source].licensed:
            parser.error(f"{options.source} does not say each picture's licence: give --licence")
        options.licence = "unknown"
    options.name = options.name or f"{options.source}-{re.sub(r'[^A-Za-z0-9-]+', '-', options.input.resolve().name)}"
    options.limits = Limits(options.min_area, options.max_area, options.border, options.max_edge)
    return options


def run(options: argparse.Namespace) -> dict:
    """`prepare` with what the options name read in."""
    if not options.input.is_dir():
        raise ImprintError(f"{options.input}: no such folder; --input is the data set's own folder")
    try:
        options.excluded = set(options.exclude.read_text().split()) if options.exclude else set()
    except (OSError, ValueError) as error:
        raise ImprintError(f"{options.exclude} cannot be read ({error}); --exclude is a text file of names") from error
    options.photo_files = read_photos(options.textures, options.excluded)
    options.panorama_files = read_photos(options.panoramas, options.excluded, (".hdr", ".exr"))
    return prepare(SOURCES[options.source], options)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    try:
        result = run(options)
    except ImprintError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; check that --output can be written to and has room")
    if options.dry_run:
        print(json.dumps(result, indent=1))
        return
    for split, counts in result["counts"].items():
        print(f"{split}: " + (", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing"))
    for reason, count in sorted(result["dropped"].items(), key=lambda pair: -pair[1]):
        print(f"dropped, {reason}: {count}")
    if result["dropped"]:
        print(f"each by name: {options.output}/{options.name}.dropped.tsv")
    print(f"to look at: {options.output}/{options.name}.png")


if __name__ == "__main__":
    main()
