"""Train the light network: python -m training.relight GROUPS ... --output FILE --seconds 500

GROUPS are folders that `python -m training.prepare light` has written, or is still writing (--capacity). FILE is read
by `imprint.lightnet.load_light`; next to it are written its .options.json and its .stats.jsonl, with the losses and the
held-out gains: 0 is the pasted object, 1 the truth. It runs on one CPU or GPU, or on several through `torchrun`. Ctrl-C
and SIGTERM stop it early, and save the network. A run takes minutes and cannot be resumed; --init starts from a file.
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
