"""ComfyUI's own MODEL, CLIP_VISION and VAE, and the adapter, from the parts of an Imprint checkpoint.

Nothing of `comfy` is patched. Names are looked up when they are used: ComfyUI replaces `CoreModelPatcher` after it has
imported the nodes.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.clip_vision
import comfy.diffusers_convert
import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.utils
import comfyui_version
import torch

from ..imprint.adapter import ContentAdapter
from ..imprint.checkpoint import Checkpoint
from ..imprint.config import EncoderConfig, ImprintConfig, UNetConfig, dinov2
from ..imprint.errors import ImprintError, require_finite
from ..imprint.light import LightNet, load_light
from ..imprint.matte import matte_pixels, split_matte
from ..imprint.noise import FINITE_SIGMA
from ..imprint.preprocess import MEAN_AND_STD
from ..imprint.third_party import kind_of, open_checkpoint
from .tensors import PRECISION

LEAST_COMFYUI = (0, 25)
"""The first one that builds a DINOv2 for pictures of another size than 518 px."""

_SECOND_ORDER = {"heun", "dpm_2", "dpm_2_ancestral", "dpm_fast", "dpm_adaptive"}
_SECOND_ORDER |= {"dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu"}
# The steps from which a sampler stands a scheduler's uneven steps: the third order and ipndm_v extrapolate from them, the two
# that choose their own steps leave the very last one out, those of second order with noise have too few to take it away
# again, and res_multistep's coefficients take no account of noise, or of guidance's second picture.
_THIRD_ORDER = {"normal": math.inf, "ddim_uniform": math.inf, "kl_optimal": 20}
_NOT_LINEAR = {"linear_quadratic": math.inf}
_WITH_NOISE = dict.fromkeys(("karras", "exponential", "normal", "ddim_uniform", "kl_optimal"), 20)
_FEW_WITH_NOISE = {"normal": 8, "ddim_uniform": 8}
_UNEVEN = {
    "dpmpp_3m_sde": _THIRD_ORDER,
    "dpmpp_3m_sde_gpu": _THIRD_ORDER,
    "dpm_fast": _NOT_LINEAR,
    "dpm_adaptive": _NOT_LINEAR,
    "ipndm_v": _NOT_LINEAR,
    "dpm_2_ancestral": {"karras": 8, "exponential": 8},
    "dpmpp_2m_sde_heun": _FEW_WITH_NOISE,
    "dpmpp_2m_sde_heun_gpu": _FEW_WITH_NOISE,
    "res_multistep_cfg_pp": {"karras": 20, "exponential": 20},
    "res_multistep_ancestral": _WITH_NOISE,
    "res_multistep_ancestral_cfg_pp": _WITH_NOISE | {"beta": 20},
}
_SPREAD = {"linear_quadratic"}  # of equal steps in sigma: from 4,518 down, all but the last would see noise alone

_CONFIG = "imprint_config"  # the MODEL's attachment; every clone of the MODEL, with LoRA or without, keeps it
_MATTE = "imprint_matte"  # in the transformer_options: the `MatteReader`
_SD_SCALE = 0.18215  # SD 1.5's factor. With it TAESD's LATENTs are, like in all of ComfyUI, interchangeable with SD's

# Plain layers to ask for names and shapes: with dynamic VRAM, comfy.ops' own have no weights before they are loaded.
_PLAIN = SimpleNamespace(
    Linear=torch.nn.Linear,
    Conv2d=torch.nn.Conv2d,
    GroupNorm=torch.nn.GroupNorm,
    LayerNorm=torch.nn.LayerNorm,
    Embedding=torch.nn.Embedding,
    conv_nd=lambda dims, *args, **kwargs: torch.nn.Conv2d(*args, **kwargs),
)


class _AdapterModule(ContentAdapter):
    device = None  # a plain attribute instead of the property: the ModelPatcher writes the weights' device here


class Adapter:
    """The content adapter under ComfyUI's memory management, like its CLIP_VISION objects."""

    def __init__(self, checkpoint: Checkpoint):
        self.config = checkpoint.config.adapter
        tensors = checkpoint.check("adapter", _shapes(ContentAdapter(self.config, device="meta")))
        manage = comfy.model_management
        self.load_device, offload_device = manage.text_encoder_device(), manage.text_encoder_offload_device()
        dtype = manage.text_encoder_dtype(self.load_device)
        self.model = _AdapterModule(self.config, comfy.ops.manual_cast, dtype=dtype, device=offload_device).eval()
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.model, load_device=self.load_device, offload_device=offload_device
        )
        self.model.load_state_dict(tensors, strict=False, assign=self.patcher.is_dynamic())

    @torch.no_grad()
    def contexts(self, tokens: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, V, N, C) tokens -> the context with the object and the one without, both (1, V * N', C')."""
        comfy.model_management.load_model_gpu(self.patcher)
        context = self.model(tokens.to(self.load_device, torch.float32))
        device = comfy.model_management.intermediate_device()
        return self.model.scale(context, strength).to(device), self.model.null_context(context).to(device)


class _LightModule(LightNet):
    device = None  # as in `_AdapterModule`


class Light:
    """The light network of a file under ComfyUI's memory management. Raises `ImprintError` as `load_light` does."""

    def __init__(self, path: str):
        net, manage = load_light(path), comfy.model_management
        model = _LightModule(net.config).eval().requires_grad_(False)
        model.load_state_dict(net.state_dict())
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            model, load_device=manage.get_torch_device(), offload_device=manage.unet_offload_device()
        )

    def loaded(self) -> LightNet:
        """The network, where it runs; for `relight`."""
        comfy.model_management.load_model_gpu(self.patcher)
        return self.patcher.model


class CleanBackground(comfy.model_base.BaseModel):
    """IMPRINT's blend (arXiv 2403.10701, figure 2): outside the noise mask the UNet sees the clean background.

    Wherever the noise mask is 0, ComfyUI mixes this method's result into the noisy latent, with every sampler. Plain SD
    returns a noised background; the factor here is the one by which ComfyUI then divides the UNet's input.
    """

    def scale_latent_inpaint(self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, **_: Any):
        sigma = sigma.reshape([sigma.shape[0]] + [1] * (latent_image.ndim - 1))
        return latent_image * (sigma**2 + self.model_sampling.sigma_data**2) ** 0.5


class MatteUNet(comfy.model_base.UNetModel):
    """A UNet that also predicts a matte; ComfyUI sees a usual one, which gives the usual prediction alone.

    The matte of each positive conditioning goes to the `MatteReader` in the transformer_options, if there is one.
    """

    def __init__(self, config: ImprintConfig, **options: Any):
        super().__init__(**options)
        self.imprint = config

    # Not `forward`: the patches that ComfyUI wraps around this method expect the latent's number of channels.
    def _forward(self, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
        transformer_options = {} if transformer_options is None else transformer_options
        output = super()._forward(x, timesteps, context, y, control, transformer_options, **kwargs)
        prediction, matte = split_matte(output, self.imprint)
        if _MATTE in transformer_options:
            kinds = transformer_options["cond_or_uncond"]  # of the batch's chunks: 0 for a positive conditioning
            each = zip(kinds, matte.chunk(len(kinds)))
            transformer_options[_MATTE].logits += [logits for kind, logits in each if kind == 0]
        return prediction


class MatteReader:
    """Reads the matte off sampling's last evaluation: `common_ksampler(reader.watch(model), ...)`, then `reader.read`.

    An object under `_MATTE`, not a function: a compiled UNet would be compiled again for each new one.
    """

    def __init__(self):
        self.logits: list[torch.Tensor] = []  # of each positive conditioning, (B, 2 * matte**2, h, w)

    def watch(self, model: Any) -> Any:
        """A clone of the MODEL to sample with."""
        watched = model.clone()
        watched.model_options["transformer_options"][_MATTE] = self
        watched.add_wrapper(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, self._evaluate)
        return watched

    def _evaluate(self, proceed: Any, base: Any, conditionings: list, *arguments: Any) -> list[torch.Tensor]:
        """ComfyUI's wrapper of one evaluation of all conditionings, in one batch or in several."""
        earlier, self.logits = self.logits, []
        predictions = proceed(base, conditionings, *arguments)
        # A patch may leave an evaluation out; and others, like PAG and SAG, add one of a single conditioning, to push
        # the picture away from what it gives.
        if not self.logits or len(conditionings) == 1:
            self.logits = earlier
        return predictions

    def read(self, hole: torch.Tensor, config: ImprintConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """Alpha and shadow, each (B, h * downscale, w * downscale), in the latents' hole (B, 1, h, w); 0 outside.

        Conditionings that were combined are averaged as ComfyUI does. Raises `ImprintError` where none was seen whole.
        """
        seen, self.logits = self.logits, []
        # A conditioning of an area alone is evaluated on that part of the latents.
        whole = [each.to(hole) for each in seen if each[:, :1].shape == hole.shape]
        if not whole:
            raise ImprintError(
                "sampling gave no matte of the whole picture: a patch of the MODEL leaves it out, or every positive "
                "conditioning is for an area alone; remove that patch or area"
            )
        logits = require_finite(torch.stack(whole).mean(0), "the matte that was predicted", PRECISION)
        return matte_pixels(logits, hole, config)


class ModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI needs to know of the UNet."""

    unet_extra_config: dict = {}  # the base class would overwrite the attention heads
    memory_usage_factor = 1.0

    def __init__(self, config: ImprintConfig):
        super().__init__(_unet_options(config.unet))
        self.background = config.background
        mask = "mask" if config.concat_mask == "hole" else "mask_inverted"
        mask_first = config.concat_order == "mask, background"
        self.concat_keys = (mask, "masked_image") if mask_first else ("masked_image", mask)
        self.unet_model = partial(MatteUNet, config) if config.matte else comfy.model_base.UNetModel
        self.prediction_type = config.noise.prediction_type
        self.sampling_settings = {
            "linear_start": config.noise.beta_start,
            "linear_end": config.noise.beta_end,
            "timesteps": config.noise.timesteps,
            "zsnr": config.noise.zero_terminal_snr,
        }
        scale = config.latent.scale_factor * (_SD_SCALE if config.latent.autoencoder == "tiny" else 1)
        self.latent_format = comfy.latent_formats.SD15(scale)

    def model_type(self, state_dict: dict, prefix: str = "") -> comfy.model_base.ModelType:
        types = comfy.model_base.ModelType
        return types.V_PREDICTION if self.prediction_type == "v_prediction" else types.EPS

    def get_model(self, state_dict: dict, prefix: str = "", device: Any = None) -> comfy.model_base.BaseModel:
        concat = self.background == "concat"
        kind = comfy.model_base.BaseModel if concat else CleanBackground
        model_type = self.model_type(state_dict, prefix)
        model = kind(self, model_type=model_type, device=device, unet_model=self.unet_model)
        if concat:
            model.set_inpaint()
            model.concat_keys = self.concat_keys  # set_inpaint's are SD-inpainting's
        return model


def load(path: str) -> tuple[Any, Any, Adapter, Any]:
    """A file -> MODEL, CLIP_VISION, adapter and VAE; None for the VAE of a file that holds none.

    Raises `ImprintError` for an older ComfyUI than `LEAST_COMFYUI`, and as `open_checkpoint` does.
    """
    version = comfyui_version.__version__
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_COMFYUI:
        least = ".".join(map(str, LEAST_COMFYUI))
        raise ImprintError(f"this is ComfyUI {version}, and Imprint's models need {least} or newer; update ComfyUI")
    checkpoint = open_checkpoint(path)
    if checkpoint.names == "ldm":
        logging.info("Imprint: %s is read as an original of kind %s", path, kind_of(checkpoint.config))
    built = {part: build(checkpoint) for part, build in _BUILDERS.items() if part in checkpoint.parts}
    for part, thing in built.items():
        # ComfyUI reads the part again by this for hooks under dynamic VRAM, and for a second GPU.
        _patcher(thing).cached_patcher_init = (reload_patcher, (path, part))
    return built["unet"], built["encoder"], built["adapter"], built.get("vae")


def reload_patcher(path: str, part: str, disable_dynamic: bool = False) -> Any:
    """One part's ModelPatcher, fresh from the file. Like in ComfyUI, only a UNet comes without dynamic VRAM."""
    checkpoint = open_checkpoint(path)
    return _patcher(build_model(checkpoint, disable_dynamic) if part == "unet" else _BUILDERS[part](checkpoint))


def imprint_config(model: Any) -> ImprintConfig:
    """The configuration of a MODEL of ours. Raises `ImprintError` for any other."""
    config = model.get_attachment(_CONFIG)
    if config is None:
        raise ImprintError(
            f"the MODEL is a {type(model.model).__name__} that does not come from an Imprint checkpoint; "
            "connect the MODEL of Imprint: Load Checkpoint"
        )
    return config


def start_where_it_stands(model: Any, sampler_name: str, scheduler: str, steps: int) -> None:
    """For samplers and schedulers that do not stand the MODEL's largest sigmas: leave out those above `FINITE_SIGMA`.

    In place, so give a clone. Raises `ImprintError` for a sampler that does not stand the scheduler's steps.
    """
    if steps < _UNEVEN.get(sampler_name, {}).get(scheduler, 0):
        raise ImprintError(
            f"{sampler_name} draws garbage in {steps} steps of scheduler {scheduler}, which are too uneven for it; set "
            "scheduler to simple, or sampler_name to dpmpp_2m"
        )
    sampling = model.get_model_object("model_sampling")
    if (sampler_name in _SECOND_ORDER or scheduler in _SPREAD) and sampling.sigma_max > FINITE_SIGMA:
        finite = copy.deepcopy(sampling)
        finite.set_sigmas(sampling.sigmas[sampling.sigmas <= FINITE_SIGMA])
        model.add_object_patch("model_sampling", finite)


def encoder_config(clip_vision: Any) -> EncoderConfig:
    """How to prepare a CLIP_VISION's input: from our checkpoint, or by DINOv2's sizes at 224 px for ComfyUI's own."""
    if hasattr(clip_vision, "imprint_encoder"):
        return clip_vision.imprint_encoder
    if clip_vision.model_type != "dinov2":
        raise ImprintError(
            f"the CLIP_VISION is a '{clip_vision.model_type}' of another loader, and only DINOv2 can come from there; "
            "connect the CLIP_VISION of Imprint: Load Checkpoint"
        )
    sizes = clip_vision.config
    return dinov2(
        width=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        swiglu=sizes["use_swiglu_ffn"],
    )


@torch.no_grad()
def encode_views(clip_vision: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Prepared views (V, 3, S, S) -> their tokens after the last LayerNorm, CLS first or alone: (1, V, N, C).

    Not `encode_image`: that one crops, resizes and rounds to 8 bit what `prepare_object` has already made fit.
    """
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    config = encoder_config(clip_vision)
    tokens = clip_vision.model(pixel_values=pixels.to(clip_vision.load_device, torch.float32))[0]
    if config.output == "cls":
        tokens = tokens[:, :1]
    if config.kind == "clip":  # ComfyUI's model normalises the CLS token alone
        tokens = clip_vision.model.vision_model.post_layernorm(tokens)
    return tokens[None].to(comfy.model_management.intermediate_device())


def build_model(checkpoint: Checkpoint, disable_dynamic: bool = False) -> Any:
    """Part `unet` as a MODEL (a ModelPatcher), with the dtype and devices that ComfyUI chooses."""
    config = checkpoint.config
    _need((config.latent.channels, config.latent.downscale) == (4, 8), checkpoint, "another latent space than SD 1.5")
    _need(config.unet.mid_transformer_layers > 0, checkpoint, "a UNet without attention in its middle")
    manage, core = comfy.model_management, ModelConfig(config)
    shapes = _shapes(comfy.model_base.UNetModel(**core.unet_config, device="meta", operations=_PLAIN))
    names = {name: name for name in shapes}  # ComfyUI's own are latent diffusion's
    if checkpoint.names == "diffusers":
        names = comfy.utils.unet_to_diffusers(core.unet_config)
        names = {diffusers: name for diffusers, name in names.items() if name in shapes}  # it also lists absent layers
    tensors = checkpoint.check("unet", {theirs: shapes[name] for theirs, name in names.items()})

    weight_dtype, load_device, supported = (
        comfy.utils.weight_dtype(tensors),
        manage.get_torch_device(),
        core.supported_inference_dtypes,
    )
    dtype = manage.unet_dtype(
        model_params=comfy.utils.calculate_parameters(tensors), supported_dtypes=supported, weight_dtype=weight_dtype
    )
    core.set_inference_dtype(dtype, manage.unet_manual_cast(dtype, load_device, supported))
    model = core.get_model({})
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=load_device, offload_device=manage.unet_offload_device())
    if not manage.is_device_cpu(patcher.offload_device):
        model.to(patcher.offload_device)
    model.load_model_weights({names[name]: tensor for name, tensor in tensors.items()}, "", assign=patcher.is_dynamic())
    patcher.set_attachments(_CONFIG, config)
    return patcher


def build_clip_vision(checkpoint: Checkpoint) -> Any:
    """Part `encoder` as a CLIP_VISION."""
    encoder = checkpoint.config.encoder
    _need(encoder.register_tokens == 0, checkpoint, "a DINOv2 with register tokens")
    dinov2_ratio = encoder.kind == "clip" or encoder.mlp_ratio == 4
    _need(dinov2_ratio, checkpoint, f"a DINOv2 with an MLP ratio of {encoder.mlp_ratio}")
    mean, std = MEAN_AND_STD[encoder.kind]
    options = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "patch_size": encoder.patch_size,
        "image_size": encoder.image_size,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if encoder.kind == "clip":
        options |= {
            "model_type": "clip_vision_model",
            "intermediate_size": encoder.width * encoder.mlp_ratio,
            "hidden_act": "quick_gelu",
            "num_channels": 3,
        }
    else:
        options |= {
            "model_type": "dinov2",
            "use_swiglu_ffn": encoder.swiglu,
            "layer_norm_eps": 1e-6,
            "use_mask_token": True,
        }
    plain = comfy.clip_vision.IMAGE_ENCODERS[options["model_type"]](options, torch.float32, "meta", _PLAIN)
    tensors = checkpoint.check("encoder", _shapes(plain))
    clip_vision = comfy.clip_vision.ClipVisionModel(options)
    clip_vision.load_sd(tensors)
    clip_vision.imprint_encoder = encoder
    return clip_vision


def build_vae(checkpoint: Checkpoint) -> Any:
    """Part `vae` as a VAE: TAESD or SD's own."""
    tensors = checkpoint.parts["vae"]
    with torch.device("meta"):
        if checkpoint.config.latent.autoencoder == "tiny":
            tensors = _taesd_names(tensors)
            plain = comfy.taesd.taesd.TAESD(latent_channels=checkpoint.config.latent.channels)
        else:
            if checkpoint.names == "diffusers":
                tensors = comfy.diffusers_convert.convert_vae_state_dict(tensors)
            plain = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=_KL, embed_dim=_KL["z_channels"])
    # Compared under ComfyUI's names, which it would only warn about.
    tensors = replace(checkpoint, parts={"vae": tensors}).check("vae", _shapes(plain))
    vae = comfy.sd.VAE(sd=dict(tensors))
    vae.throw_exception_if_invalid()
    return vae


_BUILDERS = {"unet": build_model, "encoder": build_clip_vision, "adapter": Adapter, "vae": build_vae}
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


def _need(condition: bool, checkpoint: Checkpoint, what: str) -> None:
    if not condition:
        raise ImprintError(f"{checkpoint.path} has {what}, which ComfyUI cannot run; use the Python pipeline for it")


def _patcher(thing: Any) -> Any:
    return getattr(thing, "patcher", thing)


def _shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _unet_options(unet: UNetConfig) -> dict[str, Any]:
    """The UNet in the words of ComfyUI's UNetModel."""
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
        "use_linear_in_transformer": False,
        "legacy": False,
        "use_checkpoint": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }


def _head_options(levels: Iterable[tuple[int, int]]) -> dict[str, int]:
    """ComfyUI knows heads of one width everywhere, or one number of heads everywhere."""
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


def _taesd_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names of TAESD -> ComfyUI's, with the scale of its latents; unknown names stay and are found later."""
    named = {"vae_scale": torch.tensor(_SD_SCALE, device="cpu"), "vae_shift": torch.tensor(0.0, device="cpu")}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".layers.")
        index, _, rest = rest.partition(".")
        if part in ("encoder", "decoder") and index.isdecimal():
            # ComfyUI's decoder starts with a layer of its own, the clamp.
            name = f"taesd_{part}.{int(index) + (part == 'decoder')}.{rest}"
        named[name] = tensor
    return named
