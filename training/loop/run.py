"""A training run: one loop for all stages."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import time
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, ProjectConfiguration

from imprint.checkpoint import Checkpoint, load_checkpoint
from imprint.errors import ImprintError, require_number
from imprint.files import require_writable
from imprint.model import build_modules, load_modules
from imprint.noise import alphas_cumprod

from ..arguments import flattened
from ..pairs.batches import Batch
from ..pairs.draw import Draw
from ..pairs.pictures import Reading
from ..settings import STAGES, Train
from .account import account_of
from .checkpoints import Checkpoints
from .distillation import SUBSTEPS, Guided, SamplingPath, few_steps_loss
from .ema import Average, whole
from .layout import Rearranged, make_layout
from .log import Log
from .losses import diffusion_loss, draw_timesteps, loss_weights, translation_loss
from .meter import Meter
from .model import (
    LORA_TARGETS,
    Model,
    choose_trained,
    export,
    load_autoencoder,
    make_optimizer,
    require_trainable,
    sampling_config,
    with_matte,
)
from .resuming import Begun, changes
from .schedule import learning_rate
from .sizes import read_sizes
from .source import AnyPairMaker, BatchSource, open_pair_maker
from .state import State
from .stopping import stop_when_asked
from .text import TextEncoder
from .validation import Validation


class Run:
    """A training run: its model and optimizer, and the loop."""

    def __init__(self, settings: Train, start: Checkpoint | None = None):
        """start: weights to start from, by default those of --init. Raises `ImprintError` for unusable files."""
        self.began = time.monotonic()
        self.settings, self.stage = settings, STAGES[settings.stage]
        self.accelerator = make_accelerator(settings)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        torch.manual_seed(settings.seed)  # fresh weights are the same in every process
        torch.set_float32_matmul_precision("high")

        start = start or (load_checkpoint(settings.init) if settings.init else None)
        if start:
            require_trainable(start)
        if start and settings.matte not in (None, start.config.matte):
            if self.stage.lora:
                raise ImprintError(
                    f"--matte is {settings.matte}, and --init has {start.config.matte}: a LoRA's file holds no matte; "
                    "leave it out, or train it in stage 'compositing'"
                )
            start = with_matte(start, settings.matte)
        self.config = sampling_config(start.config, settings) if start else read_sizes(settings.sizes)
        with self.device:
            modules = build_modules(self.config, with_vae=False)
        if start:
            load_modules(modules, start)
        self.autoencoder = load_autoencoder(self.config, start, settings).to(
            self.device, memory_format=torch.channels_last
        )
        self._build(modules, fresh=start is None)
        self.alpha_bar = alphas_cumprod(self.config.noise).float().to(self.device)
        self.path = None
        if settings.distill_steps is not None:
            most = self.config.noise.timesteps // SUBSTEPS  # each of the teacher's steps has a timestep of its own
            require_number("--distill-steps", settings.distill_steps, 1, most, whole=True)
            spacing = self.config.noise.timestep_spacing
            if spacing != "trailing":
                raise ImprintError(
                    "--distill-steps needs a model whose timesteps are spaced 'trailing', since few steps must begin "
                    f"at pure noise, and those of {settings.init} are spaced '{spacing}'; give another --init"
                )
            self.path = SamplingPath(settings.distill_steps, self.config.noise, self.alpha_bar)
        processes = self.accelerator.num_processes
        self.layout = make_layout(processes, settings.batch, settings.accumulate, settings.global_batch)
        self.begun = Begun(self.layout, settings.images)
        self.step_size = self.layout.step_size
        self.steps = math.ceil(settings.images / self.step_size)
        self.text = None
        if settings.text_encoder and not self.stage.mix:
            self.text = TextEncoder(settings.text_encoder, self.config.unet.context_width, self.device)
        self.state = State(settings, self.accelerator)
        model = self.ema, self.autoencoder, self.config, self.stage
        self.checkpoints = Checkpoints(self.state, lambda path: export(*model, path))
        self.asked: list[int] = []

    def _build(self, modules: dict[str, torch.nn.Module], fresh: bool) -> None:
        """The model, its average, the teacher and the optimizer, spread over the processes."""
        settings, split = self.settings, self.split
        # FSDP needs contiguous parameters; bitsandbytes makes them contiguous at its first step, so they are so from
        # the start: a resumed run is then bit-identical.
        plain = split or settings.optimizer != "adamw"
        model = Model(modules, self.config).to(self.device, memory_format=None if plain else torch.channels_last)
        self.trained_names = choose_trained(model, self.stage, settings, fresh)
        self.teacher = None
        if settings.distill_steps is not None and split:
            raise ImprintError("--distill-steps needs a model that FSDP does not split; train it with DDP")
        distilled = settings.distill_guidance is not None or settings.distill_steps is not None
        start = copy.deepcopy(model).requires_grad_(False) if distilled else None
        self.average = Average(model, shared=not split, evaluates=self.main or not split)
        self.ema = self.average.module
        if settings.checkpointing:
            model.unet.enable_gradient_checkpointing()
            model.encoder.backbone.gradient_checkpointing_enable()
        optimizer = make_optimizer(model, settings, split)
        if settings.compile:
            # Checkpointed blocks are compiled one by one.
            alone = self.accelerator.num_processes == 1 and not settings.checkpointing
            model.compile_parts(settings.compile, whole=alone)
            self.autoencoder.encoder.compile(dynamic=False)
        self.raw = model
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if distilled:  # after the model, which is thereby the first one of a state
            self.teacher = self.accelerator.prepare_model(start, evaluation_mode=True)
            if settings.distill_guidance is not None:
                self.teacher = Guided(self.teacher, settings.distill_guidance)
        # Only now: FSDP has replaced the model's parameters by its own.
        self.trained = [parameter for parameter in self.raw.parameters() if parameter.requires_grad]
        self.average.follow(self.raw)
        self.accelerator.register_for_checkpointing(self.average)

    @property
    def split(self) -> bool:
        """Whether FSDP shards the model: it needs contiguous parameters, and its parts run only as one model."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    def described(self) -> dict[str, Any]:
        """The options, and what they resolved to: what options.json holds."""
        settings = self.settings
        return (
            flattened(settings)
            | settings.origin.described()
            | {
                "processes": self.accelerator.num_processes,
                "layout": dataclasses.asdict(self.layout),
                "begun": self.begun.to_dict(),
                "device": str(self.device) if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
                "steps": self.steps,
                "trained": "everything" if self.trained_names == ("",) else list(self.trained_names),
                "lora": LORA_TARGETS[self.settings.lora_layers] if self.stage.lora else None,
                "trained_parameters": sum(parameter.numel() for parameter in self.trained),
                "split": self.split,
                "mix": dict(settings.mix),
                "model": json.loads(self.config.to_json()),
            }
        )

    def maker(self, split: str, rank: int = 0, pictures: Reading | None = None) -> AnyPairMaker:
        """What makes the pairs of a split for the process of this original rank; pictures: of `read_ahead`."""
        process = rank, self.begun.layout.processes
        return open_pair_maker(self.settings, self.config, split, self.device, process, self.text, pictures)

    def source(self, pictures: Reading | None = None) -> BatchSource | Rearranged:
        """The training data of this process; pictures: of `read_ahead`."""
        tokens = self.raw.tokens if self.raw.encoder_is_frozen and not self.split else None
        settings = dataclasses.replace(self.settings, batch=self.begun.layout.batch)
        # All processes have all pictures.
        shared = self.maker("train", pictures=pictures) if settings.pool is None else None

        def of(rank: int) -> BatchSource:
            maker = shared or self.maker("train", rank)
            return BatchSource(maker, self.autoencoder, settings, rank, self.device, tokens)

        rank = self.accelerator.process_index
        return of(rank) if self.layout == self.begun.layout else Rearranged(of, self.begun.layout, self.layout, rank)

    def try_data_and_folder(self) -> None:
        """Raise `ImprintError` if a data set has no shard or an unreadable first sample, or the folder is not writable.

        Creates nothing.
        """
        self.state.try_data()
        require_writable(self.settings.output / "state")

    # --- the loop -----------------------------------------------------------------------------------------------------

    def train(self, pictures: Reading | None = None) -> None:
        """Train until `--images` are done, `--time-limit` has passed, or a signal asks to stop (`asked`).

        pictures: of `read_ahead`; without it they are read here. Writes states to resume from, and checkpoints. Raises
        `ImprintError` if another run writes into the folder.
        """
        require_writable(self.settings.output / "state")
        with self.state.locked():
            self._train(pictures)

    def _train(self, pictures: Reading | None) -> None:
        settings, now = self.settings, self.described()
        step, before = self.state.resume(now)
        self.begun = Begun.of(before)
        now["begun"] = self.begun.to_dict()
        self.average.gather()
        self.checkpoints.resume(step * self.step_size)
        source = self.source(pictures)
        validation = None
        if self.main:
            held_out = self.maker("held-out", pictures=pictures)
            validation = Validation(held_out, self.autoencoder, settings, self.accelerator, self.held_out_losses)
            self.state.describe(now)
            if step < self.steps:
                source.batch(step * self.layout.accumulate)  # the next step's, which is kept for it
            self.state.log_usable(account_of(source, validation.maker))
        log = Log(settings, self.state, Meter(self.config.noise.timesteps, self.device), step, self.layout, now)
        log.changes(step, changes(before, settings, self.layout, step * self.step_size))
        self.model.train()
        with stop_when_asked() as self.asked:
            while step < self.steps:
                rate = learning_rate(step * self.step_size, settings)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.step(source, step, log.meter)
                step += 1
                log.advance()

                last = step == self.steps or self._to_stop(step)
                saving = step % settings.save_every == 0 or last
                if step % settings.log_every == 0 or saving:  # before every save, so that no bad state is saved
                    log.steps(step, rate)
                if saving:
                    self._save(step, log, validation)
                if last:
                    break
        log.bar.close()
        self.checkpoints.finish(step * self.step_size)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _save(self, step: int, log: Log, validation: Validation | None) -> None:
        """The state and a checkpoint; in between, in the main process, held-out losses and samples."""
        self.average.gather()
        self.state.save(step)  # first: a signal's sender may not wait for held-out pairs
        if validation:
            nothing = self.text.nothing if self.text else None
            log.write(step, **validation.measure(self.ema, nothing))
            validation.sample(self.ema, step * self.step_size)
        self.checkpoints.keep(step * self.step_size)
        log.restart_clock()

    def step(self, source: BatchSource | Rearranged, step: int, meter: Meter) -> None:
        """One step of the optimizer and of the average, on `--accumulate` batches, without waiting for the device."""
        accumulate, clip = self.layout.accumulate, self.settings.clip or math.inf
        translated = 0 if self.stage.mix else self.begun.translated(self.settings.translation)
        if self.settings.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # the last step's outputs are no longer needed
        for index in range(step * accumulate, (step + 1) * accumulate):
            complete = (index + 1) % accumulate == 0  # only then do processes exchange gradients
            with nullcontext() if complete else self.accelerator.no_sync(self.model):
                loss = self.loss(source, index, meter, translate=step < translated)
                self.accelerator.backward(loss / accumulate)
        norm = whole(self.accelerator.clip_grad_norm_(self.trained, clip))
        self.average.wait()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(step, self.settings.ema)
        meter.add_gradient(norm, skipped=self.accelerator.optimizer_step_was_skipped)

    def loss(self, source: BatchSource | Rearranged, index: int, meter: Meter, translate: bool) -> torch.Tensor:
        """The mean loss of a batch; the meter gets each sample's unweighted loss."""
        settings, noise = self.settings, self.config.noise
        batch, draw, share = source.batch(index), source.draw(index), source.weight(index)
        if translate:
            error = translation_loss(self.model, batch, self.text.nothing, draw, settings.dropout)
            meter.add(error, weight=share)
            return share * error.mean()
        if self.path:
            error, matte, timesteps = few_steps_loss(
                self.model, self.teacher, self.path, batch, self.config, draw, settings.dropout
            )
        else:
            timesteps = draw_timesteps(len(batch.target), noise, settings.timesteps, draw)
            error, matte = diffusion_loss(
                self.model, batch, self.config, self.alpha_bar, draw, settings.dropout, timesteps, self.teacher
            )
        meter.add(error, matte, timesteps, share)
        weights = loss_weights(self.alpha_bar[timesteps], noise, settings.weighting)
        return share * ((weights * error).mean() + settings.matte_weight * matte.mean())

    def held_out_losses(self, model: Model, batch: Batch, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Each held-out pair's loss and its matte's, both (B,), of the model with averaged weights: nothing is dropped,
        and the truth is the picture, or, of a run to few steps, the teacher's drawing."""
        if self.path:
            return few_steps_loss(model, self.teacher, self.path, batch, self.config, draw)[:2]
        return diffusion_loss(model, batch, self.config, self.alpha_bar, draw)

    def _to_stop(self, step: int) -> bool:
        """Whether time is up or a signal came, in any process; checked rarely, since processes have to wait for it."""
        limit, several = self.settings.time_limit, self.accelerator.num_processes > 1
        if step % 10 and (several or not self.asked):
            return False
        stop = bool(self.asked) or (limit is not None and time.monotonic() - self.began > limit)
        return bool(self.accelerator.reduce(torch.tensor(float(stop), device=self.device), "sum")) if several else stop


def make_accelerator(settings: Train) -> Accelerator:
    """Accelerate with the machine options. Raises `ImprintError` if wandb is missing or processes are unconnected."""
    if settings.wandb and not find_spec("wandb"):
        raise ImprintError('--wandb needs the package wandb; install it with python -m pip install ".[wandb]"')
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        cpu=settings.device == "cpu",
        step_scheduler_with_optimizer=False,
        log_with=["tensorboard", "wandb"] if settings.wandb else ["tensorboard"],
        project_config=ProjectConfiguration(str(settings.output), logging_dir=str(settings.output / "tensorboard")),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # saves a copy of them
    )
    if (started := int(os.environ.get("WORLD_SIZE", 1))) > accelerator.num_processes:
        raise ImprintError(
            f"{started} processes were started, but torch sees no GPU here and does not connect them: each would "
            "train its own model; give --device cpu, or start one process"
        )
    return accelerator
