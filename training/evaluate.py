"""Measure checkpoints side by side: python -m training.evaluate --checkpoint NAME=FILE ... --output FOLDER ...

Tasks are subjects in boxes on photos (--subjects, --backgrounds, --boxes), real pairs of video frames (--pairs), or a
folder of tasks such as MureCom (--tasks). Copy-paste of the object is always one of the rows; other methods'
composites (--results NAME=FOLDER) are additional rows. The output folder gets composites/ROW/TASK.png, results.json,
results.md and grid.png. Existing composites are kept: the same command resumes.

Light and shadow, on tasks with known truth: python -m training.evaluate light TASKS ...; on the held-out groups of
training.prepare light: python -m training.evaluate groups GROUPS ... (their own --help says more).
"""

from __future__ import annotations

import sys

from imprint.cli import EXIT_INTERRUPTED
from imprint.errors import ImprintError, print_anything

from . import arguments
from .measure.composites import table_rows
from .measure.evaluation import evaluate, read_tasks, write_inputs
from .measure.groups import __doc__ as GROUPS
from .measure.groups import evaluate_groups, groups_report
from .measure.light import __doc__ as LIGHT
from .measure.light import evaluate_light, light_report
from .measure.report import report
from .measure.settings import Evaluate, EvaluateGroups, EvaluateLight


def parse(argv: list[str] | None) -> Evaluate | EvaluateLight | EvaluateGroups:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["light"]:
        return arguments.parse(EvaluateLight, words[1:], LIGHT, prog="python -m training.evaluate light")
    if words[:1] == ["groups"]:
        return arguments.parse(EvaluateGroups, words[1:], GROUPS, prog="python -m training.evaluate groups")
    settings = arguments.parse(Evaluate, words, __doc__)
    folders = [row.folder(settings.output) for row in table_rows(settings)]
    if len(set(folders)) < len(folders):
        print("error: two rows have the same name; tell the checkpoints apart as NAME=FILE", file=sys.stderr)
        sys.exit(2)
    return settings


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = parse(argv)
    try:
        if isinstance(settings, EvaluateLight):
            print(light_report(evaluate_light(settings)))
            return
        if isinstance(settings, EvaluateGroups):
            print(groups_report(evaluate_groups(settings)))
            return
        if settings.inputs:
            tasks, *_ = read_tasks(settings)
            print(f"{write_inputs(tasks, settings)}: what {len(tasks)} tasks are made from")
            return
        results = evaluate(settings)
    except ImprintError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped: composites that are made are kept; run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        sys.exit(f"error: {error}; check that --output can be written to and has room")
    print(report(results))
    failed = [name for name, row in results["rows"].items() if row.get("background", {}).get("failed")]
    if failed:
        sys.exit(f"error: the background was changed outside the hole and its soft edge: {', '.join(failed)}")


if __name__ == "__main__":
    main()
