"""ComfyUI's CLIP_VISION from an Imprint checkpoint, and encoding an object with it."""

from __future__ import annotations

from typing import Any

import comfy.clip_vision
import comfy.model_management
import torch

from ..imprint.checkpoint import Checkpoint
from ..imprint.config import EncoderConfig, dinov2, dinov3
from ..imprint.errors import ImprintError
from ..imprint.preprocess import MEAN_AND_STD
from .shapes import PLAIN_LAYERS, require_supported, shapes_of


def build_clip_vision(checkpoint: Checkpoint) -> Any:
    """Part `encoder` as a CLIP_VISION."""
    encoder = checkpoint.config.encoder
    if encoder.kind == "dinov2":
        require_supported(encoder.register_tokens == 0, checkpoint, "a DINOv2 with register tokens")
        require_supported(encoder.mlp_ratio == 4, checkpoint, f"a DINOv2 with an MLP ratio of {encoder.mlp_ratio}")
    options = _options(encoder)
    known = options["model_type"] in comfy.clip_vision.IMAGE_ENCODERS
    require_supported(known, checkpoint, "a DINOv3, newer than this ComfyUI")
    plain = comfy.clip_vision.IMAGE_ENCODERS[options["model_type"]](options, torch.float32, "meta", PLAIN_LAYERS)
    tensors = checkpoint.check("encoder", shapes_of(plain))
    clip_vision = comfy.clip_vision.ClipVisionModel(options)
    clip_vision.load_sd(tensors)
    clip_vision.imprint_encoder = encoder
    return clip_vision


def _options(encoder: EncoderConfig) -> dict[str, Any]:
    """The encoder's options in the terms of ComfyUI's CLIP_VISION."""
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
    elif encoder.kind == "dinov3":
        options |= {
            "model_type": "dinov3",
            "intermediate_size": encoder.width * encoder.mlp_ratio,
            "use_gated_mlp": encoder.swiglu,
            "num_register_tokens": encoder.register_tokens,
            "num_channels": 3,
            "layer_norm_eps": 1e-5,
            "rope_theta": 100.0,
        }
    else:
        options |= {
            "model_type": "dinov2",
            "use_swiglu_ffn": encoder.swiglu,
            "layer_norm_eps": 1e-6,
            "use_mask_token": True,
        }
    return options


def encoder_config(clip_vision: Any) -> EncoderConfig:
    """The configuration of a CLIP_VISION: our checkpoint's, or from its sizes, at 224 px, for ComfyUI's own DINO.

    Raises `ImprintError` for other models.
    """
    if hasattr(clip_vision, "imprint_encoder"):
        return clip_vision.imprint_encoder
    sizes = clip_vision.config
    width, layers, heads = (sizes[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    if clip_vision.model_type == "dinov2":
        return dinov2(width, layers, heads, sizes["use_swiglu_ffn"])
    if clip_vision.model_type == "dinov3":
        return dinov3(width, layers, heads, sizes.get("use_gated_mlp", False))
    raise ImprintError(
        f"the CLIP_VISION is a '{clip_vision.model_type}' of another loader, from which only DINOv2 and DINOv3 can be "
        "used; connect the CLIP_VISION of Imprint: Load Checkpoint"
    )


@torch.no_grad()
def encode_views(clip_vision: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Prepared views (V, 3, S, S) -> tokens as from `IDEncoder.forward`: (1, V, N, C).

    Does not use `encode_image`, which would crop, resize and round what `prepare_object` has already prepared.
    """
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    config = encoder_config(clip_vision)
    options = {"intermediate_output": config.local_layer - 1} if config.local_layer else {}  # ComfyUI counts from 0
    tokens, local, *_ = clip_vision.model(pixel_values=pixels.to(clip_vision.load_device, torch.float32), **options)
    if config.output == "cls":
        tokens = tokens[:, :1]
    elif config.register_tokens:
        tokens = torch.cat([tokens[:, :1], tokens[:, 1 + config.register_tokens :]], 1)
    if config.kind == "clip":  # ComfyUI's model normalises only the CLS token
        tokens = clip_vision.model.vision_model.post_layernorm(tokens)
    if config.local_layer:
        tokens = torch.cat([tokens, local[:, 1:]], 1)
    return tokens[None].to(comfy.model_management.intermediate_device())
