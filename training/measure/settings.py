"""The settings of evaluation and of the benchmark."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from imprint.checkpoint import SHIPPED
from imprint.config import PRESETS
from imprint.directions import require_strengths
from imprint.errors import ImprintError
from imprint.lightnet import SHIPPED_LIGHT
from imprint.masks import LEVELS

from ..arguments import found, option, require
from ..settings import COMPILE_MODES, DEVICES

METRICS = ("clip-i", "dino", "dinov2", "dreamsim", "lpips", "fid", "background", "retrieval", "light")
"""The usual metrics, and light and shadow against a known truth; `mobilenet`, a small network for machines without a
hub, is measured only on request."""
CROPS = ("squeezed", "padded")
BACKBONES = ("clip", "dino", "dinov2", "mobilenet")
ABLATIONS = {"cls-only": "CLS only", "box-mask": "box mask only"}
DTYPES = ("fp32", "fp16", "bf16")
TASKS = "tasks: every subject in every box, or pairs of frames"


def named(text: str) -> tuple[str, Path]:
    """`NAME=PATH`, or `PATH` with its stem as the name."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return Path(text).stem, Path(text)
    return name, Path(path)


@dataclass(frozen=True)
class Evaluate:
    """An evaluation of checkpoints side by side."""

    checkpoint: tuple[tuple[str, Path], ...] = option((("imprint-tiny", SHIPPED),), parse=named, metavar="NAME=FILE")
    """checkpoints to compare; differences are relative to the first; by default the shipped one"""
    results: tuple[tuple[str, Path], ...] = option((), parse=named, metavar="NAME=FOLDER")
    """other methods' composites, as additional rows: TASK.png (.jpg, .webp) for each task"""
    output: Path = option()
    """folder of the results; created, or resumed from"""

    subjects: Path | None = option(None, group=TASKS)
    """folder with SUBJECT/NN.jpg and NN.mask.png, or SUBJECT/NN.png"""
    backgrounds: Path | None = option(None, group=TASKS)
    """folder of the photos to which the boxes belong"""
    boxes: Path | None = option(None, group=TASKS)
    """COCO's instances .json, or JSON lines of background, box, subject"""
    pairs: Path | None = option(None, group=TASKS)
    """folder of held-out shards of video frames with masks"""
    tasks: Path | None = option(None, group=TASKS)
    """folder of tasks: path-traced ones, MureCom, DreamEditBench (see training/measure/benches.py)"""
    inputs: bool = option(False, group=TASKS)
    """write each task's object, background and hole for other methods to output/inputs, and stop"""
    limit: int | None = option(None, group=TASKS)
    """at most this many tasks, chosen to cover all subjects first"""

    metrics: tuple[str, ...] | None = option(None, choices=(*METRICS, "mobilenet"), group="metrics")
    """by default all that the tasks allow except mobilenet"""
    crop: tuple[str, ...] = option(("squeezed",), choices=CROPS, group="metrics")
    """how a box becomes a network's square input: squeezed, or padded with white; each gets its own columns"""
    backbones: Path | None = option(None, group="metrics")
    """folder of networks (see training/measure/networks.py) instead of the hub"""
    retrieval_backbone: str = option("dinov2", choices=BACKBONES, group="metrics")
    """network that tells the subjects apart"""

    ablation: tuple[str, ...] = option((), choices=ABLATIONS, group="sampling")
    """additional rows for every checkpoint, with one part left out"""
    mask_level: str = option("box", choices=LEVELS, group="sampling")
    """the holes: the box, or the object's outline in it, coarsened to this level"""
    steps: int | None = option(None, group="sampling")
    """sampling steps; by default the checkpoint's"""
    guidance: float | None = option(None, group="sampling")
    """scale of classifier-free guidance; by default the checkpoint's"""
    detail: float = option(1.0, metavar="0..1", group="sampling")
    """how much detail to take from the object's own photo"""
    seed: int = option(0, group="sampling")
    """each task's seed is derived from this and its name"""
    device: str = option("auto", group="sampling")
    """auto, cpu, cuda, cuda:1, mps"""
    dtype: str = option("fp32", choices=DTYPES, group="sampling")
    """precision of the weights"""
    without: tuple[str, ...] = found(())
    """metrics that the tasks do not allow"""

    def check(self) -> None:
        """Raise `ImprintError` for options that contradict each other."""
        given = {name for name in ("subjects", "backgrounds", "boxes", "pairs", "tasks") if getattr(self, name)}
        if given not in ({"subjects", "backgrounds", "boxes"}, {"pairs"}, {"tasks"}, {"tasks", "subjects"}):
            raise ImprintError(
                "give --subjects, --backgrounds and --boxes, or --pairs alone, or --tasks (DreamEditBench's own with "
                "--subjects)"
            )
        if self.pairs and "retrieval" in (self.metrics or ()):
            raise ImprintError("'retrieval' chooses among --subjects; leave it out with --pairs")
        if "light" in (self.metrics or ()) and not self.tasks:
            raise ImprintError("'light' needs a known truth: give --tasks a folder of path-traced tasks")
        if "box-mask" in self.ablation and self.mask_level == "box":
            raise ImprintError(
                "holes are already boxes: --ablation box-mask compares with --mask-level precise, fine or coarse"
            )
        require(self, "limit steps")
        require(self, "detail", 0, 1)
        for name, path in self.checkpoint:
            if name in ("", ".", ".."):
                raise ImprintError(
                    f"--checkpoint {name}={path}: its results go into a folder of that name; give NAME=FILE"
                )
        for name, path in self.results:
            if not (name and path.is_dir()):
                raise ImprintError(
                    f"--results {name}={path}: no such folder; give NAME=FOLDER, a folder of pictures TASK.png"
                )

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics: those asked for, or all that the tasks allow."""
        return self.metrics or tuple(name for name in METRICS if name not in self.without)


@dataclass(frozen=True)
class EvaluateLight:
    """Measuring light and shadow on tasks with known truth."""

    tasks: Path = option(positional=True)
    """folder of tasks"""
    results: Path | None = option(None)
    """folder of composites NN.png to score; by default made with --checkpoint"""
    checkpoint: Path = option(SHIPPED_LIGHT)
    """light network; by default the shipped one"""
    output: Path | None = option(None)
    """folder for results.json and the composites"""
    light: float = option(1.0, metavar="0..1.5")
    """strength of the light"""
    shadow: float = option(1.0, metavar="0..1.5")
    """strength of the shadow"""
    softness: float = option(0.0, metavar="0..1")
    """how much softer to make the shadow than the network estimates"""
    light_from: str = option("auto", metavar="WHERE")
    """where the light comes from, as `imprint composite` takes it"""

    def check(self) -> None:
        """Raise `ImprintError` for a missing folder and for strengths out of range."""
        for folder in (self.tasks, self.results):
            if folder is not None and not folder.is_dir():
                raise ImprintError(f"{folder}: no such folder")
        require_strengths(self.light, self.shadow, self.softness, self.light_from)


@dataclass(frozen=True)
class EvaluateGroups:
    """Measuring light networks on held-out path-traced groups."""

    groups: tuple[Path, ...] = option(positional=True)
    """folders that `training.prepare light` has written"""
    checkpoint: tuple[tuple[str, Path], ...] = option(
        (("imprint-light", SHIPPED_LIGHT),), parse=named, metavar="NAME=FILE"
    )
    """light networks to compare; by default the shipped one"""
    draws: int = option(2)
    """pairs drawn of each group"""
    plain: bool = option(False)
    """all cameras alike, one pair of each group, as in training's log"""
    held_out: int | None = option(None)
    """measure on at most this many groups"""
    device: str = option("auto", choices=DEVICES)
    """where to run"""

    def check(self) -> None:
        """Raise `ImprintError` for numbers out of range, and for two networks of one name."""
        require(self, "draws held_out")
        names = [name for name, _ in self.checkpoint]
        if len(set(names)) < len(names):
            raise ImprintError(
                f"--checkpoint names {', '.join(names)}; each network needs a name of its own: give NAME=FILE"
            )


@dataclass(frozen=True)
class ContactSheets:
    """Sheets of composites to look at."""

    checkpoint: Path = option(SHIPPED)
    """by default the shipped one"""
    subjects: Path = option()
    """as for training.evaluate"""
    backgrounds: Path = option()
    """folder of photos"""
    output: Path = option()
    """folder for the sheets"""


ROWS = tuple(
    (
        "peak composite:sd15:1:eager composite:sd15:1:graph composite:sd15:8:graph composite:sd15:1:offload "
        "composite:sd15:1:reduce-overhead composite:tiny:1:eager composite:tiny:1:graph "
        "step:sd15:16:eager step:sd15:16:default diffusers:sd15:16 kernels:sd15:16:default loop:sd15:16:default "
        "memory:sd15:eager step:tiny:512:default loop:tiny:512:default step:tiny:512:reduce-overhead "
        "loop:tiny:512:reduce-overhead search:sd15:16:default step:sd15:48:default memory:sd15:checkpointing"
    ).split()
)
ROW_FORMS = (
    *("peak", "step:SIZES:BATCH:MODE", "kernels:SIZES:BATCH:MODE", "loop:SIZES:BATCH:MODE", "search:SIZES:BATCH:MODE"),
    *("memory:SIZES:eager|checkpointing", "diffusers:SIZES:BATCH", "composite:SIZES|FILE:RESULTS:MODE|graph|offload"),
    "gpus:N:SIZES:BATCH:MODE",
)
MODES = ("eager", *COMPILE_MODES)
LONGEST = 5  # digits of a row's numbers


def require_row(row: str) -> None:
    """Raise `ImprintError` unless a row of the benchmark is of one of `ROW_FORMS`."""
    kind, *words = row.split(":")
    forms = {form.partition(":")[0]: form for form in ROW_FORMS}
    if kind not in forms:
        raise ImprintError(f"there is no row '{row}'; rows are {', '.join(forms)}")
    names = forms[kind].split(":")[1:]
    if len(words) != len(names) or not all(map(_fits, words, names)):
        raise ImprintError(
            f"the row '{row}' is not of the form {forms[kind]}; SIZES is one of {', '.join(PRESETS)}, MODE one of "
            f"{', '.join(MODES)}, FILE a checkpoint, and N, BATCH and RESULTS are whole numbers from 1 to "
            f"{10**LONGEST - 1}"
        )


def _fits(word: str, name: str) -> bool:
    """Whether a word of a row is one of those that its form has there."""
    number = word.isascii() and word.isdecimal() and len(word) <= LONGEST and int(word) >= 1
    named = {"SIZES": word in PRESETS, "FILE": os.path.isfile(word), "MODE": word in MODES}
    named |= dict.fromkeys(("N", "BATCH", "RESULTS"), number)
    return any(named.get(each, word == each) for each in name.split("|"))


@dataclass(frozen=True)
class Benchmark:
    """A measurement of training's speed."""

    output: Path = option()
    """folder for benchmark.json and benchmark.md"""
    rows: tuple[str, ...] = option(ROWS, metavar="ROW")
    """what to measure, in this order"""
    baseline: Path | None = option(None)
    """diffusers' examples/text_to_image/train_text_to_image.py"""
    steps: int = option(24)
    """steps that are timed in a row"""
    memory_batches: tuple[int, ...] = option((8, 16, 32, 48))
    """batch sizes whose memory is measured"""
    time_limit: int | None = option(None)
    """seconds after which to stop and keep what there is"""
    cpu: bool = option(False)
    """leave the GPU alone: to try the command"""

    def check(self) -> None:
        """Raise `ImprintError` for numbers below 1 and invalid rows."""
        require(self, "steps time_limit")
        for row in self.rows:
            require_row(row)
        if min(self.memory_batches) < 1:
            raise ImprintError(f"--memory-batches are {self.memory_batches}; all must be 1 or more")


@dataclass(frozen=True)
class Costs:
    """What the pages' runs and data cost."""

    benchmark: Path | None = option(None)
    """benchmark.json of your own machine (training.benchmark); by default the rates that the pages name, of an H200"""
    gpus: tuple[int, ...] = option((1, 8, 32))
    """numbers of GPUs that share a run out"""

    def check(self) -> None:
        """Raise `ImprintError` for a number below 1."""
        if min(self.gpus) < 1:
            raise ImprintError(f"--gpus are {self.gpus}; all must be 1 or more")
