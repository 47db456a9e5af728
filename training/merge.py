"""One checkpoint of several, by the mean of their weights: python -m training.merge ONE TWO ... --output OUT

For checkpoints that come from one another, or from one start: trained on other data or longer, they lie in one basin,
and their mean is often as good as each at what that one is best at (model soups: Wortsman et al., arXiv 2203.05482).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from imprint.checkpoint import load_checkpoint
from imprint.errors import ImprintError, print_anything
from imprint.files import require_writable

from .arguments import require_other
from .loop.merging import average, save_computed


def main(argv: list[str] | None = None) -> None:
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="two or more")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write, .safetensors")
    options = parser.parse_args(argv)
    try:
        require_other(options.output, *options.checkpoints)
        require_writable(options.output)
        save_computed(options.output, average([load_checkpoint(path) for path in options.checkpoints]))
    except (ImprintError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.output}: the mean of {len(options.checkpoints)} checkpoints")


if __name__ == "__main__":
    main()
