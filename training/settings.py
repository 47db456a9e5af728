"""What a stage is, and the command line of `training.train`."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from imprint.config import PRESETS

from .loop.losses import TIMESTEPS, WEIGHTINGS

# Options that may differ when a run goes on: they do not change what it learns.
FREE_OPTIONS = (
    "time_limit log_every save_every dry_run device chunk compile checkpointing wandb output views photos captions "
    "text_encoder"
).split()
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")  # torch.compile's own names


@dataclass(frozen=True)
class Stage:
    """What a stage trains and on what; the recipe's numbers that differ between stages."""

    trained: tuple[str, ...]
    """Prefixes of the trained parameters; all others are frozen."""
    learning_rate: float
    mix: dict[str, float]
    """Shares of the kinds of pair, see `training.pairs`; none for captioned pictures."""
    images: int = 4_000_000
    batch: int = 512
    warmup: int = 200_000
    lora: bool = False
    """Whether the trained parameters are low-rank additions (arXiv 2106.09685) to the UNet's attention alone."""

    @property
    def data(self) -> tuple[str, ...]:
        """The options that name what it reads."""
        return ("views", "photos") if self.mix else ("captions", "text_encoder")


STAGES = {
    # ObjectStitch: both encoders and the UNet frozen, the adapter learns to speak as the text encoder does
    "warmup": Stage(trained=("adapter.",), learning_rate=1e-4, mix={}, images=1_000_000, batch=64, warmup=20_000),
    # "Trained: DINOv2, adapter, UNet decoder. Frozen: UNet encoder" (section 3.1)
    "views": Stage(
        trained=("encoder.", "adapter.", "unet.up_blocks.", "unet.conv_norm_out.", "unet.conv_out."),
        learning_rate=8e-4,
        mix={"rendered": 0.62, "still": 0.1, "video": 0.03, "piece": 0.25},
    ),
    # "Trained: adapter and the whole UNet. Frozen: DINOv2" (section 3.2)
    "compositing": Stage(
        trained=("adapter.", "unet."),
        learning_rate=6e-4,
        mix={"rendered": 0.45, "still": 0.24, "video": 0.05, "piece": 0.26},
    ),
    # One object's few photos, as MureObjectStitch (arXiv 2411.07462), which tunes the whole UNet and freezes the adapter
    "finetune": Stage(
        trained=("unet.",),
        learning_rate=1e-4,
        mix={"rendered": 0.5, "still": 0.2, "video": 0.3},
        images=4_000,
        batch=4,
        warmup=200,
        lora=True,
    ),
}


def side_and_share(text: str) -> tuple[int, float]:
    """`384` or `384:0.4`."""
    side, _, share = text.partition(":")
    pair = int(side), float(share or 1)
    if pair[0] < 1 or not 0 < pair[1] < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no side with a share of more than 0")
    return pair


def parse(argv: list[str] | None, description: str | None = None) -> argparse.Namespace:
    """The options of a run, the stage's own numbers where none were given. Leaves with 2 for options that do not fit."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; made, or continued")
    data = parser.add_argument_group("data, each a folder or an address with train/ and held-out/ shards")
    data.add_argument("--views", help="cut-outs")
    data.add_argument("--photos", help="photos")
    data.add_argument("--captions", help="for warmup: pictures with captions, in a folder")
    data.add_argument("--pool", type=int, help="shards of each data set in memory at once; by default all")
    data.add_argument("--refresh", type=int, default=1, help="with --pool: blocks of pairs before the next shard comes")
    data.add_argument(
        "--view-side", type=int, help="pixels a side at which views are held; by default the largest side"
    )
    data.add_argument("--limit", type=int, help="read only so many samples of each data set")
    model = parser.add_argument_group("model")
    start = model.add_mutually_exclusive_group()
    start.add_argument(
        "--init",
        type=Path,
        help="checkpoint to start from: training.start's, stage 1's for stage 2, or one to fine-tune",
    )
    start.add_argument("--config", choices=PRESETS, default="tiny", help="sizes of a model with random weights")
    model.add_argument(
        "--matte",
        type=int,
        help="give --init's UNet a fresh matte of so many values along a latent cell's side; 0 = none",
    )
    model.add_argument("--vae", type=Path, help="autoencoder, .safetensors with diffusers' names")
    model.add_argument(
        "--text-encoder", type=Path, help="for warmup: folder of SD 1.5, or of its CLIP text model with the tokenizer"
    )
    model.add_argument("--rank", type=int, default=16, help="for finetune: of the LoRA")
    model.add_argument(
        "--train-all",
        action="store_true",
        help="freeze no part: for small models whose encoder is not a pretrained DINOv2",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--images", type=int, help="pictures to train on; by default the stage's")
    recipe.add_argument("--batch", type=int, help="pictures at once in each process; by default the stage's")
    recipe.add_argument(
        "--sides",
        type=side_and_share,
        nargs="+",
        metavar="PIXELS[:SHARE]",
        help="sides of the pictures, and their shares of the steps; by default the model's resolution alone. Batches of all "
        "sides have as many pixels as --batch pictures at the model's resolution",
    )
    recipe.add_argument(
        "--distill-guidance",
        type=float,
        metavar="SCALE",
        help="for compositing: learn what --init predicts with this guidance, instead of the pictures",
    )
    recipe.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one step")
    recipe.add_argument("--lr", type=float, help="peak learning rate; by default the stage's")
    recipe.add_argument("--final-lr", type=float, default=0.03, help="learning rate at the end, as a part of the peak")
    recipe.add_argument("--warmup", type=int, help="pictures of rising learning rate; by default the stage's")
    recipe.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights")
    recipe.add_argument("--timesteps", choices=TIMESTEPS, default="uniform", help="how timesteps are drawn")
    recipe.add_argument("--weighting", choices=WEIGHTINGS, default="plain", help="how they count in the loss")
    recipe.add_argument(
        "--translation", type=float, default=0.5, help="for warmup: first part of the run, on the translation loss"
    )
    recipe.add_argument("--reuse", type=int, default=8, help="how often each pair is used, with fresh noise")
    recipe.add_argument("--block", type=int, default=16, help="batches of pairs made at once")
    recipe.add_argument("--seed", type=int, default=0)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="mixed precision")
    machine.add_argument(
        "--compile",
        nargs="?",
        const=COMPILE_MODES[0],
        choices=COMPILE_MODES,
        help="torch.compile; reduce-overhead for models so small that starting kernels takes longer than running them",
    )
    machine.add_argument("--checkpointing", action="store_true", help="compute activations twice, and keep few of them")
    machine.add_argument("--chunk", type=int, default=256, help="pairs made in one piece; less needs less memory")
    machine.add_argument("--device", choices=("auto", "cpu"), default="auto")
    machine.add_argument("--time-limit", type=float, help="seconds after which to save and stop")
    report = parser.add_argument_group("report")
    report.add_argument("--log-every", type=int, default=50, help="steps")
    report.add_argument(
        "--save-every", type=int, default=1000, help="steps between states, held-out losses and samples"
    )
    report.add_argument("--wandb", action="store_true", help="log to Weights & Biases as well as to TensorBoard")
    report.add_argument("--dry-run", action="store_true", help="print the resolved run and stop")
    options = parser.parse_args(argv)
    stage = STAGES[options.stage]
    for name, value in (
        ("images", stage.images), ("batch", stage.batch), ("warmup", stage.warmup), ("lr", stage.learning_rate)
    ):  # fmt: skip
        if getattr(options, name) is None:
            setattr(options, name, value)
    counts = "images batch accumulate rank reuse block chunk log_every save_every pool refresh view_side".split()
    for name in counts:
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be 1 or more")
    if options.distill_guidance is not None and not (options.stage == "compositing" and options.init):
        parser.error(
            "--distill-guidance needs --init, the model whose predictions are learned, and stage 'compositing'"
        )
    if options.sides and not stage.mix:
        parser.error(f"stage '{options.stage}' has no --sides: its pictures have the model's resolution")
    if options.pool is not None and options.limit is not None:
        parser.error("--limit reads the first samples, --pool all shards in turn: give one of them")
    if not 0 <= options.translation <= 1:
        parser.error(f"--translation is {options.translation}; it is a part of the run, from 0 to 1")
    if options.accumulate > 1 and options.compile == "reduce-overhead":
        parser.error(
            "--compile reduce-overhead keeps no gradients from batch to batch; leave out one of it and --accumulate"
        )
    for name in stage.data:
        if getattr(options, name) is None:
            parser.error(f"stage '{options.stage}' needs --{name.replace('_', '-')}")
    # "Without stage 1" is an ablation of the paper; a model of random weights then learns all of itself at once.
    anew = options.stage == "views" or (options.stage == "compositing" and options.train_all)
    if not (options.init or anew):
        source = "stage 'views'" if options.stage == "compositing" else "training.start or of a former stage"
        parser.error(f"stage '{options.stage}' starts from a checkpoint of {source}: give --init")
    return options
