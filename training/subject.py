"""A few photos of one object into shards for `training.train finetune`: python -m training.subject FOLDER --output DATA

FOLDER holds cut-outs (pictures with transparency), photos with a mask beside each (`mug.jpg` and `mug.mask.png`,
white on the object), or both. A cut-out is one view. A photo with its mask is a view too, and a target in a real
place: its reference is the object in this photo, changed, or in another one. `--backgrounds` gives places for the
cut-outs; without any they stand on black. So few photos leave none to hold out: train/ and held-out/ are the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from imprint.errors import ImprintError, print_anything

from .data.subject import prepare


def main(argv: list[str] | None = None) -> None:
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, help="cutouts/ and photos/ are made in it")
    parser.add_argument("--backgrounds", type=Path, help="folder of shards of photos")
    parser.add_argument("--limit", type=int, default=200, help="of the backgrounds")
    args = parser.parse_args(argv)
    if args.limit < 1:
        parser.error(f"--limit is {args.limit}; it must be 1 or more")
    try:
        counts = prepare(args.folder, args.output, args.backgrounds, args.limit)
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    main()
