"""Jobs: the pictures to make, each with its objects' files and settings, from a command line or a jobs file's lines."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ImprintError, require_masks, require_same_size
from .files import same_file
from .job_keys import PLACING, check_placing

if TYPE_CHECKING:
    import torch
    from PIL import Image

_OF_AN_OBJECT = ("object_mask", "mask", "blend_mask", "seed", *PLACING)
"""The optional keys of each object."""


@dataclass(frozen=True)
class JobObject:
    """The files of one object of a job, its seed, and where it goes."""

    views: tuple[Path, ...]
    """One or several pictures of the object."""
    object_masks: tuple[Path, ...]
    """One per view, or none: then each view's alpha channel is its mask."""
    mask: Path | None
    """Where the object goes; None if `placing` says where."""
    seed: int
    blend_mask: Path | None = None
    """Where to put the drawing, if not in `mask`."""
    placing: Mapping[str, Any] = field(default_factory=dict)
    """The given values of `PLACING`."""

    def __post_init__(self) -> None:
        check_placing(self.placing, self.mask is not None)
        if self.object_masks:
            require_masks(len(self.views), len(self.object_masks))
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ImprintError(f"seed is {self.seed!r}; it must be a whole number from 0 to 2^63 - 1")

    @classmethod
    def from_values(cls, values: Mapping[str, Any], folder: Path) -> JobObject:
        """From the keys of a line of a jobs file in `folder`. Raises `ImprintError` for invalid values."""
        return cls(
            _paths(values, "object", folder),
            _paths(values, "object_mask", folder),
            None if values.get("mask") is None else _path(values, "mask", folder),
            values["seed"],
            None if values.get("blend_mask") is None else _path(values, "blend_mask", folder),
            {key: values[key] for key in PLACING if values.get(key) is not None},
        )

    @property
    def files(self) -> list[Path]:
        """All files that it is read from."""
        return [path for path in (*self.views, *self.object_masks, self.mask, self.blend_mask) if path]

    def is_drawn(self, mask: torch.Tensor | None) -> bool:
        """Whether the model draws it, instead of its photo being placed; mask: (1, H, W) from `as_mask`."""
        from .place import is_drawn

        fit, change = self.placing.get("fit", "contain"), self.placing.get("change")
        return is_drawn(None if mask is None else mask[0], fit, change)

    def read(self, background: Image.Image, name: Path) -> dict[str, Any]:
        """Its pictures and the background, by the names of the pipeline's arguments; name: the background's.

        Raises `ImprintError` for pictures that cannot be used.
        """
        from .images import open_image

        pictures = {
            "object_image": [open_image(path) for path in self.views],
            "object_mask": [open_image(path) for path in self.object_masks] or None,
            "background": background,
        }
        pairs = []
        for key, path in (("mask", self.mask), ("blend_mask", self.blend_mask)):
            if path:
                pictures[key] = open_image(path)
                pairs.append((name, background, path, pictures[key]))
        pairs += zip(self.views, pictures["object_image"], self.object_masks, pictures["object_mask"] or ())
        for path, picture, mask_path, mask in pairs:
            require_same_size(f"{path}", picture.size[::-1], f"its mask {mask_path}", mask.size[::-1])
        return pictures


@dataclass(frozen=True)
class Job:
    """A picture to make: objects, from back to front, each put into the background with those before it."""

    background: Path
    out: Path
    objects: tuple[JobObject, ...]

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
        objects = _objects(of_line, folder) if several else (JobObject.from_values(of_line, folder),)
        return cls(_path(of_line, "background", folder), _path(of_line, "out", folder), objects)

    @property
    def files(self) -> list[Path]:
        """All files that it is made from."""
        return [self.background, *(path for each in self.objects for path in each.files)]

    def require_new(self) -> None:
        """Raise `ImprintError` if the picture would overwrite one of its own inputs."""
        for path in self.files:
            if same_file(path, self.out):
                raise ImprintError(
                    f"{self.out} is also an input of the picture, and would be overwritten; give the picture "
                    "another name, or --overwrite"
                )

    def read(self) -> list[dict[str, Any]]:
        """Each object's pictures, by the names of the pipeline's arguments.

        Raises `ImprintError` for pictures that cannot be used.
        """
        from .images import open_image
        from .saving import require_writable

        background = open_image(self.background)
        require_writable(self.out, background)  # before the work, not after
        return [each.read(background, self.background) for each in self.objects]


def read_jobs(
    path: Path, seed: int, overwrite: bool, placing: Mapping[str, Any], layers: bool = False
) -> tuple[dict[int, Job], dict[int, ImprintError]]:
    """The jobs and the errors of a file, by line number from 1.

    placing: defaults. layers: whether each job's layers go into a folder named after its picture. Raises `ImprintError`
    for a file that cannot be read, or of which no line is a JSON object.
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
    if len(errors) > 1 and not jobs and not any(map(_is_object, data.splitlines())):
        raise ImprintError(
            f"{path} is no file of jobs: none of its {len(errors)} lines is a JSON object; write one object per line"
        )
    return jobs, errors


def _is_object(line: bytes) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _objects(of_line: dict[str, Any], folder: Path) -> tuple[JobObject, ...]:
    """The objects of a line with `objects`; its other keys are their defaults."""
    listed = of_line["objects"]
    if not isinstance(listed, list) or not listed:
        raise ImprintError(
            f'\'objects\' is {listed!r}; it must be a list of at least one object, as {{"object": "file"}}'
        )
    objects = []
    for number, each in enumerate(listed, 1):
        try:
            _require_keys(each, ("object",), _OF_AN_OBJECT, "an object")
            objects.append(JobObject.from_values(of_line | _said(each), folder))
        except ImprintError as error:
            raise ImprintError(f"object {number} of {len(listed)}: {error}") from error
    return tuple(objects)


def _paths(values: Mapping[str, Any], key: str, folder: Path) -> tuple[Path, ...]:
    """The files that a key names, one or a list of them; none only for an optional key."""
    optional = key in _OF_AN_OBJECT
    names = values.get(key)
    names = [] if names is None and optional else names if isinstance(names, list) else [names]
    if not all(map(_is_name, names)) or not (names or optional):
        raise ImprintError(f"'{key}' is {values[key]!r}; it must be the path of a file")
    return tuple(folder / name for name in names)


def _path(values: Mapping[str, Any], key: str, folder: Path) -> Path:
    found = _paths(values, key, folder)
    if len(found) != 1:
        raise ImprintError(f"'{key}' is {values[key]!r}; it must be the path of one file")
    return found[0]


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
