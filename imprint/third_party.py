"""Third-party checkpoints as their authors released them: ObjectStitch, Paint-by-Example, ControlCom and AnyDoor.

All are latent diffusion's LDM code, in a torch dict of `state_dict`. The first three have the same modules: CLIP
ViT-L/14, a mapper (our adapter), SD 1's UNet with nine input channels and SD's autoencoder. Of these the first two have
tensors of the same names and shapes; ControlCom's UNet has two more channels and local blocks. `imprint.anydoor`
describes AnyDoor. The models also differ in how they use the encoder, which `KINDS` says in our configuration's terms.
Sizes are read from the tensors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import anydoor
from .checkpoint import Checkpoint, is_pickle, load_checkpoint, open_safetensors, save_checkpoint
from .config import PRESETS, AdapterConfig, EncoderConfig, ImprintConfig, SamplingConfig, UNetConfig
from .errors import ImprintError, require_one_of
from .local import input_blocks
from .released import Tensors, read_tensors, says_safetensors

KINDS: dict[str, dict[str, Any]] = {
    # scripts/inference.py: the object on black; all tokens; "the object should fully extend to the edges of the image"
    "objectstitch": {"output": "tokens", "surroundings": "black"},
    # scripts/inference.py: a reference picture as it is; pooler_output, which is the normalised CLS token
    "paint-by-example": {"output": "cls", "surroundings": "kept"},
    # scripts/inference.py: as ObjectStitch; encoders/modules.py: the normalised CLS token
    "controlcom": {"output": "cls", "surroundings": "black"},
    "anydoor": anydoor.CONVENTIONS,
}
"""The encoder's conventions in which the models differ."""

PREFIXES = {
    "encoder": "cond_stage_model.transformer.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "control": "control_model.",
}
_MAPPER = "cond_stage_model.mapper.resblocks."
_ADAPTER_NAMES = {
    "attn.c_qkv": "qkv",
    "attn.c_proj": "out",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.c_fc": "fc1",
    "mlp.c_proj": "fc2",
}
_LOCAL_NAMES = {
    "norm": "local_norm",
    "tokens_norm": "context_norm",
    "query": "local_proj_in",
    "key": "context_conv",
    "value": "local_proj_out",
    "gain": "SPADE.conv_gamma",
    "shift": "SPADE.conv_beta",
}
_HEAD_WIDTH = 64  # of every CLIP that OpenAI released
_MAPPER_HEADS = {"controlcom": 8}  # not visible in any tensor; the others have one
# configs/controlcom.yaml: "resolutions: [1, 2]"; modules/local_module.py gives roi_align a box in fractions of the map
_LOCAL = {"controlcom": {"local_levels": 2, "local_region": "corner"}}
_UNET_HEADS = 8  # at every level of SD 1's UNet; SD 2's heads are as wide as CLIP's


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Open one of our checkpoints or an unconverted third-party one; raises `ImprintError` as the two readers do."""
    return read_third_party(path) if _is_third_party(Path(path)) else load_checkpoint(path)


def read_third_party(path: str | os.PathLike, kind: str | None = None) -> Checkpoint:
    """A third-party file's tensors as the parts of a checkpoint; `unet`, `vae` and `control` keep their LDM names.

    path: `.pth`, `.ckpt` (through torch's `weights_only` reader) or `.safetensors`. Tensors stay on disk until they are
    used. kind: one of `KINDS`; without it, it is recognised by the weights. Raises `ImprintError` for a file that
    holds anything but weights, is incomplete, or is of another model.
    """
    return from_tensors(read_tensors(path), kind, Path(path))


def from_tensors(
    named: Mapping[str, torch.Tensor], kind: str | None = None, path: Path = Path("weights")
) -> Checkpoint:
    """As `read_third_party`, from tensors by name; path: their name in error messages."""
    if kind is not None:
        require_one_of("kind", kind, KINDS)
    tensors = Tensors(path, named, kind or _family(named))
    kind = kind or _kind(tensors)
    config = _config(tensors, kind)
    parts = {part: tensors.under(PREFIXES[part]) for part in ("unet", "vae")}
    if kind == "anydoor":
        parts |= anydoor.parts(tensors)
    else:
        parts["unet"] = _with_local_names(parts["unet"], config.unet)
        parts["encoder"] = tensors.under(PREFIXES["encoder"])
        # An index that transformers kept in its files until 4.31.
        parts["encoder"].pop("vision_model.embeddings.position_ids", None)
        parts["adapter"] = _adapter_tensors(tensors, config.adapter)
    return Checkpoint(config, parts, path, names="ldm")


def with_diffusers_names(checkpoint: Checkpoint, check: bool = True) -> Checkpoint:
    """A third-party checkpoint with diffusers' names, as in our files.

    check: whether to verify all parts' names and shapes.
    """
    from diffusers.loaders.single_file_utils import (
        convert_controlnet_checkpoint,
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )

    from .model import build_modules, module_tensors

    config = checkpoint.config
    with torch.device("meta"):
        modules = build_modules(config)
    blocks = {"layers_per_block": config.unet.layers_per_block}
    converters = {
        "unet": (convert_ldm_unet_checkpoint, modules["unet"].config),
        "control": (convert_controlnet_checkpoint, blocks),
        "vae": (convert_ldm_vae_checkpoint, modules["vae"].config),
    }
    converted = dict(checkpoint.parts)
    for part in converters.keys() & converted.keys():
        converter, sizes = converters[part]
        local = {name: value for name, value in converted[part].items() if name.startswith("local.")}
        others = {PREFIXES[part] + name: value for name, value in converted[part].items() if name not in local}
        converted[part] = converter(others, sizes) | local
    for part, named in converted.items():  # the library leaves None where a tensor's companion is missing
        converted[part] = {name: tensor for name, tensor in named.items() if tensor is not None}
    converted = replace(checkpoint, parts=converted, names="diffusers")
    for part, expected in module_tensors(modules).items() if check else ():
        converted.check(part, {name: tensor.shape for name, tensor in expected.items()})
    return converted


def convert(
    path: str | os.PathLike,
    out: str | os.PathLike,
    kind: str | None = None,
    track: Callable[[list], Iterable] = iter,
    local_region: str | None = None,
) -> ImprintConfig:
    """Write a third-party checkpoint as one of ours, in fp16 and with its autoencoder; returns its configuration.

    kind: as in `read_third_party`. track: wraps the list of tensors as they are converted, for a progress bar.
    local_region: `UNetConfig.local_region`, by default as in the model's published code. Raises `ImprintError` as
    `read_third_party` does, and for a region without local blocks; then nothing is written.
    """
    checkpoint = read_third_party(path, kind)
    if local_region is not None:
        unet = checkpoint.config.unet
        if not unet.local_levels:
            raise ImprintError(f"{path} has no local blocks; leave the local region out")
        config = replace(checkpoint.config, unet=replace(unet, local_region=local_region))
        checkpoint = replace(checkpoint, config=config)
    checkpoint = with_diffusers_names(checkpoint)
    save_checkpoint(out, checkpoint, dtype=torch.float16, track=track)
    return checkpoint.config


def _family(named: Mapping[str, torch.Tensor]) -> str:
    """The kinds whose files have tensors like these."""
    return "anydoor" if anydoor.HINT in named else " and ".join(kind for kind in KINDS if kind != "anydoor")


def kind_of(config: ImprintConfig) -> str:
    """The kind, of `KINDS`, of a third-party configuration."""
    if config.changes:
        return "controlcom"
    return next(kind for kind, says in KINDS.items() if all(getattr(config.encoder, n) == v for n, v in says.items()))


def _config(tensors: Tensors, kind: str) -> ImprintConfig:
    """The configuration, from the tensors' sizes and the authors' code."""
    unet = _unet_config(tensors, kind)
    if kind == "anydoor":
        encoder = anydoor.encoder_config(tensors)
        adapter = anydoor.adapter_config(tensors, encoder)
    else:
        encoder = _encoder_config(tensors, kind, unet)
        adapter = _adapter_config(tensors, kind, encoder)
    return ImprintConfig(
        resolution=512,
        background="control" if kind == "anydoor" else "concat",
        concat_order="background, mask",
        concat_mask="background",
        hole_shape="box" if kind == "controlcom" else "outline",
        changes=kind == "controlcom",
        encoder=encoder,
        adapter=adapter,
        unet=unet,
        latent=PRESETS["sd15"].latent,
        noise=replace(PRESETS["sd15"].noise, timestep_spacing="leading"),
        sampling=SamplingConfig(steps=50, guidance_scale=5.0, context=2.0),
    )


def _encoder_config(tensors: Tensors, kind: str, unet: UNetConfig) -> EncoderConfig:
    vision = PREFIXES["encoder"] + "vision_model."
    width, _, patch, _ = tensors.shape(f"{vision}embeddings.patch_embedding.weight", 4)
    positions, _ = tensors.shape(f"{vision}embeddings.position_embedding.weight", 2)
    layers = tensors.count(f"{vision}encoder.layers.")
    return EncoderConfig(
        kind="clip",
        width=width,
        layers=layers,
        heads=max(1, width // _HEAD_WIDTH),
        mlp_ratio=tensors.shape(f"{vision}encoder.layers.0.mlp.fc1.weight", 2)[0] // width,
        swiglu=False,
        patch_size=patch,
        image_size=math.isqrt(max(0, positions - 1)) * patch,
        register_tokens=0,
        object_margin=0.0,
        fit="stretch",
        several_views=False,
        local_layer=layers // 2 if unet.local_levels else 0,
        **KINDS[kind],
    )


def _adapter_config(tensors: Tensors, kind: str, encoder: EncoderConfig) -> AdapterConfig:
    context_width, input_width = tensors.shape(f"{_project(tensors)}.weight", 2)
    tensors.shape("learnable_vector", 3)
    return AdapterConfig(
        kind="tokens",
        layers=tensors.count(_MAPPER),
        heads=_MAPPER_HEADS.get(kind, 1),
        input_width=input_width,
        input_tokens=encoder.tokens,
        output_width=context_width,
        output_tokens=encoder.tokens,
    )


def _unet_config(tensors: Tensors, kind: str) -> UNetConfig:
    """SD's UNet by its input blocks: the first convolution, then each level's layers, closed by a downsampler."""
    unet = PREFIXES["unet"]
    first, in_channels, _, _ = tensors.shape(f"{unet}input_blocks.0.0.weight", 4)
    widths, depths, layers = [first], [0], [0]
    for index in range(1, tensors.count(f"{unet}input_blocks.")):
        block = f"{unet}input_blocks.{index}."
        if f"{block}0.op.weight" in tensors.named:
            widths, depths, layers = [*widths, widths[-1]], [*depths, 0], [*layers, 0]
            continue
        widths[-1] = tensors.shape(f"{block}0.out_layers.3.weight", 4)[0]
        depths[-1] = tensors.count(f"{block}1.transformer_blocks.")
        layers[-1] += 1
    middle = f"{unet}middle_block.1."
    linear = tensors[f"{middle}proj_in.weight"].ndim == 2  # SD 2's
    return UNetConfig(
        in_channels=in_channels,
        out_channels=tensors.shape(f"{unet}out.2.weight", 4)[0],
        widths=tuple(widths),
        layers_per_block=max(layers),
        transformer_layers=tuple(depths),
        mid_transformer_layers=tensors.count(f"{middle}transformer_blocks."),
        heads=tuple(max(1, width // _HEAD_WIDTH) if linear else _UNET_HEADS for width in widths),
        context_width=tensors.shape(f"{middle}transformer_blocks.0.attn2.to_k.weight", 2)[1],
        linear_projections=linear,
        upcast_attention=linear,
        **_LOCAL.get(kind, {}),
    )


def _with_local_names(unet: dict[str, torch.Tensor], config: UNetConfig) -> dict[str, torch.Tensor]:
    """Latent diffusion's tensors of a UNet, those of its local blocks under our names."""
    ours = {
        f"input_blocks.{block}.2.{theirs}.{kind}": f"local.{index}.{name}.{kind}"
        for index, block in enumerate(input_blocks(config))
        for name, theirs in _LOCAL_NAMES.items()
        for kind in ("weight", "bias")
    }
    return {ours.get(name, name): tensor for name, tensor in unet.items()}


def _project(tensors: Tensors) -> str:
    """The name of the adapter's last layer, which in ControlCom's code is in the encoder's module."""
    moved = "cond_stage_model.proj_out"
    return moved if f"{moved}.weight" in tensors.named else "proj_out"


def _by_part(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Query, key and value of an attention, grouped by head in their code -> each for all heads."""
    return tensor if heads == 1 else tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def _adapter_tensors(tensors: Tensors, config: AdapterConfig) -> dict[str, torch.Tensor]:
    """The mapper, its LayerNorm, the projection and the learned vector, under our adapter's names."""
    named = {"null_embedding": tensors["learnable_vector"]}
    for kind in ("weight", "bias"):
        named[f"norm.{kind}"] = tensors[f"cond_stage_model.final_ln.{kind}"]
        named[f"project.{kind}"] = tensors[f"{_project(tensors)}.{kind}"]
        for block in range(config.layers):
            for theirs, ours in _ADAPTER_NAMES.items():
                named[f"blocks.{block}.{ours}.{kind}"] = tensors[f"{_MAPPER}{block}.{theirs}.{kind}"]
            qkv = f"blocks.{block}.qkv.{kind}"
            named[qkv] = _by_part(named[qkv], config.heads)
    return named


def _kind(tensors: Tensors) -> str:
    """Which model's weights these are. AnyDoor's have a ControlNet; ControlCom's UNet has eleven input channels.

    Paint-by-Example's mapper has one token. A softmax over one score is 1 whatever the score, so that the weights of
    query and key never had a gradient: they lie where torch's Linear draws them, within 1 / sqrt(width), if not nearer
    to 0 by weight decay. ObjectStitch's had 257 tokens and were trained.
    """
    if anydoor.HINT in tensors.named:
        return "anydoor"
    if tensors.shape(f"{PREFIXES['unet']}input_blocks.0.0.weight", 4)[1] == 11:
        return "controlcom"
    for block in range(tensors.count(_MAPPER)):
        weight = tensors[f"{_MAPPER}{block}.attn.c_qkv.weight"]
        query_and_key = weight[: 2 * weight.shape[1]]
        bound = weight.shape[1] ** -0.5 * 1.001  # room for the file's precision
        if float(query_and_key.abs().max()) > bound:
            return "objectstitch"
    return "paint-by-example"


def _is_third_party(path: Path) -> bool:
    """Any torch file, as our own never are, or a safetensors file with a UNet under latent diffusion's names."""
    if not os.path.isfile(path):
        return False
    if says_safetensors(path):
        with open_safetensors(path) as file:
            return any(name.startswith(PREFIXES["unet"]) for name in file.keys())
    with path.open("rb") as file:
        return is_pickle(file.read(4))
