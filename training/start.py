"""Assemble pretrained parts into a checkpoint to train from: python -m training.start --unet SD15 --encoder DINOV2 OUT

IMPRINT starts from a text-to-image UNet and a DINOv2 (arXiv 2403.10701, section 3). Both are read as their authors or
the hub publish them; the content adapter is fresh, and `training.train warmup` teaches it to imitate the text encoder.
"""

from __future__ import annotations

import sys

import torch

from imprint.checkpoint import save_computed
from imprint.config import PRESETS
from imprint.errors import ImprintError, print_anything
from imprint.files import require_writable

from . import arguments
from .loop.pretrained import start
from .loop.sizes import read_sizes
from .settings import Start


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Start, argv, __doc__, old_config=("sizes", PRESETS))
    try:
        torch.manual_seed(settings.seed)
        arguments.require_other(settings.output, settings.unet, settings.encoder, settings.vae)
        require_writable(settings.output)
        checkpoint = start(
            settings.unet,
            settings.encoder,
            read_sizes(settings.sizes),
            settings.background,
            settings.vae,
            settings.adapter,
        )
        save_computed(checkpoint, settings.output)
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    encoder = checkpoint.config.encoder
    print(
        f"{settings.output}: {settings.sizes}, {checkpoint.config.background}; {encoder.kind} of width {encoder.width} "
        f"with {encoder.layers} layers, {encoder.register_tokens} registers, at {encoder.image_size} px; fresh adapter"
    )


if __name__ == "__main__":
    main()
