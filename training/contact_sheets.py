"""Contact sheets for what no metric measures: python -m training.contact_sheets --subjects DREAMBOOTH --backgrounds
PHOTOS --output FOLDER

pose.jpg    ten objects in holes of their own outline, turned by 30 degrees, mirrored, squashed: does the object follow?
light.jpg   the four darkest, warmest and brightest photos: copy-paste next to the composite
boxes.jpg   twenty composites at 100 %: can you find the box? boxes.json says where each is in its tile

The objects are the subjects' first photos, in turn; scenes and seeds are fixed. Nothing is selected by its result.
"""

from __future__ import annotations

import json
import sys

import torch

from imprint.errors import ImprintError, print_anything
from imprint.files import write_text
from imprint.pipeline import ImprintPipeline
from imprint.saving import require_writable, save_computed

from . import arguments
from .measure.contact_sheets import Sheets
from .measure.settings import ContactSheets


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(ContactSheets, argv, __doc__)
    try:
        for name in ("pose.jpg", "light.jpg", "boxes.jpg"):
            arguments.require_other(settings.output / name, settings.backgrounds / name)
            require_writable(settings.output / name)
        pipeline = ImprintPipeline.from_checkpoint(settings.checkpoint)
        pipeline.set_progress_bar_config(disable=True)
        sheets = Sheets(
            pipeline.to("cuda" if torch.cuda.is_available() else "cpu"), settings.subjects, settings.backgrounds
        )
        save_computed(sheets.pose(), settings.output / "pose.jpg")
        save_computed(sheets.light(), settings.output / "light.jpg")
        sheet, truth = sheets.boxes()
        save_computed(sheet, settings.output / "boxes.jpg")
        write_text(settings.output / "boxes.json", json.dumps(truth, indent=1))
    except ImprintError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; check that --output can be written to and has room")
    print(f"to look at: {settings.output}/pose.jpg, light.jpg, boxes.jpg")


if __name__ == "__main__":
    main()
