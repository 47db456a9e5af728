"""A training run."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import re
import shutil
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, ProjectConfiguration
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm

from imprint.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from imprint.config import PRESETS, ImprintConfig
from imprint.errors import ImprintError
from imprint.files import write_text
from imprint.images import (
    save_image,
    tensor_to_image,
)
from imprint.matte import matte_pixels
from imprint.noise import alphas_cumprod, make_scheduler
from imprint.pipeline import ImprintPipeline, build_modules, load_modules, module_tensors
from imprint.unet import build_autoencoder, decode

from ..data.shards import SPLITS, inside, list_shards
from ..pairs.batches import Batch
from ..pairs.captions import Captions
from ..pairs.making import PairMaker
from ..pairs.pictures import Photos, Views
from ..pairs.streams import Pool, StreamedPairs
from ..settings import FREE_OPTIONS, STAGES
from .ema import Average, whole
from .losses import MATTE_WEIGHT, Guided, diffusion_loss, draw_timesteps, loss_weights, translation_loss
from .meter import Meter
from .model import LORA_TARGETS, Model, export_lora, with_matte
from .source import Source, sides_and_shares
from .text import TextEncoder

KEPT_STATES = 2
VALIDATION_SIZE = 512  # pairs, the same for every run of a stage
SHOWN = 16  # of them, as pictures


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
        if options.wandb and not find_spec("wandb"):
            raise ImprintError('--wandb needs the package wandb; install it with python -m pip install ".[wandb]"')
        self.accelerator = Accelerator(
            mixed_precision=options.precision,
            cpu=options.device == "cpu",
            step_scheduler_with_optimizer=False,
            log_with=["tensorboard", "wandb"] if options.wandb else ["tensorboard"],
            project_config=ProjectConfiguration(str(options.output), logging_dir=str(options.output / "tensorboard")),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # saves a copy of them
        )
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.folder = options.output
        torch.manual_seed(options.seed)  # fresh weights are the same in every process
        torch.set_float32_matmul_precision("high")

        source = self._start()
        if source and options.matte not in (None, source.config.matte):
            source = with_matte(source, options.matte)
        self.config = self._guided(source.config) if source else PRESETS[options.config]
        with self.device:
            modules = build_modules(self.config, with_vae=False)
        if source:
            load_modules(modules, source)
        self.autoencoder = self._autoencoder(source)
        split = self.accelerator.distributed_type == DistributedType.FSDP  # which needs plainly laid out parameters
        model = Model(modules).to(self.device, memory_format=None if split else torch.channels_last)
        self._choose_trained(model, fresh=source is None)
        self.teacher = None
        if options.distill_guidance is not None:
            start = self.accelerator.prepare_model(copy.deepcopy(model).requires_grad_(False), evaluation_mode=True)
            self.teacher = Guided(start, options.distill_guidance)
        self.average = Average(model, shared=not split, evaluates=self.main or not split)
        self.ema = self.average.module
        if options.checkpointing:
            model.unet.enable_gradient_checkpointing()
            model.encoder.backbone.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=options.lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=self.device.type == "cuda",
        )
        if options.compile:
            model.compile_parts(options.compile)
            self.autoencoder.encoder.compile(dynamic=False)
        self.raw = model
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # Only now: FSDP has put its own parameters in the place of the model's.
        self.trained = [parameter for parameter in self.raw.parameters() if parameter.requires_grad]
        self.average.follow(self.raw)
        self.accelerator.register_for_checkpointing(self.average)
        self.alpha_bar = alphas_cumprod(self.config.noise).float().to(self.device)
        self.step_size = options.batch * options.accumulate * self.accelerator.num_processes
        self.steps = math.ceil(options.images / self.step_size)
        self.translated = 0 if self.stage.mix else round(self.steps * options.translation)
        self.text = None
        if options.text_encoder and not self.stage.mix:
            self.text = TextEncoder(options.text_encoder, self.config.unet.context_width, self.device)

    def _start(self) -> Checkpoint | None:
        """The weights to start from; None for random ones."""
        return load_checkpoint(self.options.init) if self.options.init else None

    def _guided(self, config: ImprintConfig) -> ImprintConfig:
        """With the guidance to sample with: none once it is learned, and again the usual one after more training."""
        scale = config.sampling.guidance_scale
        if self.options.distill_guidance is not None:
            scale = 1.0
        elif scale == 1 and not self.stage.lora:
            scale = PRESETS["tiny"].sampling.guidance_scale
        return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, guidance_scale=scale))

    def _choose_trained(self, model: Model, fresh: bool) -> None:
        """Freeze all but the stage's part; frozen parameters get no gradients and no state in the optimizer."""
        if self.stage.lora:
            from peft import LoraConfig

            # alpha = rank: the addition counts as it is, in every program that reads the file
            lora = LoraConfig(r=self.options.rank, lora_alpha=self.options.rank, target_modules=LORA_TARGETS)
            model.unet.add_adapter(lora)
        # From random weights there is no trained UNet encoder to keep: stage 1 then trains all of the model.
        everything = not self.stage.lora and (self.options.train_all or fresh)
        self.trained_names = ("",) if everything else self.stage.trained
        for name, parameter in model.named_parameters():
            learns = name.startswith(self.trained_names) and (not self.stage.lora or ".lora_" in name)
            parameter.requires_grad_(learns and "mask_token" not in name)

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
            "lora": LORA_TARGETS if self.stage.lora else None,
            "trained_parameters": parameters,
            "mix": self.stage.mix,
            "model": json.loads(self.config.to_json()),
        }

    def train(self) -> None:
        """Until `--images` are done or `--time-limit` is near; leaves a state to continue from and a checkpoint."""
        options = self.options
        step = self._resume()
        source = self.source()
        validation = self._validation_set() if self.main else None
        if self.main:
            write_text(self.folder / "options.json", json.dumps(self.describe(), indent=1))
            write_text(self.folder / "data.json", json.dumps(self._shards(), indent=1))
        self.accelerator.init_trackers(
            "imprint",
            init_kwargs={
                # What an interrupted run logged after its last state is done again.
                "tensorboard": {"purge_step": step * self.step_size + 1},
                "wandb": {"name": self.folder.name, "config": self.describe()},
            },
        )
        bar = tqdm(
            total=options.images, initial=step * self.step_size, unit="picture", disable=not self.main, mininterval=2
        )
        meter, mark, marked_at = Meter(self.config.noise.timesteps, self.device), step, time.monotonic()
        self.model.train()
        while step < self.steps:
            rate = learning_rate(step * self.step_size, options)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.step(source, step, meter)
            step += 1
            bar.update(min(self.step_size, options.images - bar.n))

            late = options.time_limit is not None and time.monotonic() - self.began > options.time_limit
            last = step == self.steps or self._agree(late, step)
            saving = step % options.save_every == 0 or last
            if step % options.log_every == 0 or saving:  # before every save, so that no bad state is kept
                values = meter.read(self.accelerator, step - mark, options.accumulate)
                if not all(math.isfinite(value) for value in values.values() if isinstance(value, float)):
                    raise ImprintError(
                        f"the loss or gradient is not finite at step {step}; {self._last_state()}: lower --lr and run the "
                        "same command again"
                    )
                speed = (step - mark) * self.step_size / (time.monotonic() - marked_at)
                self._log(bar, step, **values, lr=rate, pictures_per_second=speed)
                mark, marked_at = step, time.monotonic()
            if saving:
                self.average.gather()
                if self.main:
                    self._validate(bar, step, validation)
                self._save(step)
                marked_at = time.monotonic()
            if last:
                break
        bar.close()
        self.average.gather()
        if self.main:
            self.export()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def step(self, source: Source, step: int, meter: Meter) -> None:
        """One step of the optimizer and of the average, on `--accumulate` batches; waits for nothing."""
        accumulate = self.options.accumulate
        if self.options.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs gave out is no longer needed
        for index in range(step * accumulate, (step + 1) * accumulate):
            complete = (index + 1) % accumulate == 0  # only then do processes exchange gradients
            with nullcontext() if complete else self.accelerator.no_sync(self.model):
                loss = self._loss(source, index, meter, translate=step < self.translated)
                self.accelerator.backward(loss / accumulate)
        norm = whole(self.accelerator.clip_grad_norm_(self.trained, 1.0))
        self.average.wait()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(step, self.options.ema)
        meter.add_gradient(norm, skipped=self.accelerator.optimizer_step_was_skipped)

    def source(self) -> Source:
        """The training data of this process."""
        split = self.accelerator.distributed_type == DistributedType.FSDP  # whose parts only run as one
        tokens = self.raw.tokens if self.raw.encoder_is_frozen and not split else None
        rank = self.accelerator.process_index
        return Source(self._maker("train"), self.autoencoder, self.options, rank, self.device, tokens)

    def _loss(self, source: Source, index: int, meter: Meter, translate: bool) -> torch.Tensor:
        """The mean loss of a batch; the meter gets each sample's own, before any weight."""
        batch, generator = source.batch(index), source.generator(3, index)
        if translate:
            error = translation_loss(self.model, batch, source.maker.nothing, generator)
            meter.add(error)
            return error.mean()
        noise = self.config.noise
        timesteps = draw_timesteps(len(batch.target), noise, self.options.timesteps, generator)
        error, matte = diffusion_loss(
            self.model, batch, self.config, self.alpha_bar, generator, timesteps=timesteps, teacher=self.teacher
        )
        meter.add(error, matte, timesteps)
        weights = loss_weights(self.alpha_bar[timesteps], noise, self.options.weighting)
        return (weights * error).mean() + MATTE_WEIGHT * matte.mean()

    def _agree(self, late: bool, step: int) -> bool:
        """Whether any process is out of time; asked now and then, since it makes them wait for each other."""
        if self.options.time_limit is None or step % 10:
            return False
        return bool(self.accelerator.reduce(torch.tensor(float(late), device=self.device), "sum"))

    def _maker(self, split: str) -> PairMaker | StreamedPairs | Captions:
        options = self.options
        largest = max(side for side, _ in sides_and_shares(options, self.config))
        side = options.view_side or largest
        if not self.stage.mix:
            return Captions(inside(options.captions, split), self.config, self.text, self.device, options.limit)
        views, photos = inside(options.views, split), inside(options.photos, split)
        photo_side = largest * 3 // 2  # crops of it are shown at the pictures' side
        if options.pool is None:
            loaded = (
                Views.load(views, self.device, options.limit, side),
                Photos.load(photos, self.device, options.limit, photo_side),
            )
            return PairMaker(self.config, options.stage, *loaded, self.stage.mix)
        # The held-out pairs are the first process's, of its first shards: the same in every run.
        part = (self.accelerator.process_index, self.accelerator.num_processes) if split == "train" else (0, 1)
        seed = options.seed if split == "train" else 0
        pools = (
            Pool(Views, views, self.device, options.pool, part, seed, side),
            Pool(Photos, photos, self.device, options.pool, part, seed, photo_side),
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
        losses, translated = [], []
        with self.accelerator.autocast():
            for start in range(0, len(held_out.target), self.options.batch):
                part = held_out[slice(start, start + self.options.batch)]
                losses.append(diffusion_loss(self.ema, part, self.config, self.alpha_bar, generator, dropout=0.0))
                if self.text:
                    translated.append(translation_loss(self.ema, part, self.text.nothing, generator, dropout=0.0))
        loss, matte = (torch.cat(part).mean().item() for part in zip(*losses))
        values = {"held_out_loss": loss, "held_out_matte_loss": matte}
        if translated:
            values["held_out_translation_loss"] = torch.cat(translated).mean().item()
        self._log(bar, step, **values)
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
            context = model.context(batch.reference)
            latents, logits = pipeline.denoise(context, batch.background.float(), batch.hole, noise)
            shown = [
                decode(self.autoencoder, z.float(), self.config.latent)
                for z in (batch.background, latents, batch.target)
            ]
            if self.config.matte:
                alpha, _ = matte_pixels(logits, batch.hole, self.config)
                shown.insert(2, alpha[:, None].expand(-1, 3, -1, -1))
        side = shown[0].shape[-1]
        reference = F.interpolate(batch.reference.float() / 255, (side, side), mode="bilinear", antialias=True)
        rows = torch.cat([reference, *(picture.float() for picture in shown)], 3)
        half = math.ceil(len(rows) / 2)
        grid = torch.cat([torch.cat(list(rows[:half]), 1), torch.cat(list(rows[-half:]), 1)], 2)
        save_image(tensor_to_image(grid), self.folder / f"samples-{step * self.step_size:09d}.png")
        for tracker in self.accelerator.trackers:
            tracker.log_images({"samples": grid[None].cpu()}, step=step * self.step_size)

    def _log(self, bar: tqdm, step: int, **values: float | dict[str, float]) -> None:
        if not self.main:
            return
        with (self.folder / "stats.jsonl").open("a") as file:
            file.write(json.dumps({"pictures": step * self.step_size, "step": step} | values) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, float)}
        bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()})
        for name, group in values.items():
            if isinstance(group, dict):
                numbers |= {f"{name}/{part}": value for part, value in group.items()}
        self.accelerator.log(numbers, step=step * self.step_size)

    def _save(self, step: int) -> None:
        """A state to continue from: written beside its place, then renamed; the newest few are kept."""
        self.accelerator.wait_for_everyone()
        temporary, final = self.folder / "state.tmp", self.folder / f"state-{step:09d}"
        if final.exists():
            return
        try:
            self.accelerator.save_state(str(temporary))
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch has no class of its own for a file that cannot be written
            if isinstance(error, RuntimeError) and not re.search("inline_container|PytorchStreamWriter", str(error)):
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            raise ImprintError(
                f"the state of step {step} cannot be written ({str(error).partition(chr(10))[0]}); {self._last_state()}: make "
                "room on the disk and run the same command again"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.main:
            os.replace(temporary, final)
            for old in self._states()[:-KEPT_STATES]:
                shutil.rmtree(old)

    def _resume(self) -> int:
        """Continue from the newest state, if there is one; returns the steps done."""
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.folder / "state.tmp", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        states = self._states()
        step = 0
        if states:
            self._same_options()
            self._same_data()
            self.accelerator.load_state(str(states[-1]))
            step = int(states[-1].name.removeprefix("state-"))
        if self.main:
            self._forget_after(step)
        return step

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*"))

    def _last_state(self) -> str:
        """What is left of the run, for a message."""
        states = self._states()
        return f"{states[-1]} is whole and the last one" if states else f"{self.folder} holds no state yet"

    def _shards(self) -> dict[str, dict[str, int | None]]:
        """The run's shards, and the sizes in bytes of those on a disk: which pairs a step sees depends on all of them."""
        found = {}
        for name in ("views", "photos") if self.stage.mix else ("captions",):
            for split in SPLITS:
                shards = list_shards(inside(getattr(self.options, name), split))
                sizes = {
                    Path(shard).name: Path(shard).stat().st_size if "://" not in shard else None for shard in shards
                }
                found[f"{name}/{split}"] = sizes
        return found

    def _same_data(self) -> None:
        """A run goes on with the shards that it began with."""
        path = self.folder / "data.json"
        if not path.exists():
            return
        before, now = json.loads(path.read_text()), self._shards()
        for folder in sorted(before.keys() | now.keys()):
            then, there = before.get(folder, {}), now.get(folder, {})
            for shard in sorted(then.keys() | there.keys()):
                if then.get(shard) != there.get(shard):
                    was, is_now = (f"of {part[shard]:,} bytes" if shard in part else "absent" for part in (then, there))
                    raise ImprintError(
                        f"the shard {folder}/{shard} was {was} when {self.folder} was begun, and is {is_now}; put it as it "
                        "was to continue, or give another --output"
                    )

    def _same_options(self) -> None:
        """A run goes on with the options that it began with, save those that do not change what it learns."""
        before = json.loads((self.folder / "options.json").read_text())
        now = json.loads(json.dumps(self.describe()))
        changed = [name for name in now if name not in FREE_OPTIONS and before.get(name, now[name]) != now[name]]
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

    def export(self) -> None:
        """The averaged weights in fp16, as nodes and pipeline load them: all with the autoencoder, or the LoRA alone."""
        model = self.ema
        if self.stage.lora:
            export_lora(model.unet, self.folder / "lora.safetensors")
            return
        modules = {"encoder": model.encoder, "adapter": model.adapter, "unet": model.unet, "vae": self.autoencoder}
        parts = {
            part: {name: tensor.half() for name, tensor in tensors.items()}
            for part, tensors in module_tensors(modules).items()
        }
        save_checkpoint(self.folder / "checkpoint.safetensors", Checkpoint(self.config, parts))
