"""Turn a few photos of an object into shards for stage `finetune`: python -m training.subject FOLDER --output DATA

FOLDER holds cut-outs (pictures with transparency), photos with a mask beside each (`mug.jpg` and `mug.mask.png`,
white on the object), or both. A cut-out is a view. A photo with a mask is a view and also a target in a real scene: its
reference is the object from the same photo, altered, or from another one. `--backgrounds` gives scenes for the
cut-outs; without it they are put on black. With so few photos none are held out: train/ and held-out/ are the same.
"""

from __future__ import annotations

import sys

from imprint.errors import ImprintError, print_anything

from . import arguments
from .data.settings import Subject
from .data.subject import prepare_subject


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Subject, argv, __doc__)
    try:
        counts = prepare_subject(settings.folder, settings.output, settings.backgrounds, settings.limit)
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    main()
