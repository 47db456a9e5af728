"""Turning a data set into shards: planning, resuming, counting, and the contact sheet."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imprint.errors import ImprintError
from imprint.files import require_writable

from ..arguments import flattened
from . import shards
from .archives import open_folder
from .contact_sheet import contact_sheet
from .engines import ENGINES
from .items import Group, Source
from .settings import Prepare
from .writing import ShardJob, plan, report_url, shard_url


def prepare(source: Source, options: Prepare) -> dict[str, Any]:
    """Write the missing shards, the report and the contact sheet; returns the report.

    Raises `ImprintError` for a folder of another layout, and if OUTPUT holds the same name with other options.
    """
    place = open_folder(options.input)
    if not (isinstance(place, Path) or source.zipped):
        raise ImprintError(f"'{options.source}' is read from folders alone; unpack the zips of {options.input}")
    groups = list(source.groups(place, options))
    if not groups:
        raise ImprintError(f"{options.input} holds nothing that {options.source} reads; see its layout with --help")
    jobs = plan(groups, options)
    resolved = _resolved(groups, options)
    summary = shards.inside(options.output, f"{options.name}.json")
    before = _read_json(summary, options=dict)
    if before is not None and before["options"] != resolved:
        then = before["options"]
        changed = next((name for name in resolved if then.get(name) != resolved[name]), "others")
        raise ImprintError(
            f"{summary} was begun with {changed} = {then.get(changed)!r}, not {resolved.get(changed)!r}; "
            "repeat that, or give another --output or --name"
        )
    if options.dry_run:
        if shards.is_local(options.output):
            require_writable(summary)
        return {"options": resolved, "shards": len(jobs)}
    shards.write_file(summary, json.dumps({"options": resolved}, indent=1).encode())

    with ThreadPoolExecutor() as pool:
        known = list(zip(jobs, pool.map(lambda job: _read_report(job, options), jobs)))
    reports = [report for _, report in known if report is not None]
    missing = [job for job, report in known if report is None]
    done = sum(report["size"] for report in reports)
    with tqdm(total=len(groups), initial=done, unit="group", desc=options.name) as bar:
        for report in ENGINES[options.engine](missing, source, options):
            reports.append(report)
            bar.update(report["size"])
    return _finish(jobs, reports, resolved, summary, options)


def _resolved(groups: list[Group], options: Prepare) -> dict[str, Any]:
    """Everything that determines the contents of the shards."""
    names = "source licence longest_side quality held_out shard_size views resolution identities relit seed".split()
    values = flattened(options)
    digest = shards.name_digest("\n".join(sorted(group.name for group in groups)))
    left_out = shards.name_digest("\n".join(sorted(options.excluded)))
    described = {"describe_model": options.describe_model} if options.describe else {}
    return (
        described
        | {name: values[name] for name in names}
        | {
            "input": str(options.input),
            "textures": [str(path) for path in options.render.textures],
            "panoramas": [str(path) for path in options.render.panoramas],
            "limits": asdict(options.limits),
            "excluded": left_out[:16] if options.excluded else "",
            "groups": len(groups),
            "names": digest[:16],
        }
    )


def _read_report(job: ShardJob, options: Prepare) -> dict | None:
    """The report of a finished (or empty) shard; None if it has to be made."""
    return _read_json(report_url(job, options), split=str, size=int, counts=dict, dropped=list)


def _read_json(place: str, **kinds: type) -> dict | None:
    """One of our JSON objects, with values of these types; None if it is missing or broken."""
    try:
        found = json.loads(shards.read_file(place))
    except (FileNotFoundError, ValueError):
        return None
    right = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
    return found if right else None


def _finish(
    jobs: list[ShardJob], reports: list[dict], resolved: dict, summary: str, options: Prepare
) -> dict[str, Any]:
    """Add up the reports; write the summary, the list of dropped items, the list of shards and the contact sheet."""
    counts = {split: Counter() for split in shards.SPLITS}
    dropped = []
    for report in reports:
        counts[report["split"]].update(report["counts"])
        dropped += report["dropped"]
    result = {"options": resolved, "counts": counts, "dropped": Counter(reason for reason, _, _ in dropped)}
    lines = sorted("\t".join(" ".join(field.split()) for field in entry) for entry in dropped)
    shards.write_file(
        shards.inside(options.output, f"{options.name}.dropped.tsv"),
        "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"),
    )
    made = []
    for split in shards.SPLITS:
        if counts[split]["pictures"]:
            found = shards.list_shards(shards.inside(options.output, split))
            index = "".join(f"{place.rsplit('/', 1)[1]}\n" for place in found)
            shards.write_file(shards.inside(options.output, split, shards.INDEX), index.encode())
            mine = {shard_url(job, options) for job in jobs if job.split == split}
            made += [place for place in found if place in mine]
    sheet = shards.encoded(contact_sheet(made), "PNG")
    shards.write_file(shards.inside(options.output, f"{options.name}.png"), sheet)
    shards.write_file(summary, json.dumps(result, indent=1).encode())
    return result
