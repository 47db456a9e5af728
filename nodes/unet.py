"""ComfyUI's MODEL from an Imprint checkpoint: its UNet and how it sees the background."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

from ..imprint.checkpoint import Checkpoint
from ..imprint.config import ImprintConfig, UNetConfig
from ..imprint.errors import ImprintError
from ..imprint.unet import SIZE_WIDTH
from .local import LocalUNet, ToldModel
from .matte import MatteUNet
from .shapes import PLAIN_LAYERS, named_tensors, require_supported, shapes_of
from .vae import latent_format

_CONFIG = "imprint_config"  # the MODEL's attachment; every clone of the MODEL, with LoRA or without, keeps it


class CleanBackground(comfy.model_base.BaseModel):
    """IMPRINT's blend (arXiv 2403.10701, figure 2): outside the noise mask the UNet sees the clean background.

    Wherever the noise mask is 0, ComfyUI mixes this method's result into the noisy latent, with every sampler. Plain SD
    returns a noised background; the factor here is the one by which ComfyUI then divides the UNet's input.
    """

    def scale_latent_inpaint(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        sigma = sigma.reshape([sigma.shape[0]] + [1] * (latent_image.ndim - 1))
        return latent_image * (sigma**2 + self.model_sampling.sigma_data**2) ** 0.5


class SizedModel(comfy.model_base.SDXL):
    """SDXL with the picture's size as condition and without text: see `imprint.unet.conditions`."""

    def __init__(self, model_config: ModelConfig, model_type: Any, device: Any, unet_model: Any):
        # SDXL's own accepts no other UNet, and builds parts that only unCLIP needs.
        comfy.model_base.BaseModel.__init__(self, model_config, model_type, device, unet_model)
        self.embedder, self.noise_augmentor = Timestep(SIZE_WIDTH), None
        self.nothing = torch.zeros(1, self.adm_channels - 6 * SIZE_WIDTH)

    def encode_adm(self, **kwargs: Any) -> torch.Tensor:
        return super().encode_adm(**kwargs | {"pooled_output": self.nothing})


class SizedCleanBackground(CleanBackground, SizedModel):
    """SDXL with IMPRINT's blend."""


class ModelConfig(comfy.supported_models_base.BASE):
    """ComfyUI's description of the UNet."""

    unet_extra_config: dict = {}  # the base class would overwrite the attention heads

    def __init__(self, config: ImprintConfig):
        super().__init__(_unet_options(config.unet))
        self.is_sdxl = config.unet.pooled_width > 0
        known = comfy.supported_models.SDXL if self.is_sdxl else comfy.supported_models.SD15
        self.memory_usage_factor = known.memory_usage_factor
        self.background = config.background
        mask = "mask" if config.concat_mask == "hole" else "mask_inverted"
        mask_first = config.concat_order == "mask, background"
        self.concat_keys = (mask, "masked_image") if mask_first else ("masked_image", mask)
        self.changes = config.changes
        self.unet_model = comfy.model_base.UNetModel
        if config.matte or config.unet.local_levels:  # never both
            self.unet_model = partial(MatteUNet if config.matte else LocalUNet, config)
        self.prediction_type = config.noise.prediction_type
        self.sampling_settings = {
            "linear_start": config.noise.beta_start,
            "linear_end": config.noise.beta_end,
            "timesteps": config.noise.timesteps,
            "zsnr": config.noise.zero_terminal_snr,
        }
        self.latent_format = latent_format(config)

    def model_type(self, state_dict: dict, prefix: str = "") -> comfy.model_base.ModelType:
        types = comfy.model_base.ModelType
        return types.V_PREDICTION if self.prediction_type == "v_prediction" else types.EPS

    def get_model(self, state_dict: dict, prefix: str = "", device: Any = None) -> comfy.model_base.BaseModel:
        concat = self.background == "concat"
        if self.is_sdxl:
            kind = SizedModel if concat else SizedCleanBackground
        else:
            kind = comfy.model_base.BaseModel if concat else CleanBackground
        kind = ToldModel if self.changes else kind
        model_type = self.model_type(state_dict, prefix)
        model = kind(self, model_type=model_type, device=device, unet_model=self.unet_model)
        if concat:
            model.set_inpaint()
            model.concat_keys = self.concat_keys  # set_inpaint's are SD-inpainting's
        return model


def build_model(checkpoint: Checkpoint, disable_dynamic: bool = False) -> Any:
    """Part `unet` as a MODEL (a ModelPatcher), with the dtype and devices that ComfyUI chooses."""
    config = checkpoint.config
    require_supported(
        (config.latent.channels, config.latent.downscale) == (4, 8), checkpoint, "another latent space than SD's"
    )
    require_supported(config.unet.mid_transformer_layers > 0, checkpoint, "a UNet without attention in its middle")
    manage, core = comfy.model_management, ModelConfig(config)
    shapes = shapes_of(core.unet_model(**core.unet_config, device="meta", operations=PLAIN_LAYERS))
    names = {name: name for name in shapes if name.startswith("local.")}
    for theirs, name in comfy.utils.unet_to_diffusers(core.unet_config).items():
        if not theirs.startswith("class_embedding."):  # SDXL's conditions a second time
            names[theirs] = name
    tensors = named_tensors(checkpoint, "unet", shapes, names)

    load_device, supported = manage.get_torch_device(), core.supported_inference_dtypes
    dtype = manage.unet_dtype(
        model_params=comfy.utils.calculate_parameters(tensors),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(tensors),
    )
    core.set_inference_dtype(dtype, manage.unet_manual_cast(dtype, load_device, supported))
    model = core.get_model({})
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=load_device, offload_device=manage.unet_offload_device())
    if not manage.is_device_cpu(patcher.offload_device):
        model.to(patcher.offload_device)
    model.load_model_weights(tensors, "", assign=patcher.is_dynamic())
    patcher.set_attachments(_CONFIG, config)
    return patcher


def imprint_config(model: Any) -> ImprintConfig:
    """The configuration of one of our MODELs. Raises `ImprintError` for any other."""
    config = model.get_attachment(_CONFIG)
    if config is None:
        raise ImprintError(
            f"the MODEL is a {type(model.model).__name__} that does not come from an Imprint checkpoint; "
            "connect the MODEL of Imprint: Load Checkpoint"
        )
    return config


def _unet_options(unet: UNetConfig) -> dict[str, Any]:
    """The UNet's options in the terms of ComfyUI's UNetModel."""
    per_level, blocks = list(zip(unet.transformer_layers, unet.widths, unet.heads)), unet.layers_per_block
    return {
        "image_size": 32,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": unet.widths[0],
        "num_res_blocks": [blocks] * len(unet.widths),
        "channel_mult": [width // unet.widths[0] for width in unet.widths],
        "transformer_depth": [depth for depth in unet.transformer_layers for _ in range(blocks)],
        "transformer_depth_output": [depth for depth in unet.transformer_layers for _ in range(blocks + 1)],
        "transformer_depth_middle": unet.mid_transformer_layers,
        "context_dim": unet.context_width,
        # The middle has the last level's heads, also where that level's own blocks have no attention.
        **_head_options((width, heads) for depth, width, heads in [*per_level[:-1], (1, *per_level[-1][1:])] if depth),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": unet.linear_projections,
        **({"attn_precision": torch.float32} if unet.upcast_attention else {}),
        "legacy": False,
        "use_checkpoint": False,
        "num_classes": "sequential" if unet.pooled_width else None,  # latent diffusion's name for additional conditions
        "adm_in_channels": unet.pooled_width + 6 * SIZE_WIDTH if unet.pooled_width else None,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }


def _head_options(levels: Iterable[tuple[int, int]]) -> dict[str, int]:
    """ComfyUI supports heads of one width everywhere, or one number of heads everywhere."""
    levels = list(levels)
    widths, counts = {width / heads for width, heads in levels}, {heads for _, heads in levels}
    if len(widths) == 1 and (width := widths.pop()).is_integer():
        return {"num_heads": -1, "num_head_channels": int(width)}
    if len(counts) == 1:
        return {"num_heads": counts.pop(), "num_head_channels": -1}
    raise ImprintError(
        f"the UNet's levels with attention have (width, heads) {levels}; ComfyUI needs the same number of heads, or "
        "heads of the same width, at all of them: use the Python pipeline for this checkpoint"
    )
