"""The trained parts as one module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from imprint.checkpoint import Checkpoint, save_checkpoint
from imprint.config import PRESETS, ImprintConfig
from imprint.errors import ImprintError, from_extra
from imprint.files import replacing
from imprint.matte import MAPS
from imprint.model import module_tensors
from imprint.preprocess import normalise
from imprint.unet import predict
from imprint.vae import build_autoencoder

from ..settings import STAGES, Stage, Train

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_TARGETS = {
    "attention": _ATTENTION,  # as in diffusers' own examples
    # as in LCM-LoRA (arXiv 2311.05556): feed-forward layers, convolutions, and how they are told the timestep
    "all": [
        *_ATTENTION,
        *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"),
    ],
}


class Model(torch.nn.Module):
    """The trained parts as one module, so that one compile, one DDP and one average cover them."""

    def __init__(self, modules: dict[str, torch.nn.Module], config: ImprintConfig):
        super().__init__()
        self.imprint_config = config
        self.encoder, self.adapter, self.unet = (modules[part] for part in ("encoder", "adapter", "unet"))

    def forward(
        self, reference: torch.Tensor, seen: torch.Tensor | None, timesteps: torch.Tensor | None, dropped: torch.Tensor
    ) -> torch.Tensor:
        """reference as in `context`, seen (B, C', h, w), timesteps (B,), dropped (B,) bool -> the UNet's output.

        Without `seen`, what the UNet would attend to: (B, tokens, width).
        """
        context = self.context(reference)
        context = torch.where(dropped[:, None, None], self.adapter.null_context(context), context)
        return context if seen is None else predict(self.unet, seen, timesteps, context, self.imprint_config)

    def context(self, reference: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) uint8 cut-outs, or their `tokens` -> (B, tokens, width) what the UNet attends to."""
        tokens = self.tokens(reference) if reference.dtype == torch.uint8 else reference
        return self.adapter(tokens[:, None])

    def tokens(self, reference: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) uint8 cut-outs -> (B, N, C) the ID encoder's tokens."""
        return self.encoder(normalise(reference.float() / 255, self.encoder.config))

    @property
    def encoder_is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def compile_parts(self, mode: str, whole: bool = False) -> None:
        """torch.compile, in place, what takes the time: the UNet block by block, adapter, and encoder if it is trained.

        mode: torch.compile's. whole: the UNet as one graph, for a single process: fewer pauses and kernels, but all
        gradients come at its end. Of blocks, DDP sends the gradients of one while the one before it still computes; its
        own way of cutting graphs for that is turned off.
        """
        torch._dynamo.config.optimize_ddp = False
        torch._dynamo.config.recompile_limit = 64  # counts the blocks of a class together
        blocks = [self.unet] if whole else [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]
        parts = [self.adapter, *blocks]
        for part in parts if self.encoder_is_frozen else [self.encoder, *parts]:
            part.compile(mode=mode, dynamic=False)
        if self.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last):
            for part in self.unet.modules():
                if isinstance(part, torch.nn.Conv2d):
                    part.register_forward_pre_hook(in_channels_last)


def in_channels_last(_convolution: torch.nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """A convolution's input in channels_last.

    Without being asked the compiler lays out in NCHW what it computes again for the backward pass, a norm's output for
    instance, and cuDNN copies each; so the kernel that computes it writes channels_last.
    """
    return (given[0].contiguous(memory_format=torch.channels_last),)


def require_trainable(checkpoint: Checkpoint) -> None:
    """Raise `ImprintError` for a model that training cannot run."""
    config = checkpoint.config
    if config.changes or config.background == "control":
        how = (
            "is told what to change of the object, as ControlCom's"
            if config.changes
            else "has a ControlNet, as AnyDoor"
        )
        raise ImprintError(
            f"{checkpoint.path} is of a model that {how}, which can be used, but not trained here; give another --init"
        )


def choose_trained(model: Model, stage: Stage, settings: Train, fresh: bool) -> tuple[str, ...]:
    """Freeze all but the stage's part; frozen parameters get no gradients and no state in the optimizer.

    fresh: whether the weights are random. Returns the prefixes of the trained parameters, ("",) for all.
    """
    if stage.lora:
        from peft import LoraConfig

        # alpha = rank: the addition counts as it is, in every program that reads the file
        targets = LORA_TARGETS[settings.lora_layers]
        lora = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=targets)
        model.unet.add_adapter(lora)
    # From random weights there is no trained UNet encoder to keep: stage 1 then trains all of the model.
    everything = not stage.lora and (settings.train_all or fresh)
    names = ("",) if everything else stage.trained
    for name, parameter in model.named_parameters():
        learns = name.startswith(names) and (not stage.lora or ".lora_" in name)
        parameter.requires_grad_(learns and "mask_token" not in name)
    return names


def load_autoencoder(config: ImprintConfig, start: Checkpoint | None, settings: Train) -> torch.nn.Module:
    """The frozen autoencoder of --vae, or of the checkpoint. Raises `ImprintError` if neither has one that fits."""
    autoencoder = build_autoencoder(config.latent)
    if settings.vae:
        try:
            tensors = load_file(settings.vae)
        except (OSError, SafetensorError) as error:
            raise ImprintError(
                f"{settings.vae} cannot be read as an autoencoder ({error}); give a .safetensors file"
            ) from error
    elif start and "vae" in start.parts:
        tensors = start.parts["vae"]
    else:
        raise ImprintError(
            "no autoencoder: give --vae FILE (diffusers names), or --init with a checkpoint that has one"
        )
    expected = {name: tensor.shape for name, tensor in autoencoder.state_dict().items()}
    checked = Checkpoint(config, {"vae": tensors}, Path(settings.vae or settings.init or start.path))
    autoencoder.load_state_dict(checked.check("vae", expected))
    return autoencoder.eval().requires_grad_(False)


def export_lora(unet: torch.nn.Module, path: Path) -> None:
    """Write the UNet's LoRA in fp16 under kohya's names, which ComfyUI's LoRA loader and diffusers both read."""
    from diffusers.utils import convert_state_dict_to_kohya
    from peft.utils import get_peft_model_state_dict

    tensors = convert_state_dict_to_kohya(get_peft_model_state_dict(unet))
    with replacing(path) as temporary:
        save_file({f"lora_unet_{name}": tensor.half().contiguous() for name, tensor in tensors.items()}, temporary)


def with_matte(checkpoint: Checkpoint, cells: int) -> Checkpoint:
    """The checkpoint with an untrained matte of `cells` values along a latent cell's side, or with none for 0.

    The usual prediction is unchanged. Raises `ImprintError` unless `cells` divides the latent cell's pixels.
    """
    config = checkpoint.config
    channels = config.latent.channels
    unet = replace(config.unet, out_channels=channels + len(MAPS) * cells**2)
    config = replace(config, matte=cells, unet=unet)  # checks that it fits, before any tensor is made
    grown = dict(checkpoint.parts["unet"])
    for name in ("conv_out.weight", "conv_out.bias"):
        kept = grown[name][:channels]
        grown[name] = torch.cat([kept, kept.new_zeros(unet.out_channels - channels, *kept.shape[1:])])
    return replace(checkpoint, config=config, parts=checkpoint.parts | {"unet": grown})


def sampling_config(config: ImprintConfig, settings: Train) -> ImprintConfig:
    """The configuration with its default guidance and steps: those that are distilled, or the original ones after
    training on pictures. A LoRA's file cannot hold them."""
    sampling, few, lora = config.sampling, settings.distill_steps, STAGES[settings.stage].lora
    # Checkpoints distilled before this was recorded get their preset's.
    usual = next((each for each in PRESETS.values() if each.latent == config.latent), PRESETS["tiny"]).sampling
    distilled = sampling.guidance_scale == 1
    before = (sampling.undistilled_guidance or usual.guidance_scale) if distilled else sampling.guidance_scale
    if settings.distill_guidance is not None:
        sampling = replace(sampling, guidance_scale=1.0, undistilled_guidance=before)
    elif distilled and not (lora or few):  # few steps are learned from a model, with its guidance
        sampling = replace(sampling, guidance_scale=before, undistilled_guidance=0.0)
    if not lora:
        own = sampling.undistilled_steps or sampling.steps
        sampling = replace(sampling, steps=few or own, undistilled_steps=own if few else 0)
    return replace(config, sampling=sampling)


def make_optimizer(model: Model, settings: Train, split: bool) -> torch.optim.Optimizer:
    """AdamW for the trained parameters, with state in 32 or 8 bits (arXiv 2110.02861); split: whether FSDP shards them.

    Raises `ImprintError` if 8 bits are not available.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    how = dict(lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, fused=trained[0].is_cuda, **how)
    flag = f"--optimizer {settings.optimizer}"
    if not trained[0].is_cuda or split:
        raise ImprintError(
            f"{flag} needs an unsharded model on a GPU, and this one is {'split by FSDP' if split else 'on the CPU'}; "
            "leave it out"
        )
    return from_extra("bitsandbytes", "bitsandbytes", flag).optim.AdamW8bit(trained, **how)


def export(model: Model, autoencoder: torch.nn.Module, config: ImprintConfig, stage: Stage, path: Path) -> None:
    """Write the weights in fp16, as nodes and pipeline load them: all parts and the autoencoder, or only the LoRA."""
    if stage.lora:
        export_lora(model.unet, path)
        return
    modules = {"encoder": model.encoder, "adapter": model.adapter, "unet": model.unet, "vae": autoencoder}
    parts = {
        part: {name: tensor.half() for name, tensor in tensors.items()}
        for part, tensors in module_tensors(modules).items()
    }
    save_checkpoint(path, Checkpoint(config, parts))
