"""Train a stage: python -m training.train STAGE --output FOLDER ...; the same command again continues.

One loop, two stages (IMPRINT, arXiv 2403.10701, section 3): `views` learns identity from two views on black, `compositing`
puts the object into a background. Starts on one CPU or GPU, or on many through `accelerate launch` or `torchrun`. The run's
folder describes itself: options.json, stats.jsonl, samples-*.png, state-*/ (to continue) and checkpoint.safetensors.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm

from imprint.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from imprint.config import PRESETS, ImprintConfig
from imprint.errors import ImprintError
from imprint.files import write_text
from imprint.images import save_image, tensor_to_image
from imprint.matte import split_matte, with_matte
from imprint.noise import alphas_cumprod, make_scheduler
from imprint.pipeline import ImprintPipeline, build_modules, load_modules, module_tensors
from imprint.preprocess import normalise
from imprint.unet import build_autoencoder, decode, encode, unet_input

from .pairs import Batch, PairMaker, Photos, Views
from .pool import Pool, StreamedPairs
from .shards import inside

MATTE_WEIGHT = 0.2  # of the matte's loss beside the diffusion loss
CONDITION_DROPOUT = 0.1  # IMPRINT and its relatives drop 10 to 20 % for classifier-free guidance
KEPT_STATES = 2
# Options that may differ when a run goes on: they do not change what it learns.
FREE_OPTIONS = "time_limit log_every save_every dry_run device chunk compile output views photos".split()
VALIDATION_SIZE = 512  # pairs, the same for every run of a stage
SHOWN = 16  # of them, as pictures


@dataclass(frozen=True)
class Stage:
    """What a stage trains and on what; the recipe's numbers that differ between the two."""

    trained: tuple[str, ...]
    """Prefixes of the trained parameters; all others are frozen."""
    learning_rate: float
    mix: dict[str, float]
    """Shares of the kinds of pair; see `training.pairs`."""


STAGES = {
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
        mix={"rendered": 0.5, "still": 0.17, "video": 0.08, "piece": 0.25},
    ),
}


class Model(torch.nn.Module):
    """The trained parts as one module, so that one compile, one DDP and one average cover them."""

    def __init__(self, modules: dict[str, torch.nn.Module]):
        super().__init__()
        self.encoder, self.adapter, self.unet = (modules[part] for part in ("encoder", "adapter", "unet"))

    def forward(
        self, reference: torch.Tensor, seen: torch.Tensor, timesteps: torch.Tensor, dropped: torch.Tensor
    ) -> torch.Tensor:
        """reference (B, 3, S, S) uint8, seen (B, C', h, w), timesteps (B,), dropped (B,) bool -> the UNet's output."""
        context = self.context(reference)
        context = torch.where(dropped[:, None, None], self.adapter.null_context(context), context)
        return self.unet(seen, timesteps, context).sample

    def context(self, reference: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) uint8 cut-outs -> (B, tokens, width) what the UNet attends to."""
        return self.adapter(self.encoder(normalise(reference.float() / 255, self.encoder.config))[:, None])


def diffusion_loss(
    model: torch.nn.Module,
    batch: Batch,
    config: ImprintConfig,
    alpha_bar: torch.Tensor,
    generator: torch.Generator,
    dropout: float = CONDITION_DROPOUT,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error in the hole, each sample weighing the same, and the matte's loss: both (B,).

    z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps (Ho et al., arXiv 2006.11239, equation 4); the target is eps, or
    v = sqrt(a_t) eps - sqrt(1 - a_t) z_0 (Salimans and Ho, arXiv 2202.00512, section 4). The loss is IMPRINT's
    `|| eps - G(z_t, t, E(I)) ||^2` (section 3.1), restricted to the hole (section 3.2).
    """
    count, device = len(batch.target), batch.target.device
    timesteps = torch.randint(config.noise.timesteps, (count,), generator=generator, device=device)
    noise = torch.randn(batch.target.shape, generator=generator, device=device)
    dropped = torch.rand(count, generator=generator, device=device) < dropout
    signal, spread = (share.sqrt()[:, None, None, None] for share in (alpha_bar[timesteps], 1 - alpha_bar[timesteps]))
    clean = batch.target.float()
    noisy = signal * clean + spread * noise
    target = noise if config.noise.prediction_type == "epsilon" else signal * noise - spread * clean
    seen = unet_input(noisy, batch.background.float(), batch.hole.float(), config)
    prediction, logits = split_matte(model(batch.reference, seen, timesteps, dropped).float(), config)
    error = (F.mse_loss(prediction, target, reduction="none") * batch.hole).sum((1, 2, 3))
    return error / (batch.hole.sum((1, 2, 3)) * clean.shape[1]), matte_loss(logits, batch, alpha_bar[timesteps])


def matte_loss(logits: torch.Tensor, batch: Batch, signal: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of alpha and shadow in the hole where they are known: (B,), 0 for a model without a matte.

    logits (B, 2 * matte**2, h, w). Weighed by the signal's share of power (B,): the matte is read off finished latents, and
    nothing can be told from noise.
    """
    target = batch.matte.float()
    known = (target >= 0) * batch.hole
    error = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none") * known
    return signal * error.sum((1, 2, 3)) / known.sum((1, 2, 3)).clamp(min=1)


class Source:
    """Endless batches: a block of pairs is made and encoded, then used `reuse` times with fresh noise.

    Making pairs costs about as much as training on them once. Which pairs a step sees depends on the seed, the process
    and the step alone, so that a continued run sees the same.
    """

    def __init__(
        self,
        maker: PairMaker | StreamedPairs,
        autoencoder,
        options: argparse.Namespace,
        rank: int,
        device: torch.device,
    ):
        self.maker, self.autoencoder, self.options, self.rank, self.device = maker, autoencoder, options, rank, device
        self.block: tuple[int, Batch] | None = None

    def generator(self, *numbers: int) -> torch.Generator:
        """A generator for this process that depends on nothing but the seed and the numbers."""
        seed = 0
        for number in (self.options.seed, self.rank, *numbers):
            seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
        return torch.Generator(self.device).manual_seed(seed)

    def make(self, count: int, generator: torch.Generator) -> Batch:
        """`count` encoded pairs, made in parts that fit the memory."""
        config, parts = self.maker.config, []
        precision = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            for start in range(0, count, self.options.chunk):
                with torch.autocast(self.device.type, enabled=False):
                    pairs = self.maker(min(self.options.chunk, count - start), generator)
                images = torch.cat([pairs.target, pairs.background]).contiguous(memory_format=torch.channels_last)
                target, background = encode(self.autoencoder, images, config.latent).to(precision).chunk(2)
                reference = (pairs.reference * 255).round().to(torch.uint8)
                matte = pairs.matte.to(precision)
                parts.append(Batch(reference, target.contiguous(), background.contiguous(), pairs.hole, matte))
        return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in Batch.__annotations__))

    def batch(self, step: int) -> Batch:
        """The pairs of a step."""
        size, reuse, batches = self.options.batch, self.options.reuse, self.options.block
        number, within = divmod(step, batches * reuse)
        if self.block is None or self.block[0] != number:
            self.block = None  # frees the last one first
            if isinstance(self.maker, StreamedPairs):
                self.maker.turn = number // self.options.refresh
            self.block = number, self.make(batches * size, self.generator(1, number))
        turn, index = divmod(within, batches)
        order = torch.randperm(batches * size, generator=self.generator(2, number, turn), device=self.device)
        return self.block[1][order[index * size : (index + 1) * size]]


@torch.no_grad()
def update_average(average: torch.nn.Module, model: torch.nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights towards the model's: an exponential average that at first forgets faster.

    With a fixed decay the first, random weights would still make up a tenth of the average after two thousand steps.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)


def learning_rate(done: int, options: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine to `final_lr` of the peak; `done` counts pictures."""
    warm = (done + 1) / max(1, options.warmup)
    progress = min(1.0, done / options.images)
    cosine = options.final_lr + (1 - options.final_lr) * (0.5 + 0.5 * math.cos(math.pi * progress))
    return options.lr * min(1.0, warm) * cosine


class Run:
    """A training run: its folder, its state, and the loop."""

    def __init__(self, options: argparse.Namespace):
        self.began = time.monotonic()
        self.options, self.stage = options, STAGES[options.stage]
        self.accelerator = Accelerator(
            mixed_precision=options.precision, cpu=options.device == "cpu", step_scheduler_with_optimizer=False
        )
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.folder = options.output
        torch.manual_seed(options.seed)  # fresh weights are the same in every process
        torch.set_float32_matmul_precision("high")

        source = load_checkpoint(options.init) if options.init else None
        if source and options.matte not in (None, source.config.matte):
            source = with_matte(source, options.matte)
        self.config = source.config if source else PRESETS[options.config]
        modules = build_modules(self.config, with_vae=False)
        if source:
            load_modules(modules, source)
        self.autoencoder = self._autoencoder(source)
        model = Model(modules).to(self.device, memory_format=torch.channels_last)
        # From random weights there is no trained UNet encoder to keep: stage 1 then trains all of the model.
        self.trained_names = ("",) if options.train_all or not source else self.stage.trained
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(self.trained_names) and "mask_token" not in name)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.ema = copy.deepcopy(model).requires_grad_(False)
        optimizer = torch.optim.AdamW(
            self.trained, lr=options.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=self.device.type == "cuda"
        )
        self.raw = model
        self.model, self.optimizer = self.accelerator.prepare(
            torch.compile(model) if options.compile else model, optimizer
        )
        self.accelerator.register_for_checkpointing(self.ema)
        self.alpha_bar = alphas_cumprod(self.config.noise).float().to(self.device)
        self.step_size = options.batch * self.accelerator.num_processes
        self.steps = math.ceil(options.images / self.step_size)

    def _autoencoder(self, source: Checkpoint | None):
        autoencoder = build_autoencoder(self.config.latent)
        if self.options.vae:
            try:
                tensors = load_file(self.options.vae)
            except (OSError, SafetensorError) as error:
                raise ImprintError(
                    f"{self.options.vae} cannot be read as an autoencoder ({error}); give a .safetensors file"
                ) from error
        elif source and "vae" in source.parts:
            tensors = source.parts["vae"]
        else:
            raise ImprintError(
                "no autoencoder: give --vae FILE (diffusers names), or --init with a checkpoint that has one"
            )
        expected = {name: tensor.shape for name, tensor in autoencoder.state_dict().items()}
        checked = Checkpoint(self.config, {"vae": tensors}, Path(self.options.vae or self.options.init))
        autoencoder.load_state_dict(checked.check("vae", expected))
        return autoencoder.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    def describe(self) -> dict:
        """The resolved run, as options.json holds it."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self.options).items()}
        parameters = sum(parameter.numel() for parameter in self.trained)
        return values | {
            "processes": self.accelerator.num_processes,
            "device": str(self.device) if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "steps": self.steps,
            "trained": "everything" if self.trained_names == ("",) else list(self.trained_names),
            "trained_parameters": parameters,
            "mix": self.stage.mix,
            "model": json.loads(self.config.to_json()),
        }

    def train(self) -> None:
        """Until `--images` are done or `--time-limit` is near; leaves a state to continue from and a checkpoint."""
        options = self.options
        step = self._resume()
        if options.compile:
            self.autoencoder.encoder.compile()
        source = Source(self._maker("train"), self.autoencoder, options, self.accelerator.process_index, self.device)
        validation = self._validation_set() if self.main else None
        if self.main:
            write_text(self.folder / "options.json", json.dumps(self.describe(), indent=1))
        bar = tqdm(
            total=options.images, initial=step * self.step_size, unit="picture", disable=not self.main, mininterval=2
        )
        totals, mark, marked_at = torch.zeros(3, device=self.device), step, time.monotonic()
        self.model.train()
        while step < self.steps:
            rate = learning_rate(step * self.step_size, options)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            generator = source.generator(3, step)
            losses = diffusion_loss(self.model, source.batch(step), self.config, self.alpha_bar, generator)
            loss, matte = (each.mean() for each in losses)
            self.accelerator.backward(loss + MATTE_WEIGHT * matte)
            norm = self.accelerator.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            update_average(self.ema, self.raw, step, options.ema)
            totals += torch.stack([loss.detach(), matte.detach(), norm])
            step += 1
            bar.update(min(self.step_size, options.images - bar.n))

            late = options.time_limit is not None and time.monotonic() - self.began > options.time_limit
            last = step == self.steps or self._agree(late, step)
            saving = step % options.save_every == 0 or last
            if step % options.log_every == 0 or saving:  # before every save, so that no bad state is kept
                mean = self.accelerator.reduce(totals, "mean") / (step - mark)
                if not bool(mean.isfinite().all()):
                    raise ImprintError(
                        f"the loss or gradient is not finite at step {step}; nothing was saved since the last state in "
                        f"{self.folder}: lower --lr and run the same command again"
                    )
                speed = (step - mark) * self.step_size / (time.monotonic() - marked_at)
                loss, matte, gradient = mean.tolist()
                self._log(bar, step, loss=loss, matte_loss=matte, gradient=gradient, lr=rate, pictures_per_second=speed)
                totals.zero_()
                mark, marked_at = step, time.monotonic()
            if saving:
                if self.main:
                    self._validate(bar, step, validation)
                self._save(step)
                marked_at = time.monotonic()
            if last:
                break
        bar.close()
        if self.main:
            self.export(self.folder / "checkpoint.safetensors")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _agree(self, late: bool, step: int) -> bool:
        """Whether any process is out of time; asked now and then, since it makes them wait for each other."""
        if self.options.time_limit is None or step % 10:
            return False
        return bool(self.accelerator.reduce(torch.tensor(float(late), device=self.device), "sum"))

    def _maker(self, split: str) -> PairMaker | StreamedPairs:
        options, side = self.options, self.config.resolution
        views, photos = inside(options.views, split), inside(options.photos, split)
        if options.pool is None:
            loaded = (
                Views.load(views, self.device, options.limit, side),
                Photos.load(photos, self.device, options.limit),
            )
            return PairMaker(self.config, options.stage, *loaded, self.stage.mix)
        # The held-out pairs are the first process's, of its first shards: the same in every run.
        part = (self.accelerator.process_index, self.accelerator.num_processes) if split == "train" else (0, 1)
        seed = options.seed if split == "train" else 0
        pools = (
            Pool(Views, views, self.device, options.pool, part, seed, side),
            Pool(Photos, photos, self.device, options.pool, part, seed),
        )
        return StreamedPairs(self.config, options.stage, *pools, self.stage.mix)

    def _validation_set(self) -> Batch:
        """Held-out pairs; the seed is fixed, so that all runs of a stage are tested on the same."""
        options = copy.copy(self.options)
        options.seed = 0
        source = Source(self._maker("held-out"), self.autoencoder, options, 0, self.device)
        return source.make(min(VALIDATION_SIZE, 8 * options.batch), source.generator(4))

    @torch.no_grad()
    def _validate(self, bar: tqdm, step: int, held_out: Batch) -> None:
        """The averaged model's loss on the held-out pairs, with fixed noise and nothing dropped; and pictures."""
        generator = torch.Generator(self.device).manual_seed(0)
        losses = []
        with self.accelerator.autocast():
            for start in range(0, len(held_out.target), self.options.batch):
                part = held_out[slice(start, start + self.options.batch)]
                losses.append(diffusion_loss(self.ema, part, self.config, self.alpha_bar, generator, dropout=0.0))
        loss, matte = (torch.cat(part).mean().item() for part in zip(*losses))
        self._log(bar, step, held_out_loss=loss, held_out_matte_loss=matte)
        self._sample(step, held_out[slice(0, min(SHOWN, self.options.batch))])

    def _sample(self, step: int, batch: Batch) -> None:
        """A grid of reference, background, composite, alpha where there is a matte, and target."""
        model = self.ema
        pipeline = ImprintPipeline(
            vae=self.autoencoder,
            encoder=model.encoder,
            adapter=model.adapter,
            unet=model.unet,
            scheduler=make_scheduler(self.config.noise),
            model_config=self.config,
        )
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator(self.device).manual_seed(0)
        noise = torch.randn(batch.target.shape, generator=generator, device=self.device)
        with self.accelerator.autocast():
            scene = model.context(batch.reference), batch.background.float(), batch.hole
            latents = pipeline.denoise(*scene, noise)
            shown = [
                decode(self.autoencoder, z.float(), self.config.latent)
                for z in (batch.background, latents, batch.target)
            ]
            if self.config.matte:
                alpha, _ = pipeline.predict_matte(*scene, latents)
                shown.insert(2, alpha[:, None].expand(-1, 3, -1, -1))
        side = shown[0].shape[-1]
        reference = F.interpolate(batch.reference.float() / 255, (side, side), mode="bilinear", antialias=True)
        rows = torch.cat([reference, *(picture.float() for picture in shown)], 3)
        half = math.ceil(len(rows) / 2)
        grid = torch.cat([torch.cat(list(rows[:half]), 1), torch.cat(list(rows[-half:]), 1)], 2)
        save_image(tensor_to_image(grid), self.folder / f"samples-{step * self.step_size:09d}.png")

    def _log(self, bar: tqdm, step: int, **values: float) -> None:
        if not self.main:
            return
        values = {"pictures": step * self.step_size, "step": step} | values
        with (self.folder / "stats.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        bar.set_postfix({name: f"{value:.4g}" for name, value in values.items() if isinstance(value, float)})

    def _save(self, step: int) -> None:
        """A state to continue from: written beside its place, then renamed; the newest few are kept."""
        self.accelerator.wait_for_everyone()
        temporary, final = self.folder / "state.tmp", self.folder / f"state-{step:09d}"
        if final.exists():
            return
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.main:
            os.replace(temporary, final)
            for old in sorted(self.folder.glob("state-*"))[:-KEPT_STATES]:
                shutil.rmtree(old)

    def _resume(self) -> int:
        """Continue from the newest state, if there is one; returns the steps done."""
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.folder / "state.tmp", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        states = sorted(self.folder.glob("state-*"))
        step = 0
        if states:
            self._same_options()
            self.accelerator.load_state(str(states[-1]))
            step = int(states[-1].name.removeprefix("state-"))
        if self.main:
            self._forget_after(step)
        return step

    def _same_options(self) -> None:
        """A run goes on with the options that it began with, save those that do not change what it learns."""
        before = json.loads((self.folder / "options.json").read_text())
        now = json.loads(json.dumps(self.describe()))
        changed = [name for name in now if name not in FREE_OPTIONS and before.get(name) != now[name]]
        if changed:
            raise ImprintError(
                f"{self.folder} was begun with {changed[0]} = {before.get(changed[0])!r}, not {now[changed[0]]!r}; "
                "give the same options to continue it, or another --output"
            )

    def _forget_after(self, step: int) -> None:
        """Drop log lines of steps that an interrupted run did after its last state."""
        path = self.folder / "stats.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = (line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step)
            write_text(path, "".join(kept))

    def export(self, path: Path) -> None:
        """The averaged weights in fp16 with the autoencoder, as nodes and pipeline load them."""
        model = self.ema
        modules = {"encoder": model.encoder, "adapter": model.adapter, "unet": model.unet, "vae": self.autoencoder}
        parts = {
            part: {name: tensor.half() for name, tensor in tensors.items()}
            for part, tensors in module_tensors(modules).items()
        }
        save_checkpoint(path, Checkpoint(self.config, parts))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; made, or continued")
    parser.add_argument("--views", required=True, help="folder or address with train/ and held-out/ shards of views")
    parser.add_argument("--photos", required=True, help="folder or address with train/ and held-out/ shards of photos")
    parser.add_argument("--pool", type=int, help="shards of each data set in memory at once; by default all")
    parser.add_argument(
        "--refresh", type=int, default=1, help="with --pool: blocks of pairs before the next shard comes"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, help="checkpoint to start from: stage 1's for stage 2, or one to fine-tune")
    start.add_argument("--config", choices=PRESETS, default="tiny", help="sizes of a model with random weights")
    parser.add_argument(
        "--matte",
        type=int,
        help="give --init's UNet a fresh matte of so many values along a latent cell's side; 0 = none",
    )
    parser.add_argument("--vae", type=Path, help="autoencoder, .safetensors with diffusers' names")
    parser.add_argument("--images", type=int, default=4_000_000, help="pictures to train on")
    parser.add_argument("--batch", type=int, default=512, help="pictures a step and process")
    parser.add_argument("--lr", type=float, help="peak learning rate; by default the stage's")
    parser.add_argument("--final-lr", type=float, default=0.03, help="learning rate at the end, as a part of the peak")
    parser.add_argument("--warmup", type=int, default=200_000, help="pictures of linear warm-up")
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights")
    parser.add_argument("--reuse", type=int, default=8, help="how often each pair is used, with fresh noise")
    parser.add_argument("--block", type=int, default=16, help="batches of pairs made at once")
    parser.add_argument("--chunk", type=int, default=256, help="pairs made in one piece; less needs less memory")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="mixed precision")
    parser.add_argument(
        "--train-all",
        action="store_true",
        help="freeze no part: for small models whose encoder is not a pretrained DINOv2",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="read only so many samples of each data set")
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument(
        "--save-every", type=int, default=1000, help="steps between states, held-out losses and samples"
    )
    parser.add_argument("--time-limit", type=float, help="seconds after which to save and stop")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved run and stop")
    options = parser.parse_args(argv)
    for name in ("images", "batch", "reuse", "block", "chunk", "log_every", "save_every", "pool", "refresh"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be 1 or more")
    if options.pool is not None and options.limit is not None:
        parser.error("--limit reads the first samples, --pool all shards in turn: give one of them")
    if options.stage == "compositing" and not (options.init or options.train_all):
        parser.error("stage 'compositing' starts from a checkpoint of stage 'views': give --init")
    if options.lr is None:
        options.lr = STAGES[options.stage].learning_rate
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    try:
        run = Run(options)
        if options.dry_run:
            print(json.dumps(run.describe(), indent=1))
        else:
            run.train()
    except ImprintError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
