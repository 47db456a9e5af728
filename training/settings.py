"""The settings of training and the stages' presets; other settings are in `settings.py` of `data/`, `light/` and
`measure/`.

The library takes these dataclasses; the scripts make their command lines from them (`training.arguments`). Sizes in
pixels are sides of squares unless stated otherwise, times are in seconds, learning rates are AdamW's.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.config import PRESETS
from imprint.errors import ImprintError
from imprint.files import read_json

from . import arguments
from .arguments import found, option, require

TIMESTEPS = ("uniform", "logit-normal")
WEIGHTINGS = ("plain", "min-snr")
OPTIMIZERS = ("adamw", "adamw8bit")
SCHEDULES = ("cosine", "linear", "constant")
KINDS = ("rendered", "still", "video", "patch")  # of pairs, see training.pairs.pair_maker
PRECISIONS = ("no", "bf16", "fp16")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")  # torch.compile's own names
DEVICES = ("auto", "cpu")
LORA_LAYERS = ("attention", "all")


@dataclass(frozen=True)
class Stage:
    """What a stage trains, on which data, and the defaults that differ between stages."""

    trained: tuple[str, ...]
    """Prefixes of the trained parameters; all others are frozen."""
    learning_rate: float
    mix: dict[str, float]
    """Shares of the kinds of pair, see `training.pairs.pair_maker`; empty for captioned pictures."""
    images: int = 4_000_000
    batch: int = 512
    lr_warmup: int = 200_000
    lora: bool = False
    """Whether only low-rank additions (arXiv 2106.09685) to the UNet are trained."""

    @property
    def product(self) -> str:
        """The kind of file a run produces, by the name of its files."""
        return "lora" if self.lora else "checkpoint"

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The options that name its shards."""
        return ("cutouts", "photos") if self.mix else ("captions",)

    @property
    def required(self) -> tuple[str, ...]:
        """The options that it cannot do without."""
        return self.data_sets if self.mix else (*self.data_sets, "text_encoder")


STAGES = {
    # ObjectStitch: both encoders and the UNet are frozen, the adapter learns to imitate the text encoder
    "warmup": Stage(trained=("adapter.",), learning_rate=1e-4, mix={}, images=1_000_000, batch=64, lr_warmup=20_000),
    # "Trained: DINOv2, adapter, UNet decoder. Frozen: UNet encoder" (section 3.1)
    "identity": Stage(
        trained=("encoder.", "adapter.", "unet.up_blocks.", "unet.conv_norm_out.", "unet.conv_out."),
        learning_rate=8e-4,
        mix={"rendered": 0.62, "still": 0.1, "video": 0.03, "patch": 0.25},
    ),
    # "Trained: adapter and the whole UNet. Frozen: DINOv2" (section 3.2)
    "compositing": Stage(
        trained=("adapter.", "unet."),
        learning_rate=6e-4,
        mix={"rendered": 0.45, "still": 0.24, "video": 0.05, "patch": 0.26},
    ),
    # A few photos of one object, as in MureObjectStitch (arXiv 2411.07462): tunes the UNet, freezes the adapter
    "finetune": Stage(
        trained=("unet.",),
        learning_rate=1e-4,
        mix={"rendered": 0.5, "still": 0.2, "video": 0.3},
        images=4_000,
        batch=4,
        lr_warmup=200,
        lora=True,
    ),
}
OLD_NAMES = dict(
    warmup="lr_warmup", views="cutouts", sides="resolutions", view_side="cutout_resolution", config="sizes"
)
"""Former names of `Train`'s fields, and of the data in a run's data.json."""
OLD_STAGES = {"views": "identity"}
OLD_KINDS = {"piece": "patch"}
DESCRIBED = frozenset(
    "processes layout begun steps trained lora trained_parameters split model device config_file from_config "
    "from_flags".split()
)
"""Keys of a run's options.json that are not options, and `device`, which holds more than the option."""


Size = int | tuple[int, int]
"""A picture's size: a square's side, or width and height."""


def resolution_and_share(text: str) -> tuple[Size, float]:
    """`384`, `384:0.4` or, for a rectangle, `1152x896:0.4`."""
    resolution, _, share = text.partition(":")
    sides, share = tuple(map(int, resolution.split("x"))), float(share or 1)
    if len(sides) > 2 or min(sides) < 1 or not 0 < share < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a resolution with a share above 0")
    return sides if len(set(sides)) == 2 else sides[0], share


def kind_and_share(text: str) -> tuple[str, float]:
    """`still:0.4`."""
    kind, _, share = text.partition(":")
    pair = OLD_KINDS.get(kind, kind), float(share or 1)
    if pair[0] not in KINDS or not 0 <= pair[1] < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a kind of pair with a share; kinds are {', '.join(KINDS)}")
    return pair


def stage_name(text: str) -> str:
    """A stage's name, from its present or former one."""
    if text in OLD_STAGES:
        arguments.warn_renamed(f"stage '{text}'", f"'{OLD_STAGES[text]}'")
    return OLD_STAGES.get(text, text)


DATA = "data, each a folder or a URL with train/ and held-out/ shards"


@dataclass(frozen=True)
class Train:
    """A training run."""

    stage: str = option(choices=STAGES, parse=stage_name, positional=True)
    """what to train"""
    output: Path = option()
    """folder of the run; created, or resumed from"""

    cutouts: str | None = option(None, group=DATA, old="--views")
    """cut-outs"""
    photos: str | None = option(None, group=DATA)
    """photos"""
    captions: str | None = option(None, group=DATA)
    """for warmup: pictures with captions"""
    pool: int | None = option(None, group=DATA)
    """number of shards of each data set in memory at once; by default all"""
    refresh: int = option(1, group=DATA)
    """with --pool: blocks of pairs after which one shard is replaced"""
    cutout_resolution: int | None = option(None, group=DATA, old="--view-side")
    """resolution in pixels at which cut-outs are held; by default the largest of --resolutions"""
    limit: int | None = option(None, group=DATA)
    """read at most this many samples of each data set"""
    skip_bad: int = option(0, group=DATA)
    """number of bad samples to skip and count before the run stops"""

    init: Path | None = option(None, group="model")
    """checkpoint to start from: training.start's, stage 1's for stage 2, or one to fine-tune"""
    sizes: str = option("tiny", group="model", metavar="NAME")
    """without --init: sizes of a model with random weights, as a preset or a YAML file"""
    matte: int | None = option(None, group="model")
    """add a fresh matte to --init's UNet, with this many values along a latent cell's side; 0: none"""
    vae: Path | None = option(None, group="model")
    """autoencoder, .safetensors with diffusers' names"""
    text_encoder: Path | None = option(None, group="model")
    """for warmup: folder of SD 1.5 or SDXL, or of SD 1.5's CLIP text model with the tokenizer"""
    rank: int = option(16, group="model")
    """for finetune: rank of the LoRA"""
    lora_layers: str = option("attention", choices=LORA_LAYERS, group="model")
    """for finetune: layers of the UNet that the LoRA changes; all: also feed-forward layers and convolutions"""
    train_all: bool = option(False, group="model")
    """freeze nothing: for small models whose encoder is not a pretrained DINOv2"""

    images: int = option(group="recipe")
    """pictures to train on; by default the stage's"""
    batch: int = option(group="recipe")
    """pictures per batch in each process; by default the stage's"""
    resolutions: tuple[tuple[Size, float], ...] | None = option(
        None, group="recipe", parse=resolution_and_share, metavar="PIXELS[xHEIGHT][:SHARE]", old="--sides"
    )
    """resolutions of the pictures and their shares of the steps; by default only the model's. With a height,
    rectangles. Batches at every resolution have as many pixels as --batch pictures at the model's"""
    distill_guidance: float | None = option(None, group="recipe", metavar="SCALE")
    """for compositing: learn what --init predicts with this guidance, instead of the pictures"""
    distill_steps: int | None = option(None, group="recipe", metavar="N")
    """for compositing and finetune: learn to draw in this many steps what --init draws in four times as many"""
    accumulate: int = option(1, group="recipe")
    """batches whose gradients are accumulated into one step"""
    global_batch: int | None = option(None, group="recipe")
    """pictures per step over all processes; --accumulate then follows from it and the number of processes"""
    mix: tuple[tuple[str, float], ...] = option(group="recipe", parse=kind_and_share, metavar="KIND:SHARE")
    """kinds of pair and their shares; by default the stage's"""
    optimizer: str = option("adamw", choices=OPTIMIZERS, group="recipe")
    """adamw8bit keeps a quarter of the state, on a GPU, with the extra bitsandbytes"""
    weight_decay: float = option(0.01, group="recipe")
    """weight decay of the optimizer"""
    clip: float = option(1.0, group="recipe")
    """maximum gradient norm; 0: no limit"""
    schedule: str = option("cosine", choices=SCHEDULES, group="recipe")
    """how the learning rate decays from its peak to --final-lr; constant stays at the peak"""
    lr: float = option(group="recipe")
    """peak learning rate; by default the stage's"""
    final_lr: float = option(0.03, group="recipe")
    """learning rate at the end, as a fraction of the peak"""
    lr_warmup: int = option(group="recipe", old="--warmup")
    """pictures over which the learning rate rises to its peak; by default the stage's"""
    ema: float = option(0.999, group="recipe")
    """decay of the averaged weights"""
    timesteps: str = option("uniform", choices=TIMESTEPS, group="recipe")
    """how timesteps are drawn"""
    weighting: str = option("plain", choices=WEIGHTINGS, group="recipe")
    """how they are weighted in the loss"""
    matte_weight: float = option(0.2, group="recipe")
    """weight of the matte's loss relative to the picture's"""
    dropout: float = option(0.1, group="recipe")
    """probability of dropping the object, for classifier-free guidance; IMPRINT and related methods use 0.1 to 0.2"""
    translation: float = option(0.5, group="recipe")
    """for warmup: initial fraction of the run, from 0 to 1, on the translation loss"""
    reuse: int = option(8, group="recipe")
    """how often each pair is used, with fresh noise"""
    block: int = option(16, group="recipe")
    """batches of pairs made at once"""
    seed: int = option(0, group="recipe")
    """seed of everything random"""

    precision: str = option("no", choices=PRECISIONS, group="machine")
    """mixed precision"""
    compile: str | None = option(None, choices=COMPILE_MODES, bare=COMPILE_MODES[0], group="machine")
    """torch.compile; reduce-overhead also records CUDA graphs, so that Python does not hold up the GPU"""
    checkpointing: bool = option(False, group="machine")
    """recompute activations in the backward pass, to save memory"""
    chunk: int = option(256, group="machine")
    """pairs made at once; fewer need less memory. Another value draws other pairs of the same mix"""
    device: str = option("auto", choices=DEVICES, group="machine")
    """where to train"""
    time_limit: float | None = option(None, group="machine")
    """seconds after which to save and stop"""

    log_every: int = option(50, group="report")
    """steps between lines of the log"""
    save_every: int = option(1000, group="report")
    """steps between states, checkpoints, held-out losses and samples"""
    keep: int = option(3, group="report")
    """number of newest checkpoints to keep, besides the best and the last"""
    wandb: bool = option(False, group="report")
    """log to Weights & Biases as well as to TensorBoard"""
    dry_run: bool = option(False, group="report")
    """print the resolved run and stop"""

    origin: arguments.Origin = found(arguments.Origin(), compare=False)
    """what was given in a file and by flags"""

    @classmethod
    def of(cls, stage: str, **changes: Any) -> Train:
        """The preset of a stage, with changes."""
        return arguments.of(cls, **(stage_defaults({"stage": stage} | changes) | {"stage": stage} | changes))

    def check(self) -> None:
        """Raise `ImprintError` for options that contradict each other."""
        stage = STAGES[self.stage]
        require(
            self,
            "images batch accumulate rank reuse block chunk log_every save_every keep pool refresh cutout_resolution "
            "limit global_batch distill_steps",
        )
        require(self, "matte skip_bad lr_warmup lr time_limit weight_decay clip matte_weight", 0)
        require(self, "ema final_lr translation dropout", 0, 1)
        names = f"{stage.product}.safetensors", "best.safetensors"
        for written in (*(self.output / name for name in names), *self.output.glob(f"{stage.product}-*.safetensors")):
            arguments.require_other(written, self.init)
        if self.lr_warmup > self.images:
            raise ImprintError(
                f"--lr-warmup is {self.lr_warmup}, but the run ends after {self.images} pictures, before the learning "
                "rate reaches its peak; give less"
            )
        if self.distill_guidance is not None and not (self.stage == "compositing" and self.init):
            raise ImprintError(
                "--distill-guidance needs --init, the model whose predictions are learned, and stage 'compositing'"
            )
        if self.distill_steps is not None:
            if not (self.stage in ("compositing", "finetune") and self.init):
                raise ImprintError(
                    "--distill-steps needs --init, the model whose drawing is learned, and stage 'compositing' or "
                    "'finetune'"
                )
            if self.compile == "reduce-overhead":
                raise ImprintError(
                    "--distill-steps evaluates the models several times in a step, which --compile reduce-overhead "
                    "cannot record; give --compile"
                )
        if self.resolutions and not stage.mix:
            raise ImprintError(f"stage '{self.stage}' takes no --resolutions: its pictures have the model's")
        if self.stage == "identity" and any(isinstance(size, tuple) for size, _ in self.resolutions or ()):
            raise ImprintError(
                "stage 'identity' shows the object alone, in squares; give --resolutions without heights"
            )
        if any(kind not in KINDS or not share >= 0 for kind, share in self.mix):
            raise ImprintError(f"--mix is {self.mix}; it must be shares of 0 or more of {', '.join(KINDS)}")
        if bool(stage.mix) != any(share for _, share in self.mix):
            raise ImprintError(
                f"stage '{self.stage}' needs a --mix with a share above 0"
                if stage.mix
                else f"stage '{self.stage}' takes no --mix: its pairs are pictures with captions"
            )
        if self.global_batch is not None and self.accumulate != 1:
            raise ImprintError("--accumulate follows from --global-batch: give one of them")
        if self.pool is not None and self.limit is not None:
            raise ImprintError("--limit reads the first samples, --pool all shards in turn: give one of them")
        if (self.accumulate > 1 or self.global_batch) and self.compile == "reduce-overhead":
            raise ImprintError(
                "--compile reduce-overhead keeps no gradients between batches; leave it out, or --accumulate and "
                "--global-batch"
            )
        for name in stage.required:
            if getattr(self, name) is None:
                raise ImprintError(f"stage '{self.stage}' needs {arguments.flag(name)}")
        # "Without stage 1" is an ablation of the paper; a model of random weights then learns all of itself at once.
        anew = self.stage == "identity" or (self.stage == "compositing" and self.train_all)
        if not (self.init or anew):
            source = "stage 'identity'" if self.stage == "compositing" else "training.start or of an earlier stage"
            raise ImprintError(f"stage '{self.stage}' starts from a checkpoint of {source}: give --init")


FREE_OPTIONS = (
    "time_limit log_every save_every keep dry_run skip_bad device chunk compile checkpointing wandb output sizes "
    "cutouts photos captions text_encoder"
).split()
"""Options that may change when a run is resumed, since they do not affect what is learned. (For --sizes the model
itself is compared.)"""


def stage_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """The defaults of a stage's preset, by `Train`'s names."""
    stage = STAGES.get(given.get("stage"))
    if stage is None:
        return {}
    warmup = min(stage.lr_warmup, given.get("images", stage.images) // 2)  # at most half of a short run
    if given.get("output"):
        warmup = begun_with(Path(given["output"])).get("lr_warmup", warmup)  # a run that is made longer keeps its own
    mix = tuple(stage.mix.items())
    return dict(images=stage.images, batch=stage.batch, lr_warmup=warmup, lr=stage.learning_rate, mix=mix)


def begun_with(folder: Path) -> dict[str, Any]:
    """The options of a run that can be resumed; empty if it has no states or its options cannot be read."""
    try:
        return renamed_options(read_json(folder / "options.json", "")) if any(folder.glob("state-*")) else {}
    except ImprintError:  # reported when the run is resumed
        return {}


def parse_train(argv: list[str] | None, description: str | None = None) -> Train:
    """A run's settings from its command line; exits with code 2 for invalid options."""
    return arguments.parse(
        Train,
        argv,
        description,
        preset=stage_defaults,
        renamed=OLD_NAMES,
        ignored=DESCRIBED,
        old_config=("sizes", PRESETS),
    )


def read_train(path: Path) -> Train:
    """The settings of a run from its options.json. Raises `ImprintError` for an incomplete one."""
    values = arguments.read_file(path, Train, OLD_NAMES, DESCRIBED)
    values = arguments.defaults(Train) | stage_defaults(values) | values
    if absent := {field.name for field in arguments.flat(Train)} - values.keys():
        raise ImprintError(f"{path} does not say {', '.join(sorted(absent))}; give a run's own options.json")
    return arguments.build(Train, values)


def renamed_options(described: dict[str, Any]) -> dict[str, Any]:
    """The contents of a run's options.json under the present names."""
    values = {OLD_NAMES.get(name, name): value for name, value in described.items()}
    values["stage"] = OLD_STAGES.get(values.get("stage"), values.get("stage"))
    if isinstance(values.get("mix"), dict):
        values["mix"] = {OLD_KINDS.get(kind, kind): share for kind, share in values["mix"].items()}
    return values


@dataclass(frozen=True)
class Start:
    """Assembling a checkpoint from pretrained parts."""

    output: Path = option(positional=True)
    """checkpoint to write, .safetensors"""
    unet: Path = option()
    """SD 1.5, or SDXL with --sizes sdxl: a diffusers folder, or a .safetensors or .ckpt file"""
    encoder: Path = option()
    """DINOv2 or DINOv3: a folder of the hub; for DINOv2 also Meta's .pth"""
    sizes: str = option("sd15", metavar="NAME")
    """everything that the two files do not determine: a preset, or a YAML file"""
    background: str | None = option(None, choices=("blend", "concat"))
    """by default the configuration's, blend"""
    adapter: str | None = option(None, choices=("tokens", "conv"))
    """by default the configuration's, tokens"""
    vae: Path | None = option(None)
    """another autoencoder: a folder in diffusers' layout"""
    seed: int = option(0)
    """seed of the adapter's weights"""


@dataclass(frozen=True)
class Export:
    """The checkpoint of a saved state."""

    state: Path = option(positional=True)
    """folder state-NUMBER of a run"""
    output: Path = option(positional=True, metavar="FILE")
    """checkpoint to write, .safetensors"""


@dataclass(frozen=True)
class Merge:
    """The mean of checkpoints or of light networks."""

    checkpoints: tuple[Path, ...] = option(positional=True)
    """two or more"""
    output: Path = option()
    """file to write, .safetensors"""


@dataclass(frozen=True)
class TuneDecoder:
    """Fine-tuning of an autoencoder's decoder."""

    checkpoint: Path = option(metavar="IN")
    """with an autoencoder of kind 'tiny'"""
    output: Path = option(metavar="OUT")
    """checkpoint to write, .safetensors"""
    cutouts: str = option(old="--views")
    """cut-outs: a folder or a URL with train/ and held-out/ shards"""
    photos: str = option()
    """photos, likewise"""
    limit: int | None = option(None)
    """read at most this many samples of each data set"""
    images: int = option(120_000)
    """pictures to train on, each newly made"""
    batch: int = option(128)
    """pictures per batch"""
    lr: float = option(3e-4)
    """initial learning rate; a cosine takes it to 0"""
    keep: float = option(0.9)
    """share of the fine detail to keep as the decoder draws it, from 0 to 1"""
    seed: int = option(0)
    """seed of the pictures"""
    held_out: int = option(256)
    """held-out pictures to measure on"""
    time_limit: float | None = option(None)
    """seconds after which to stop training and write"""
    compile: bool = option(False)
    """torch.compile the decoder"""
    device: str = option("auto", choices=DEVICES)
    """where to train"""

    def check(self) -> None:
        """Raise `ImprintError` for numbers out of range."""
        require(self, "images batch held_out limit")
        require(self, "lr time_limit", 0)
        require(self, "keep", 0, 1)
        arguments.require_other(self.output, self.checkpoint)
