"""Object masks for photos of one object on a plain ground: python -m training.cutout PHOTOS [--masks FOLDER] [--workers
N]

For product photos, or clothes laid on a floor, without masks. Masks are found by GrabCut (Rother et al., ACM
Transactions on Graphics 23(3), 2004) and written where `python -m training.prepare folder --input PHOTOS` looks for
them. An unreliable mask is not written, and its photo is used as a background. FOLDER/cutout.json gives the result for
each photo, and FOLDER/cutout.png shows 48 of the masks. Run again, the same command continues with the remaining
photos.
"""

from __future__ import annotations

import sys

from imprint.cli import EXIT_INTERRUPTED
from imprint.errors import ImprintError, print_anything

from . import arguments
from .data.grabcut import run
from .data.items import first_folder
from .data.settings import Cutout
from .data.stills import MASK_FOLDERS, reports


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Cutout, argv, __doc__, prog="python -m training.cutout")
    places = [settings.photos / name for name in MASK_FOLDERS]
    masks = settings.masks or first_folder(*places) or places[0]
    try:
        counts = run(settings.photos, masks, settings.workers)
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped: finished masks are kept; run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    for result, count in counts.most_common():
        print(f"{result}: {count}")
    print(f"to look at: {reports(masks)[1]}")


if __name__ == "__main__":
    main()
