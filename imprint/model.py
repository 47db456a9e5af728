"""A model's parts: built from a configuration, filled from a checkpoint, and named as a checkpoint names them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .adapter import ContentAdapter
from .checkpoint import Checkpoint, load_checkpoint
from .config import ImprintConfig
from .encoder import IDEncoder
from .errors import ImprintError, require_one_of
from .unet import build_control, build_unet
from .vae import build_autoencoder

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load_model(
    path: str | os.PathLike, dtype: torch.dtype = torch.float32, vae: torch.nn.Module | None = None
) -> tuple[ImprintConfig, dict[str, torch.nn.Module]]:
    """A checkpoint's configuration and its modules, frozen and ready to generate.

    vae: an autoencoder of the configuration's kind, for a checkpoint that holds none. Raises `ImprintError` as
    `load_checkpoint` does, when there is no autoencoder or one of other latents, and for a dtype that cannot be drawn
    with.
    """
    require_one_of("the dtype", dtype, _DTYPES)
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    if vae is None and "vae" not in checkpoint.parts:
        raise ImprintError(
            f"{path} holds no autoencoder (kind '{config.latent.autoencoder}'); pass one as `vae=`, for example "
            "diffusers' AutoencoderKL.from_pretrained(...)"
        )
    with Unfilled():
        modules = build_modules(config, with_vae=vae is None)
    load_modules(modules, checkpoint, dtype)
    found = getattr(getattr(vae, "config", None), "latent_channels", None)
    if vae is not None and found != config.latent.channels:
        what = f"makes latents of {found} channels" if found else f"is of type {type(vae).__name__}"
        raise ImprintError(
            f"the given vae {what}, and {path} needs a diffusers autoencoder of {config.latent.channels} channels "
            f"(kind '{config.latent.autoencoder}')"
        )
    modules.setdefault("vae", vae)
    for module in modules.values():
        # Not module.to(): diffusers warns there of modules to keep in fp32 even where the list of them is empty.
        torch.nn.Module.to(module, dtype).eval().requires_grad_(False)
    return config, modules


def build_modules(config: ImprintConfig, with_vae: bool = True) -> dict[str, torch.nn.Module]:
    """The parts of a model with fresh weights, by the names of `checkpoint.ALL_PARTS`."""
    modules = {
        "encoder": IDEncoder(config.encoder),
        "adapter": ContentAdapter(config.adapter),
        "unet": build_unet(config.unet, config.resolution // config.latent.downscale, config.encoder.width),
    }
    if config.background == "control":
        modules["control"] = build_control(config.unet)
    if with_vae:
        modules["vae"] = build_autoencoder(config.latent)
    return modules


def module_tensors(modules: dict[str, torch.nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    """The modules' tensors as a checkpoint names them."""
    return {
        part: module.hub_state_dict() if isinstance(module, IDEncoder) else module.state_dict()
        for part, module in modules.items()
    }


def load_modules(modules: dict[str, torch.nn.Module], checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> None:
    """Copy the checkpoint's tensors into the modules.

    dtype: of the modules' parameters afterwards, which then replace the modules' own; None: they keep theirs. Raises
    `ImprintError` unless all names and shapes are the same.
    """
    for part, owns in module_tensors(modules).items():
        tensors = checkpoint.check(part, {name: own.shape for name, own in owns.items()})
        module = modules[part]
        load = module.load_hub_state_dict if isinstance(module, IDEncoder) else module.load_state_dict
        if dtype is None:
            load(tensors)
        else:
            kinds = {name: dtype if own.is_floating_point() else own.dtype for name, own in owns.items()}
            new = {name: tensor.to(owns[name].device, kinds[name], copy=True) for name, tensor in tensors.items()}
            load(new, assign=True)


class Unfilled(TorchFunctionMode):
    """New modules without random weights, for which no memory is used before they are replaced."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is torch.nn.init.kaiming_uniform_:  # torch's own default, which most weights have
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def computes_in_bf16() -> bool:
    """Whether this processor has instructions for it; without them torch is slower in bf16 than in fp32."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every torch, and private
    return any(getattr(torch.cpu, name, bool)() for name in asked)
