"""Sharpen a checkpoint's TAESD: python -m training.decoder --checkpoint IN --cutouts DATA --photos DATA --output OUT

Only the autoencoder's decoder learns: to draw the targets of `training.pairs`, objects in scenes at the model's
resolution, from their latents. The encoder stays bit for bit, so that latents remain Stable Diffusion's and fit the
UNet as before: OUT differs from IN in `vae.decoder.*` alone, and loads wherever IN does. All data lie in the device's
memory. A run takes a minute or two on a GPU and is not resumed.
"""

from __future__ import annotations

import sys

from imprint.errors import ImprintError, print_anything

from . import arguments
from .loop.decoder import tune
from .settings import TuneDecoder


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(TuneDecoder, argv, __doc__)
    try:
        tune(settings)
    except ImprintError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
