"""A checkpoint to train from, made of a published Stable Diffusion UNet and DINOv2."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from imprint.adapter import ContentAdapter
from imprint.checkpoint import Checkpoint
from imprint.config import PRESETS, EncoderConfig, ImprintConfig
from imprint.encoder import IDEncoder, from_meta_names
from imprint.errors import ImprintError
from imprint.model import build_modules, module_tensors
from imprint.released import read_tensors
from imprint.third_party import PREFIXES, with_diffusers_names

from .model import with_matte

_KINDS = {"dinov2": "dinov2", "dinov2_with_registers": "dinov2", "dinov3_vit": "dinov3"}
"""transformers' types and ours."""
_DINOV2_HEAD_WIDTH = 64  # of every DINOv2 that Meta released
_TEXT_TOKENS = 77  # of CLIP's text encoder
_CURE = "give the model that --sizes names or one of its sizes, or the --sizes that the files were made for"


def start(
    unet: Path,
    encoder: Path,
    config: ImprintConfig,
    background: str | None = None,
    vae: Path | None = None,
    adapter: str | None = None,
) -> Checkpoint:
    """A checkpoint of pretrained UNet, autoencoder and encoder, and a fresh adapter and matte that fit them.

    unet: a diffusers folder of Stable Diffusion or SDXL, or one file with latent diffusion's names. encoder: a folder
    of DINOv2 or DINOv3 in the hub's layout, or DINOv2's `.pth` of Meta; its sizes replace the configuration's.
    background: `blend` or `concat`, by default the configuration's. vae: another autoencoder, a folder in diffusers'
    layout. adapter: `tokens`, or `conv` with as many tokens as CLIP's text; by default the configuration's. Raises
    `ImprintError` for files that are missing or unsafe, or lack the tensors that the configuration requires.
    """
    backbone, matte = _read_encoder(encoder, config.encoder), config.matte
    config = _fitted(config, backbone.config, background, adapter)
    parts = {"encoder": _resampled(backbone, config.encoder), "adapter": ContentAdapter(config.adapter).state_dict()}
    with torch.device("meta"):
        modules = build_modules(config)
    if unet.is_dir():
        parts["unet"] = pretrained(type(modules["unet"]), unet / "unet").state_dict()
        vae = vae or unet / "vae"
    else:
        parts |= _ldm_parts(unet, ("unet",) if vae else ("unet", "vae"), config)
    if vae:
        parts["vae"] = pretrained(type(modules["vae"]), vae).state_dict()
    expected = module_tensors(modules)
    if "conv_in.weight" in parts["unet"]:
        shape = expected["unet"]["conv_in.weight"].shape
        parts["unet"]["conv_in.weight"] = _with_more_inputs(parts["unet"]["conv_in.weight"], shape)
    sources = {"encoder": encoder, "adapter": encoder, "unet": unet, "vae": vae or unet}
    for part, tensors in expected.items():
        checked = Checkpoint(config, parts, sources[part])
        checked.check(part, {name: tensor.shape for name, tensor in tensors.items()}, _CURE)
    return with_matte(Checkpoint(config, parts), matte)


def _fitted(config: ImprintConfig, encoder: EncoderConfig, background: str | None, kind: str | None) -> ImprintConfig:
    """The configuration with the encoder's sizes and the background's channels, without a matte so far."""
    background, kind = background or config.background, kind or config.adapter.kind
    adapter = replace(
        config.adapter,
        kind=kind,
        input_width=encoder.width,
        input_tokens=encoder.tokens,
        output_tokens=encoder.tokens if kind == "tokens" else _TEXT_TOKENS,
    )
    channels = config.latent.channels
    inputs = channels if background == "blend" else 2 * channels + 1
    unet = replace(config.unet, in_channels=inputs, out_channels=channels)
    return replace(config, background=background, encoder=encoder, adapter=adapter, unet=unet, matte=0)


def _with_more_inputs(weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A convolution's weight with zeros for missing input channels, so that at first they change nothing.

    SD-inpainting started the same way ("5 additional input channels ... zero-initialized", its model card).
    """
    if weight.ndim != len(shape) or weight.shape[1] > shape[1]:
        return weight  # of another model: the check reports it
    return torch.cat([weight, weight.new_zeros(len(weight), shape[1] - weight.shape[1], *weight.shape[2:])], 1)


def pretrained(kind: type, folder: Path) -> torch.nn.Module:
    """A model of diffusers or transformers from a local folder, with every tensor from its files."""
    if not (folder / "config.json").is_file():
        raise ImprintError(
            f"{folder} holds no config.json; give a model's folder as the hub has it (SD 1.5's has the folders unet "
            "and vae), or its single file"
        )
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = described.get("_class_name")  # diffusers'; transformers writes none
        if named not in (None, kind.__name__):
            raise ImprintError(
                f"{folder} is for {named}, where {kind.__name__} is needed; give another folder or --sizes"
            )
        model, found = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except ImprintError:
        raise
    except Exception as error:  # the libraries raise many kinds of error on missing, truncated or wrong files
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ImprintError(f"{folder} cannot be read as a {kind.__name__} ({reason}); download it again") from error
    missing, misshapen = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    if missing or misshapen:
        first = f"'{missing[0]}' is missing" if missing else f"{misshapen[0]} differs from config.json"
        raise ImprintError(
            f"{folder}: {len(missing)} tensors are missing and {len(misshapen)} have another shape than its "
            f"config.json says ({first}); download it again"
        )
    return model


def _ldm_parts(path: Path, wanted: tuple[str, ...], config: ImprintConfig) -> dict[str, dict[str, torch.Tensor]]:
    """The wanted parts of a single file, under diffusers' names."""
    named, parts = read_tensors(path), {}
    for part in wanted:
        prefix = PREFIXES[part]
        parts[part] = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
        if not parts[part]:
            raise ImprintError(
                f"{path} holds no tensor '{prefix}*'; give Stable Diffusion's file, which has latent diffusion's "
                "names, or its diffusers folder"
            )
    try:
        return with_diffusers_names(Checkpoint(config, parts, path, names="ldm"), check=False).parts
    except KeyError as error:
        raise ImprintError(f"{path} lacks the tensor {error}; it is not whole, download it again") from error


def _read_encoder(path: Path, like: EncoderConfig) -> IDEncoder:
    """A pretrained DINOv2, with the position embeddings of its own grid, or DINOv3."""
    if not path.is_dir():
        return _from_meta(path, like)
    from transformers import AutoModel

    backbone = pretrained(AutoModel, path)
    sizes, found = backbone.config, _KINDS.get(backbone.config.model_type)
    if found is None:
        raise ImprintError(f"{path} is a model of type '{sizes.model_type}'; the encoder must be a DINOv2 or a DINOv3")
    if found == "dinov3":
        _require_published(path, sizes)
    config = replace(
        like,
        kind=found,
        width=sizes.hidden_size,
        layers=sizes.num_hidden_layers,
        heads=sizes.num_attention_heads,
        mlp_ratio=sizes.intermediate_size // sizes.hidden_size if found == "dinov3" else sizes.mlp_ratio,
        swiglu=sizes.use_gated_mlp if found == "dinov3" else sizes.use_swiglu_ffn,
        patch_size=sizes.patch_size,
        register_tokens=getattr(sizes, "num_register_tokens", 0),
    )
    with torch.device("meta"):
        encoder = IDEncoder(config)
    encoder.backbone = backbone
    return encoder


def _require_published(path: Path, sizes: Any) -> None:
    """Raise `ImprintError` for a DINOv3 that our configuration cannot describe, such as ViT-7B, which lacks biases."""
    act = "silu" if sizes.use_gated_mlp else "gelu"
    expected = {"query_bias": True, "key_bias": False, "value_bias": True, "hidden_act": act, "rope_theta": 100.0}
    for name, value in (expected | {"layer_norm_eps": 1e-5}).items():
        if getattr(sizes, name) != value:
            raise ImprintError(
                f"{path} has {name} {getattr(sizes, name)}, where an encoder's is {value}; give a DINOv3 from ViT-S to "
                "ViT-H+"
            )


def _resampled(encoder: IDEncoder, config: EncoderConfig) -> dict[str, torch.Tensor]:
    """The encoder's tensors under the hub's names, a DINOv2's position embeddings resampled once and for all."""
    side, tensors = config.image_size, encoder.hub_state_dict()
    if config.kind == "dinov3":  # its positions are computed
        return tensors
    patches = torch.zeros(1, 1 + (side // config.patch_size) ** 2, config.width)
    embeddings = encoder.backbone.embeddings.interpolate_pos_encoding(patches, side, side)
    return tensors | {"embeddings.position_embeddings": embeddings}


def _from_meta(path: Path, like: EncoderConfig) -> IDEncoder:
    named = read_tensors(path)
    if "storage_tokens" in named:
        raise ImprintError(f"{path} is a DINOv3 as Meta released it; give its folder in the hub's layout")
    needed = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.norm1.weight": 1}
    for name, dimensions in needed.items():
        if name not in named or named[name].ndim != dimensions:
            raise ImprintError(
                f"{path} lacks the tensor '{name}' of {dimensions} dimensions; give a DINOv2 backbone as Meta released "
                "it (dinov2_vit*14_pretrain.pth), or a folder in the hub's layout"
            )
    width, _, patch, _ = named["patch_embed.proj.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in named if name.startswith("blocks."))
    grid = math.isqrt(named["pos_embed"].shape[1] - 1)
    config = replace(
        like,
        width=width,
        layers=layers,
        heads=max(1, width // _DINOV2_HEAD_WIDTH),
        swiglu="blocks.0.mlp.w12.weight" in named,
        patch_size=patch,
        image_size=grid * patch,
        register_tokens=named["register_tokens"].shape[1] if "register_tokens" in named else 0,
    )
    encoder = IDEncoder(config)
    expected = {name: tensor.shape for name, tensor in encoder.hub_state_dict().items()}
    tensors = Checkpoint(PRESETS["sd15"], {"encoder": from_meta_names(named)}, path).check("encoder", expected, _CURE)
    encoder.load_hub_state_dict(tensors)
    encoder.config = replace(config, image_size=like.image_size)
    return encoder
