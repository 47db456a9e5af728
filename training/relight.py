"""Train the light network: python -m training.relight GROUPS ... --output FILE --seconds 500

GROUPS are folders that `python -m training.prepare light` has written, or is writing at the moment (--capacity). FILE
is what `imprint.lightnet.load_light` reads; beside it appear FILE's .options.json and .stats.jsonl, with the losses and
the held-out gains: 0 is the object as it is pasted, 1 the truth. Starts on one CPU or GPU, or on many through
`torchrun`. Ctrl-C or SIGTERM stop it early, and what it has learned is written; a run takes minutes and is not resumed,
--init starts from a file.
"""

from __future__ import annotations

import sys

from imprint.errors import ImprintError, print_anything

from . import arguments
from .light.fit import relight_training
from .light.settings import Relight


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Relight, argv, __doc__)
    try:
        gains = relight_training(settings)
    except ImprintError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a disk that is full or gone
        sys.exit(f"error: {settings.output} cannot be written ({error}); make room and run the same command again")
    print(f"{settings.output}: held-out gains " + ", ".join(f"{name} {gain:+.3f}" for name, gain in gains.items()))


if __name__ == "__main__":
    main()
