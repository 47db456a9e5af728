"""One checkpoint of several, by the mean of their weights: python -m training.merge ONE TWO ... --output OUT

For checkpoints that come from one another, or from one start: trained on other data or longer, they lie in one basin,
and their mean is often as good as each at what that one is best at (model soups: Wortsman et al., arXiv 2203.05482).
"""

from __future__ import annotations

import sys

from imprint.checkpoint import load_checkpoint, save_computed
from imprint.errors import ImprintError, print_anything
from imprint.files import require_writable

from . import arguments
from .loop.merging import average
from .settings import Merge


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Merge, argv, __doc__)
    try:
        arguments.require_other(settings.output, *settings.checkpoints)
        require_writable(settings.output)
        save_computed(average([load_checkpoint(path) for path in settings.checkpoints]), settings.output)
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{settings.output}: the mean of {len(settings.checkpoints)} checkpoints")


if __name__ == "__main__":
    main()
