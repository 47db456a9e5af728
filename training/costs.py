"""What documented runs and data cost, by measured rates: python -m training.costs [--benchmark FILE] [--gpus N ...]

Prints tables: GPU hours, memory and states of every stage; disk and memory of data; what preparing takes. Rates are
those of one H200 (docs/speed.md), or the `loop` rows of your own benchmark.json. A cell is empty if there is none;
numbers in brackets were measured in stage compositing and are assumed for another.
"""

from __future__ import annotations

import sys

from imprint.errors import ImprintError, print_anything

from . import arguments
from .measure.costs import page
from .measure.settings import Costs


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Costs, argv, __doc__)
    try:
        print(page(settings.benchmark, settings.gpus))
    except ImprintError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
