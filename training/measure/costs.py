"""The cost of runs and data, computed from measured rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from imprint.config import PRESETS
from imprint.errors import ImprintError, require_number
from imprint.files import read_json
from imprint.model import build_modules

from ..loop.model import Model
from ..loop.state import KEPT_STATES
from ..settings import STAGES
from .speed_report import table

GIB = 2**30
STATES_ON_DISK = KEPT_STATES + 1  # those kept, and one being written


@dataclass(frozen=True)
class Rate:
    """A measurement of training on one GPU."""

    pictures_per_second: float
    gib: float | None = None
    """PyTorch's peak of allocated memory"""


RATES = {
    # docs/speed.md: one H200, `loop:` with `--compile`
    "tiny:512": Rate(3247),
    "sd15:16": Rate(90.3, 30.3),
    # docs/log.md, run 9: 256, 384 and 512 px in turn
    "tiny:512, three resolutions": Rate(2030),
    # docs/bases.md: one H200, not compiled, with --checkpointing; with the pairs ready, without making them
    "sdxl:4": Rate(5.0, 52.4),
}
MEASURED = "compositing"
"""The stage of all rates."""
SCALING = 5500 / (2 * 3030)
"""Speed of two GPUs of one machine relative to twice one GPU's (docs/log.md)."""
BYTES_PER_PIXEL = 0.28
"""Bytes per pixel of JPEGs of quality 85 in shards: 110 DAVIS frames and COCO pictures."""
SHARD = 500
"""Pictures per shard."""
LEAST = 1e-6
"""The smallest rate, or memory in GiB, that can be a measurement."""
HELD = 4
"""Bytes per pixel of a picture in memory: 8-bit colours, and alpha or mask."""
MVIMGNET = 219_188
"""MVImgNet's objects, in 43 zips."""


@dataclass(frozen=True)
class Costed:
    """A documented run."""

    name: str
    sizes: str
    stage: str
    images: int
    rate: str | None
    """its key in `RATES`; None if nothing like it was measured"""
    fresh: bool = False
    """whether it starts from random weights and therefore trains everything"""


RUNS = (  # as documented
    Costed("tiny, identity, from scratch", "tiny", "identity", 4_000_000, "tiny:512", fresh=True),
    Costed("tiny, compositing", "tiny", "compositing", 4_000_000, "tiny:512"),
    Costed("tiny, compositing, 256 to 512 px", "tiny", "compositing", 4_000_000, "tiny:512, three resolutions"),
    Costed("SD 1.5, warm-up", "sd15", "warmup", 1_000_000, None),
    Costed("SD 1.5, identity", "sd15", "identity", 4_800_000, "sd15:16"),
    Costed("SD 1.5, compositing", "sd15", "compositing", 4_800_000, "sd15:16"),
    Costed("SD 1.5, compositing, 40 epochs of 1.8 M pairs", "sd15", "compositing", 72_000_000, "sd15:16"),
    Costed("SDXL, warm-up", "sdxl", "warmup", 1_000_000, None),
    Costed("SDXL, identity", "sdxl", "identity", 4_000_000, "sdxl:4"),
    Costed("SDXL, compositing", "sdxl", "compositing", 4_000_000, "sdxl:4"),
)


@dataclass(frozen=True)
class Prepared:
    """A measurement of `training.prepare` with one worker."""

    source: str
    what: str
    pictures: int
    megabytes: float
    """of all shards"""
    core_seconds: float
    """processor time, including 3 s for starting"""
    gib: float
    """the process's peak memory"""


PREPARED = (  # on a server CPU of 2026, beside other jobs
    Prepared("coco", "355 pictures of COCO, `--longest-side 512`", 355, 18.4, 7.9, 0.30),
    Prepared("davis", "20 sequences of DAVIS, 640 x 360", 536, 35.2, 15.0, 0.66),
    Prepared("mvimgnet", "DAVIS's frames at 1280 x 720 in MVImgNet's zips, `--views 8`", 123, 20.7, 10.1, 0.72),
    Prepared("youtube-vos", "the same in YouTube-VOS's `train.zip`", 272, 47.5, 17.5, 1.03),
    Prepared("objects", "59 photos with masks, 640 px", 59, 6.2, 6.0, 0.56),
    Prepared("captions", "100 pictures of COCO", 100, 7.5, 3.9, 0.26),
    Prepared("meshes", "views of 320 px, half of them relit, by Mesa on the CPU", 240, 2.4, 30.2, 0.80),
    Prepared("meshes", "the same of 512 px", 120, 2.2, 31.1, 0.79),
)


def parameters(sizes: str, stage: str, fresh: bool = False) -> tuple[int, int]:
    """A model's parameters without the autoencoder's: all, and those trained by the stage."""
    with torch.device("meta"):
        model = Model(build_modules(PRESETS[sizes], with_vae=False), PRESETS[sizes])
    prefixes = ("",) if fresh else STAGES[stage].trained
    counts = [(name.startswith(prefixes), parameter.numel()) for name, parameter in model.named_parameters()]
    return sum(count for _, count in counts), sum(count for trained, count in counts if trained)


def bytes_of(total: int, trained: int) -> tuple[int, int]:
    """Sizes in fp32: of a GPU's memory before any activation, and of a state on disk.

    Both hold the weights and, for trained ones, AdamW's two moments and the average; memory also holds their gradients.
    """
    state = 4 * total + 12 * trained
    return state + 4 * trained, state


def rates_of(benchmark: Path | None) -> dict[str, Rate]:
    """The measured rates, or those of the user's own `loop` rows (training.benchmark), the fastest of each.

    Raises `ImprintError` for a file that is not a benchmark.json, and for invalid rates.
    """
    if benchmark is None:
        return RATES
    expected = "give the benchmark.json of python -m training.benchmark"
    report = read_json(benchmark, expected)
    found: dict[str, Rate] = {}
    try:
        loops = [row for row in report["rows"] if row["row"].startswith("loop:") and "error" not in row]
        for row in loops:
            for name in ("pictures_per_second", "allocated_gib"):
                if name in row:
                    require_number(f"{benchmark}: {name} of {row['row']}", row[name], LEAST)
        for row in sorted(loops, key=lambda row: row["pictures_per_second"]):
            sizes_and_batch = row["row"].removeprefix("loop:").rpartition(":")[0]
            found[sizes_and_batch] = Rate(row["pictures_per_second"], row.get("allocated_gib"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ImprintError(f"{benchmark} holds no rows of measurements ({error!r}); {expected}") from error
    if not found:
        raise ImprintError(f"{benchmark} has no row 'loop' that was measured; {expected}")
    return found


def runs(rates: dict[str, Rate], gpus: Sequence[int]) -> list[str]:
    """A table of `RUNS`; a cell is empty if nothing was measured, and in brackets if it rests on another stage's."""
    rows = []
    for run in RUNS:
        held, state = bytes_of(*parameters(run.sizes, run.stage, run.fresh))
        speed, shared, peak = "", [""] * len(gpus), ""
        if rate := rates.get(run.rate):
            form = "{}" if run.stage == MEASURED else "({})"
            speed = form.format(_number(rate.pictures_per_second))
            hours = run.images / rate.pictures_per_second / 3600
            shared = [form.format(f"{hours / (count * (SCALING if count > 1 else 1)):.2f}") for count in gpus]
            peak = form.format(f"{rate.gib:.1f}") if rate.gib else ""
        states = f"{STATES_ON_DISK * state / GIB:.1f}"
        rows.append([run.name, f"{run.images / 1e6:g} M", speed, *shared, f"{held / GIB:.1f}", peak, states])
    hours = " | ".join(f"hours on {count} GPU{'s' * (count > 1)}" for count in gpus)
    titles = f"run | pictures | pictures/s | {hours} | weights and AdamW, GiB | GPU memory, GiB | states, GiB"
    return table(titles, rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def storage() -> list[str]:
    """A table of the size of docs/512px.md's data: on disk in GB, and in memory with `--pool`."""
    side, longest, views, pool, processes = 512, 1280, 8, 4, 8
    picture = longest * (longest * 9 // 16) * BYTES_PER_PIXEL / 1e9
    cutouts = pool * SHARD * HELD * side**2 / 1e9
    photos = pool * SHARD * 2.5 * HELD * (1.5 * side) ** 2 / 1e9
    rows = {
        f"1,000 pictures of {longest} x {longest * 9 // 16} in shards": 1000 * picture,
        f"one of MVImgNet's 43 zips, {views} views of each object": MVIMGNET / 43 * views * picture,
        f"all 43 zips (3.4 TB, read once), {views} views of each object": MVIMGNET * views * picture,
        f"memory, `--pool {pool}`: cut-outs of {side} px": cutouts,
        f"memory, `--pool {pool}`: photos, 2 to 3 squares of {side * 3 // 2} px each": photos,
        f"main memory for both, {processes} processes a node": processes * (cutouts + photos),
        "36,000 cut-outs of 320 px, held in memory": 36_000 * HELD * 320**2 / 1e9,
    }
    return table("data | GB", [[name, f"{value:.3g}"] for name, value in rows.items()])


def preparing() -> list[str]:
    """A table of `PREPARED`, for 1,000 pictures."""
    rows = []
    for each in PREPARED:
        disk, time = (f"{1e3 * value / each.pictures:.0f}" for value in (each.megabytes, each.core_seconds))
        rows.append([f"`{each.source}`", each.what, disk, time, f"{each.gib:.1f}"])
    return table("source | of | MB per 1,000 pictures | core seconds per 1,000 | memory, GiB", rows)


def page(benchmark: Path | None, gpus: Sequence[int]) -> str:
    """All tables. Raises `ImprintError` as `rates_of` does."""
    parts = runs(rates_of(benchmark), gpus), storage(), preparing()
    return "\n".join("\n".join(part[1:]) for part in parts)
