"""Sharpen a checkpoint's TAESD: python -m training.decoder --checkpoint IN --views DATA --photos DATA --output OUT

Only the autoencoder's decoder learns: to draw the targets of `training.pairs`, objects in scenes at the model's resolution,
from their latents. The encoder stays bit for bit, so that latents remain Stable Diffusion's and fit the UNet as before: OUT
differs from IN in `vae.decoder.*` alone, and loads wherever IN does. All data lie in the device's memory. A run takes a
minute or two on a GPU and is not resumed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from safetensors import SafetensorError

from imprint.errors import ImprintError

from .loop.decoder import tune


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="IN", help="with an autoencoder of kind 'tiny'"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="checkpoint to write, .safetensors")
    parser.add_argument(
        "--views", required=True, help="cut-outs: a folder or an address with train/ and held-out/ shards"
    )
    parser.add_argument("--photos", required=True, help="photos, likewise")
    parser.add_argument("--limit", type=int, help="read only so many samples of each data set")
    parser.add_argument("--images", type=int, default=120_000, help="pictures to train on, each made anew")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate at the start; a cosine takes it to 0")
    parser.add_argument(
        "--keep", type=float, default=0.9, help="share of the fine detail that stays as it is drawn, from 0 to 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=256, help="held-out pictures to measure on")
    parser.add_argument("--time-limit", type=float, help="seconds after which to stop training and write")
    parser.add_argument("--compile", action="store_true", help="torch.compile the decoder")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    options = parser.parse_args(argv)
    for name in ("images", "batch", "held_out"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be 1 or more")
    if not 0 <= options.keep <= 1:
        parser.error(f"--keep is {options.keep}; it is a share, from 0 to 1")
    try:
        tune(options)
    except ImprintError as error:
        sys.exit(f"error: {error}")
    except (OSError, SafetensorError) as error:  # a disk that is full or gone
        sys.exit(f"error: {options.output} cannot be written ({error}); make room and run the same command again")


if __name__ == "__main__":
    main()
