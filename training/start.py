"""Pretrained parts into a checkpoint to train from: python -m training.start --unet SD15 --encoder DINOV2 OUT

IMPRINT starts from a text-to-image UNet and a DINOv2 (arXiv 2403.10701, section 3). Both come as their authors or the
hub give them; the content adapter is fresh, and `training.train warmup` teaches it the text encoder's language.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from imprint.config import PRESETS
from imprint.errors import ImprintError, print_anything
from imprint.files import require_writable

from .arguments import Renamed, require_other, require_usable
from .loop.merging import save_computed
from .loop.pretrained import start


def main(argv: list[str] | None = None) -> None:
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT", help="checkpoint to write, .safetensors")
    parser.add_argument(
        "--unet", type=Path, required=True, help="SD 1.5: a diffusers folder, or a .safetensors or .ckpt file"
    )
    parser.add_argument("--encoder", type=Path, required=True, help="DINOv2: a folder of the hub, or Meta's .pth")
    parser.add_argument("--sizes", choices=PRESETS, default="sd15", help="all that the two files do not say")
    parser.add_argument(
        "--config", dest="sizes", action=Renamed, new="--sizes", choices=PRESETS, help=argparse.SUPPRESS
    )
    parser.add_argument("--background", choices=("blend", "concat"), help="by default the configuration's, blend")
    parser.add_argument("--adapter", choices=("tokens", "conv"), help="by default the configuration's, tokens")
    parser.add_argument("--vae", type=Path, help="another autoencoder: a folder in diffusers' layout")
    parser.add_argument("--seed", type=int, default=0, help="of the adapter's weights")
    args = parser.parse_args(argv)
    try:
        require_usable({"seed": args.seed})
        torch.manual_seed(args.seed)
        require_other(args.output, args.unet, args.encoder, args.vae)
        require_writable(args.output)
        checkpoint = start(args.unet, args.encoder, PRESETS[args.sizes], args.background, args.vae, args.adapter)
        save_computed(args.output, checkpoint)
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    encoder = checkpoint.config.encoder
    print(
        f"{args.output}: {args.sizes}, {checkpoint.config.background}; DINOv2 of width {encoder.width} with "
        f"{encoder.layers} layers and {encoder.register_tokens} registers at {encoder.image_size} px; fresh adapter"
    )


if __name__ == "__main__":
    main()
