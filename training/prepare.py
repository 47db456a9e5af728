"""Turn a data set into shards for training: python -m training.prepare SOURCE --input FOLDER --output URL

FOLDER may also hold the data set's zips, or be one of them: nothing is unpacked.

The same command resumes: finished shards are kept. OUTPUT gets train/ and held-out/ with the shards and, for the
run's name, NAME.json (options, counts, and counts of what was dropped), NAME.dropped.tsv (each dropped item with the
reason) and NAME.png (a contact sheet to look at).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from imprint.cli import EXIT_INTERRUPTED
from imprint.errors import ImprintError, print_anything

from . import arguments
from .data import captions, multiview, stills, video
from .data.items import read_names, read_photos
from .data.preparing import prepare
from .data.settings import Prepare
from .data.shards import is_local
from .light.preparing import __doc__ as LIGHT
from .light.preparing import prepare_light
from .light.settings import PrepareLight
from .render import sources

SOURCES = multiview.SOURCES | sources.SOURCES | video.SOURCES | stills.SOURCES | captions.SOURCES


def parse(argv: list[str] | None) -> Prepare | PrepareLight:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["light"]:
        return arguments.parse(PrepareLight, words[1:], LIGHT, prog="python -m training.prepare light")
    layouts = "\n".join(f"\n{name}:\n  {source.groups.__doc__.strip()}" for name, source in SOURCES.items())
    settings = arguments.parse(
        Prepare,
        words,
        __doc__,
        choices={"source": SOURCES},
        prog="python -m training.prepare",
        epilog=f"layouts that are read:\n{layouts}",
    )
    try:
        return settings.resolved(SOURCES[settings.source].licensed)
    except ImprintError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(settings: Prepare | PrepareLight) -> dict:
    """`prepare` with what the options name read in, or `prepare_light`."""
    if isinstance(settings, PrepareLight):
        return prepare_light(settings)
    if is_local(settings.output) and Path(settings.output).resolve().is_relative_to(settings.input.resolve()):
        raise ImprintError(
            f"{settings.output} lies in --input, where the next run would read what this one writes; give another "
            "--output"
        )
    excluded, render = read_names(settings.exclude), settings.render
    textures = read_photos(render.textures, excluded)
    panoramas = read_photos(render.panoramas, excluded, (".hdr",))
    render = dataclasses.replace(render, texture_files=textures, panorama_files=panoramas)
    return prepare(SOURCES[settings.source], dataclasses.replace(settings, excluded=excluded, render=render))


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = parse(argv)
    try:
        result = run(settings)
    except ImprintError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        made = "files of groups" if isinstance(settings, PrepareLight) else "shards"
        print(f"stopped: finished {made} are kept; run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        sys.exit(f"error: {error}; check that --output can be written to and has room")
    if isinstance(settings, PrepareLight):
        print(f"{settings.output}: " + ", ".join(f"{count} {what}" for what, count in result.items()))
        return
    if settings.dry_run:
        print(json.dumps(result, indent=1))
        return
    for split, counts in result["counts"].items():
        print(f"{split}: " + (", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing"))
    for reason, count in sorted(result["dropped"].items(), key=lambda pair: -pair[1]):
        print(f"dropped, {reason}: {count}")
    if result["dropped"]:
        print(f"each by name: {settings.output}/{settings.name}.dropped.tsv")
    if not any(counts.get("pictures") for counts in result["counts"].values()):
        sys.exit(f"error: nothing was made of {settings.input}; see what was dropped, and --help for the layout")
    print(f"to look at: {settings.output}/{settings.name}.png")


if __name__ == "__main__":
    main()
