"""Sharpen a checkpoint's TAESD: python -m training.decoder --checkpoint IN --cutouts DATA --photos DATA --output OUT

Only the autoencoder's decoder is trained: to reconstruct the targets of `training.pairs`, objects in scenes at the
model's resolution, from their latents. The encoder is unchanged, so that latents remain Stable Diffusion's and fit
the UNet: OUT differs from IN only in `vae.decoder.*`, and loads wherever IN does. All data are held in the device's
memory. A run takes a minute or two on a GPU and cannot be resumed.
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
