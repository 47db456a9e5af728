"""Sheets of composites for what no score tells: python -m training.contact_sheets --subjects DREAMBOOTH --backgrounds
PHOTOS --output FOLDER

pose.jpg    ten objects in holes of their own outline, turned by 30 degrees, mirrored, squashed: does the object follow?
light.jpg   the four darkest, warmest and brightest photos: copy-paste beside the composite
boxes.jpg   twenty composites at 100 %: can you find the box? boxes.json says where each is in its tile

The objects are the first photos of the subjects, in turn; places and seeds are fixed. Nothing is chosen by its result.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from imprint.checkpoint import SHIPPED
from imprint.errors import ImprintError, print_anything
from imprint.files import write_text
from imprint.images import require_writable, save_computed
from imprint.pipeline import ImprintPipeline

from .arguments import require_other
from .measure.contact_sheets import Sheets


def main(argv: list[str] | None = None) -> None:
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="by default the shipped one")
    parser.add_argument("--subjects", type=Path, required=True, help="as training.evaluate takes them")
    parser.add_argument("--backgrounds", type=Path, required=True, help="folder of photos")
    parser.add_argument("--output", type=Path, required=True, help="folder for the sheets")
    options = parser.parse_args(argv)
    try:
        for name in ("pose.jpg", "light.jpg", "boxes.jpg"):
            require_other(options.output / name, options.backgrounds / name)
            require_writable(options.output / name)
        pipeline = ImprintPipeline.from_checkpoint(options.checkpoint)
        pipeline.set_progress_bar_config(disable=True)
        sheets = Sheets(
            pipeline.to("cuda" if torch.cuda.is_available() else "cpu"), options.subjects, options.backgrounds
        )
        save_computed(sheets.pose(), options.output / "pose.jpg")
        save_computed(sheets.light(), options.output / "light.jpg")
        sheet, truth = sheets.boxes()
        save_computed(sheet, options.output / "boxes.jpg")
        write_text(options.output / "boxes.json", json.dumps(truth, indent=1))
    except ImprintError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; check that --output can be written to and has room")
    print(f"to look at: {options.output}/pose.jpg, light.jpg, boxes.jpg")


if __name__ == "__main__":
    main()
