"""The files and settings of a composite, given by a command line or by a line of a jobs file."""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ImprintError, require_masks, require_same_size
from .files import same_file
from .job_keys import PLACING, check_placing

_OF_AN_OBJECT = ("object_mask", "mask", "blend_mask", "seed", *PLACING)
"""The optional keys of each object."""


@dataclass(frozen=True)
class Job:
    """The files and the seed of one composite."""

    objects: tuple[Path, ...]
    """One or several views of the object."""
    object_masks: tuple[Path, ...]
    """One per view, or none: then each view's alpha channel is its mask."""
    background: Path
    mask: Path | None
    """Where the object goes; None if `placing` says where."""
    out: Path
    seed: int
    blend_mask: Path | None = None
    """Where to put the drawing, if not in `mask`."""
    placing: Mapping[str, Any] = field(default_factory=dict)
    """The given options of `PLACING`."""
    then: tuple[Job, ...] = ()
    """Further objects, each put into the picture made so far, with the same background and out."""

    def __post_init__(self) -> None:
        check_placing(self.placing, self.mask is not None)
        if self.object_masks:
            require_masks(len(self.objects), len(self.object_masks))
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ImprintError(f"seed is {self.seed!r}; it must be a whole number from 0 to 2^63 - 1")

    @classmethod
    def from_json(
        cls,
        line: bytes,
        folder: Path,
        seed: int,
        placing: Mapping[str, Any] | None = None,
        out: Path | None = None,
    ) -> Job:
        """A line of a jobs file in `folder`. Raises `ImprintError` for a bad line.

        seed, placing: defaults for keys that the line lacks. out: instead of the line's own, which is then optional.
        With `objects`, a list from back to front, the line's other keys are defaults for each of them.
        """
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ImprintError(f"this is not JSON ({error}); write one object per line") from error
        several = isinstance(values, dict) and "objects" in values
        required = ("objects" if several else "object", "background")
        if out is None:
            _require_keys(values, (*required, "out"), _OF_AN_OBJECT, "a line")
        else:
            _require_keys(values, required, (*_OF_AN_OBJECT, "out"), "a job")
        of_line = dict(placing or {}) | {"seed": seed} | _said(values) | ({} if out is None else {"out": str(out)})
        if not several:
            return cls._of(of_line, folder)
        objects = of_line.pop("objects")
        if not isinstance(objects, list) or not objects:
            raise ImprintError(
                f'\'objects\' is {objects!r}; it must be a list of at least one object, as {{"object": "file"}}'
            )
        jobs = []
        for number, each in enumerate(objects, 1):
            try:
                _require_keys(each, ("object",), _OF_AN_OBJECT, "an object")
                jobs.append(cls._of(of_line | _said(each), folder))
            except ImprintError as error:
                raise ImprintError(f"object {number} of {len(objects)}: {error}") from error
        return dataclasses.replace(jobs[0], then=tuple(jobs[1:]))

    @classmethod
    def _of(cls, values: Mapping[str, Any], folder: Path) -> Job:
        """One object, from the keys of a line."""

        def paths(key: str) -> tuple[Path, ...]:
            optional = key in _OF_AN_OBJECT
            names = values.get(key)
            names = [] if names is None and optional else names if isinstance(names, list) else [names]
            if not all(map(_is_name, names)) or not (names or optional):
                raise ImprintError(f"'{key}' is {values[key]!r}; it must be the path of a file")
            return tuple(folder / name for name in names)

        def path(key: str) -> Path:
            found = paths(key)
            if len(found) != 1:
                raise ImprintError(f"'{key}' is {values[key]!r}; it must be the path of one file")
            return found[0]

        return cls(
            paths("object"),
            paths("object_mask"),
            path("background"),
            None if values.get("mask") is None else path("mask"),
            path("out"),
            values["seed"],
            None if values.get("blend_mask") is None else path("blend_mask"),
            {key: values[key] for key in PLACING if values.get(key) is not None},
        )

    @property
    def each(self) -> tuple[Job, ...]:
        """A job for each object, from back to front."""
        return (self, *self.then)

    def require_new(self) -> None:
        """Raise `ImprintError` if the picture would overwrite one of its own inputs."""
        files = [
            path for job in self.each for path in (*job.objects, *job.object_masks, job.mask, job.blend_mask) if path
        ]
        for path in (self.background, *files):
            if same_file(path, self.out):
                raise ImprintError(
                    f"{self.out} is also an input of the picture, and would be overwritten; give another 'out', or "
                    "--overwrite"
                )

    def read(self) -> list[dict[str, Any]]:
        """Each object's pictures, by the names of the pipeline's arguments.

        Raises `ImprintError` for pictures that cannot be used.
        """
        return [job._read() for job in self.each]

    def _read(self) -> dict[str, Any]:
        from .images import open_image
        from .saving import require_writable

        pictures = {
            "object_image": [open_image(path) for path in self.objects],
            "object_mask": [open_image(path) for path in self.object_masks] or None,
            "background": open_image(self.background),
        }
        require_writable(self.out, pictures["background"])  # before the work, not after
        pairs = []
        for name, path in (("mask", self.mask), ("blend_mask", self.blend_mask)):
            if path:
                pictures[name] = open_image(path)
                pairs.append((self.background, pictures["background"], path, pictures[name]))
        pairs += zip(self.objects, pictures["object_image"], self.object_masks, pictures["object_mask"] or ())
        for path, picture, mask_path, mask in pairs:
            require_same_size(f"{path}", picture.size[::-1], f"its mask {mask_path}", mask.size[::-1])
        return pictures


def read_jobs(
    path: Path, seed: int, overwrite: bool, placing: Mapping[str, Any], layers: bool = False
) -> tuple[dict[int, Job], dict[int, ImprintError]]:
    """The jobs and the errors of a file, by line number from 1.

    placing: defaults. layers: whether each job's layers go into a folder named after its picture.
    """
    try:
        data = path.read_bytes()
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes
            data = data.decode("utf-16").encode()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImprintError(f"{path} cannot be read ({reason}); give a text file of one JSON object per line") from error
    jobs, errors, writers, namesakes = {}, {}, {}, {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            job = Job.from_json(line, path.parent, seed, placing)
            if not overwrite:
                job.require_new()
            first = writers.setdefault(os.path.normcase(os.path.realpath(job.out)), number)
            if first != number:
                raise ImprintError(f"{job.out} is already written by line {first}; give every line its own 'out'")
            first = namesakes.setdefault(os.path.normcase(job.out.stem), number)
            if layers and first != number:
                raise ImprintError(
                    f"the layers of {job.out.name} would go into the folder of line {first}'s, {job.out.stem}; with "
                    "--layers give every 'out' a different name, whatever its folder"
                )
            jobs[number] = job
        except ImprintError as error:
            errors[number] = error
    return jobs, errors


def _is_name(value: Any) -> bool:
    """Whether a file can have this name: JSON strings may hold null bytes and lone surrogates."""
    try:
        return isinstance(value, str) and value != "" and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without keys of `PLACING` that are null, which count as missing."""
    return {key: value for key, value in values.items() if value is not None or key not in PLACING}


def _require_keys(values: Any, required: Sequence[str], optional: Sequence[str], what: str) -> None:
    if not isinstance(values, dict):
        raise ImprintError(f"this is {type(values).__name__}, not an object with the keys {', '.join(required)}")
    missing = [key for key in required if key not in values]
    unknown = [key for key in values if key not in (*required, *optional)]
    if missing or unknown:
        raise ImprintError(
            f"missing keys: {', '.join(missing) or 'none'}, unknown keys: {', '.join(unknown) or 'none'}; "
            f"{what} has {', '.join(required)} and may have {', '.join(optional)}"
        )
