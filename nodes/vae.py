"""ComfyUI's VAE from an Imprint checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.diffusers_convert
import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.sd
import comfy.taesd.taesd
import torch

from ..imprint.checkpoint import Checkpoint
from ..imprint.config import ImprintConfig
from .shapes import shapes_of

_KL = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def latent_format(config: ImprintConfig) -> Any:
    """SD 1.5's or SDXL's latent format, with the factor between the UNet's latents and the LATENTs."""
    kind = comfy.latent_formats.SDXL() if config.unet.pooled_width else comfy.latent_formats.SD15()
    # With SD's own factor TAESD's LATENTs are interchangeable with SD's, as everywhere in ComfyUI.
    kind.scale_factor = config.latent.scale_factor * (kind.scale_factor if config.latent.autoencoder == "tiny" else 1)
    return kind


def build_vae(checkpoint: Checkpoint) -> Any:
    """Part `vae` as a VAE: TAESD or SD's own."""
    tensors = checkpoint.parts["vae"]
    with torch.device("meta"):
        if checkpoint.config.latent.autoencoder == "tiny":
            factor = latent_format(checkpoint.config).scale_factor / checkpoint.config.latent.scale_factor
            tensors = _taesd_names(tensors, factor)
            plain = comfy.taesd.taesd.TAESD(latent_channels=checkpoint.config.latent.channels)
        else:
            if checkpoint.names == "diffusers":
                tensors = comfy.diffusers_convert.convert_vae_state_dict(tensors)
            plain = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=_KL, embed_dim=_KL["z_channels"])
    # Checked under ComfyUI's names, since ComfyUI itself would only warn.
    tensors = replace(checkpoint, parts={"vae": tensors}).check("vae", shapes_of(plain))
    vae = comfy.sd.VAE(sd=dict(tensors))
    vae.throw_exception_if_invalid()
    return vae


def _taesd_names(tensors: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """diffusers' names of TAESD -> ComfyUI's, with SD's factor; unknown names are kept and reported later."""
    named = {"vae_scale": torch.tensor(factor, device="cpu"), "vae_shift": torch.tensor(0.0, device="cpu")}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".layers.")
        index, _, rest = rest.partition(".")
        if part in ("encoder", "decoder") and index.isdecimal():
            # ComfyUI's decoder starts with a layer of its own, the clamp.
            name = f"taesd_{part}.{int(index) + (part == 'decoder')}.{rest}"
        named[name] = tensor
    return named
