"""Average the weights of several checkpoints: python -m training.merge ONE TWO ... --output OUT

For checkpoints, or light networks, trained from one another, or from the same start, on other data or for longer: they
lie in one basin of the loss, and their mean is often as good as each of them at what it does best (model soups:
Wortsman et al., arXiv 2203.05482).
"""

from __future__ import annotations

import sys

from imprint.checkpoint import load_checkpoint, save_computed
from imprint.errors import ImprintError, print_anything
from imprint.files import require_writable
from imprint.lightnet import is_light, save_light

from . import arguments
from .loop.merging import average, average_light
from .settings import Merge


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Merge, argv, __doc__)
    try:
        arguments.require_other(settings.output, *settings.checkpoints)
        require_writable(settings.output)
        lights = {path: is_light(path) for path in settings.checkpoints}
        if len(set(lights.values())) > 1:
            named = next(path for path, light in lights.items() if light)
            raise ImprintError(f"{named} is a light network and others are checkpoints; give files of one kind")
        if any(lights.values()):
            save_light(settings.output, average_light(settings.checkpoints))
        else:
            save_computed(average([load_checkpoint(path) for path in settings.checkpoints]), settings.output)
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{settings.output}: the mean of {len(settings.checkpoints)} files")


if __name__ == "__main__":
    main()
