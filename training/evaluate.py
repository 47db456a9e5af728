"""Measure checkpoints side by side: python -m training.evaluate --checkpoint NAME=FILE ... --output FOLDER ...

Tasks are subjects in boxes on photos (--subjects, --backgrounds, --boxes) or real pairs of video frames (--pairs); the
object copied and pasted is always one of the rows. The folder gets composites/ROW/TASK.png, results.json, results.md
and grid.png. Composites that are there already are kept: the same command again continues.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from imprint.checkpoint import SHIPPED
from imprint.errors import ImprintError
from imprint.masks import LEVELS

from .measure import networks as metrics
from .measure.composites import ABLATIONS, DTYPES, table_rows
from .measure.evaluation import METRICS, evaluate
from .measure.report import report


def named_checkpoint(text: str) -> tuple[str, Path]:
    """`NAME=FILE`, or `FILE` with its stem as the name."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).is_file():
        return Path(text).stem, Path(text)
    return name, Path(path)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        type=named_checkpoint,
        nargs="+",
        default=[("imprint-tiny", SHIPPED)],
        metavar="NAME=FILE",
        help="checkpoints to compare, the first being what the others' difference is from; by default the shipped one",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; made, or continued")
    group = parser.add_argument_group("tasks: every subject in every box, or pairs of frames")
    group.add_argument("--subjects", type=Path, help="folder with SUBJECT/NN.jpg and NN.mask.png, or SUBJECT/NN.png")
    group.add_argument("--backgrounds", type=Path, help="folder of the photos that the boxes are on")
    group.add_argument("--boxes", type=Path, help="COCO's instances .json, or JSON lines of background, box, subject")
    group.add_argument("--pairs", type=Path, help="folder of held-out shards of video frames with masks")
    group.add_argument("--limit", type=int, help="only so many tasks, the first of which cover all subjects")
    group = parser.add_argument_group("metrics")
    group.add_argument(
        "--metrics",
        nargs="+",
        choices=(*METRICS, "mobilenet"),
        help="by default all that the tasks allow but mobilenet",
    )
    group.add_argument("--backbones", type=Path, help="folder of networks (see training/metrics.py) instead of the hub")
    group.add_argument(
        "--retrieval-backbone", choices=metrics.Backbone.NAMES, default="dinov2", help="default: %(default)s"
    )
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--ablation", nargs="+", choices=ABLATIONS, default=[], help="more rows of every checkpoint: a part left out"
    )
    group.add_argument(
        "--mask-level", choices=LEVELS, default="box", help="holes: the box, or the object's outline in it, so coarse"
    )
    group.add_argument("--steps", type=int, help="by default the checkpoint's")
    group.add_argument("--guidance", type=float, help="by default the checkpoint's")
    group.add_argument(
        "--detail", type=float, default=1.0, metavar="0..1", help="of the object's own photo; default: %(default)s"
    )
    group.add_argument("--seed", type=int, default=0, help="each task's own seed is made of this and its name")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: %(default)s")
    group.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: %(default)s")
    options = parser.parse_args(argv)

    given = [name for name in ("subjects", "backgrounds", "boxes") if getattr(options, name)]
    if len(given) != (0 if options.pairs else 3):
        parser.error("give --subjects, --backgrounds and --boxes, or --pairs alone")
    if options.metrics is None:
        options.metrics = [name for name in METRICS if not (options.pairs and name == "retrieval")]
    if options.pairs and "retrieval" in options.metrics:
        parser.error("'retrieval' chooses among --subjects; leave it out with --pairs")
    if "box-mask" in options.ablation and options.mask_level == "box":
        parser.error("holes are boxes already: --ablation box-mask compares with --mask-level precise, fine or coarse")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit is {options.limit}; it must be 1 or more")
    folders = [row.folder(options.output) for row in table_rows(options)]
    if len(set(folders)) < len(folders):
        parser.error("two rows have the same name; tell the checkpoints apart as NAME=FILE")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    try:
        results = evaluate(options)
    except ImprintError as error:
        sys.exit(f"error: {error}")
    print(report(results))
    failed = [name for name, row in results["rows"].items() if not row.get("background", {"exact": True})["exact"]]
    if failed:
        sys.exit(f"error: the background was changed outside the hole and its soft edge: {', '.join(failed)}")


if __name__ == "__main__":
    main()
