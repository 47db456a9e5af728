"""A checkpoint to train from, of a Stable Diffusion UNet and a DINOv2 as their authors give them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import torch

from imprint.adapter import ContentAdapter
from imprint.checkpoint import Checkpoint
from imprint.config import PRESETS, EncoderConfig, ImprintConfig
from imprint.encoder import IDEncoder, from_meta_names
from imprint.errors import ImprintError
from imprint.model import build_modules, module_tensors
from imprint.third_party import PREFIXES, read_tensors, with_diffusers_names

from .model import with_matte

_DINOV2_HEAD_WIDTH = 64  # of every DINOv2 that Meta released
_TEXT_TOKENS = 77  # of CLIP's text encoder
_CURE = "give SD 1.5 or a model of its sizes, or the --sizes that the files were made for"


def start(
    unet: Path,
    encoder: Path,
    config: ImprintConfig,
    background: str | None = None,
    vae: Path | None = None,
    adapter: str | None = None,
) -> Checkpoint:
    """A checkpoint of pretrained UNet, autoencoder and encoder, and a fresh adapter and matte that fit them.

    unet: a diffusers folder of Stable Diffusion, or one file with latent diffusion's names. encoder: a DINOv2 folder
    in the hub's layout, or Meta's `.pth`; its sizes replace the configuration's. background: `blend` or `concat`, by
    default the configuration's. vae: another autoencoder, a folder in diffusers' layout. adapter: `tokens`, or `conv`
    with as many tokens as CLIP's text; by default the configuration's. Raises `ImprintError` for files that are
    absent, unsafe, or have not the tensors that the configuration asks for.
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
    """The configuration for an encoder of the file's sizes, the background's channels, and as yet no matte."""
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
    """A convolution's weight with zeros for the input channels that it lacks: at first they change nothing.

    So did SD-inpainting begin ("5 additional input channels ... zero-initialized", its model card).
    """
    if weight.ndim != len(shape) or weight.shape[1] > shape[1]:
        return weight  # not of this model: the check will say so
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
    except Exception as error:  # the libraries fail in many ways on files that are absent, cut off or of another kind
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
    """A pretrained DINOv2 with the position embeddings of its own grid."""
    if not path.is_dir():
        return _from_meta(path, like)
    from transformers import AutoModel

    backbone = pretrained(AutoModel, path)
    sizes = backbone.config
    if sizes.model_type not in ("dinov2", "dinov2_with_registers"):
        raise ImprintError(f"{path} is a model of type '{sizes.model_type}'; the encoder must be a DINOv2")
    config = replace(
        like,
        width=sizes.hidden_size,
        layers=sizes.num_hidden_layers,
        heads=sizes.num_attention_heads,
        mlp_ratio=sizes.mlp_ratio,
        swiglu=sizes.use_swiglu_ffn,
        patch_size=sizes.patch_size,
        image_size=sizes.image_size,
        register_tokens=getattr(sizes, "num_register_tokens", 0),
    )
    with torch.device("meta"):
        encoder = IDEncoder(replace(config, image_size=like.image_size))
    encoder.backbone = backbone
    return encoder


def _resampled(encoder: IDEncoder, config: EncoderConfig) -> dict[str, torch.Tensor]:
    """The encoder's tensors under the hub's names, its position embeddings resampled once and for all."""
    side, tensors = config.image_size, encoder.hub_state_dict()
    patches = torch.zeros(1, 1 + (side // config.patch_size) ** 2, config.width)
    embeddings = encoder.backbone.embeddings.interpolate_pos_encoding(patches, side, side)
    return tensors | {"embeddings.position_embeddings": embeddings}


def _from_meta(path: Path, like: EncoderConfig) -> IDEncoder:
    named = read_tensors(path)
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
