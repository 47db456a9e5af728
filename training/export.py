"""Make the checkpoint of a run's saved state, without training: python -m training.export STATE FILE

STATE is a folder such as runs/compositing/state-000004000. FILE is what the run itself writes at that step: the
averaged weights in fp16, or only the LoRA for stage `finetune`.
"""

from __future__ import annotations

import sys

from imprint.errors import ImprintError, print_anything

from . import arguments
from .loop.exporting import export_state
from .settings import Export


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Export, argv, __doc__)
    try:
        export_state(settings.state, settings.output)
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{settings.output}: the averaged weights of {settings.state}")


if __name__ == "__main__":
    main()
