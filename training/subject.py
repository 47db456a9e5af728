"""A few photos of one object into shards for `training.train finetune`: python -m training.subject FOLDER --output DATA

FOLDER holds cut-outs (pictures with transparency), photos with a mask beside each (`mug.jpg` and `mug.mask.png`,
white on the object), or both. A cut-out is one view. A photo with its mask is a view too, and a target in a real
place: its reference is the object in this photo, changed, or in another one. `--backgrounds` gives places for the
cut-outs; without any they stand on black. So few photos leave none to hold out: train/ and held-out/ are the same.
"""

from __future__ import annotations

import sys

from imprint.errors import ImprintError, print_anything

from . import arguments
from .data.settings import Subject
from .data.subject import prepare


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Subject, argv, __doc__)
    try:
        counts = prepare(settings.folder, settings.output, settings.backgrounds, settings.limit)
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    main()
