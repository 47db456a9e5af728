"""One checkpoint of several, by the mean of their weights: python -m training.soup ONE TWO ... --output OUT

For checkpoints that come from one another, or from one start: trained on other data or longer, they lie in one basin, and
their mean is often as good as each at what that one is best at (model soups: Wortsman et al., arXiv 2203.05482).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from imprint.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from imprint.errors import ImprintError
from imprint.files import require_writable


def average(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The mean of all tensors, computed in fp32, in the first one's precision and with its configuration.

    Raises `ImprintError` for fewer than two, and for checkpoints whose parts, tensors or configurations differ.
    """
    if len(checkpoints) < 2:
        raise ImprintError(f"got {len(checkpoints)} checkpoint(s) to average; give two or more")
    first, *others = checkpoints
    shapes = _shapes(first)
    for other in others:
        if other.config != first.config or _shapes(other) != shapes:
            raise ImprintError(
                f"{other.path} and {first.path} are of different kinds (configuration, parts or tensors); only what was "
                "trained from one another, with the same options, can be averaged"
            )
    parts = {
        part: {
            name: torch.stack([each.parts[part][name].float() for each in checkpoints]).mean(0).to(tensor.dtype)
            for name, tensor in tensors.items()
        }
        for part, tensors in first.parts.items()
    }
    return Checkpoint(first.config, parts)


def _shapes(checkpoint: Checkpoint) -> dict[tuple[str, str], torch.Size]:
    return {
        (part, name): tensor.shape for part, tensors in checkpoint.parts.items() for name, tensor in tensors.items()
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="two or more")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write, .safetensors")
    options = parser.parse_args(argv)
    try:
        require_writable(options.output)
        save_checkpoint(options.output, average([load_checkpoint(path) for path in options.checkpoints]))
    except ImprintError as error:
        sys.exit(f"error: {error}")
    print(f"{options.output}: the mean of {len(options.checkpoints)} checkpoints")


if __name__ == "__main__":
    main()
