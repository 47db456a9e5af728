"""The ID encoder and its backbone, DINOv2, DINOv3 or CLIP of transformers; checkpoints use the hub's tensor names."""

from __future__ import annotations

import torch
from torch import nn

from .config import EncoderConfig
from .errors import ImprintError

# transformers 5 renamed these modules; hub files, transformers 4 and ComfyUI use the names on the right.
_HUB_NAMES = (
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.gate_proj.", ".mlp.weights_in."),  # SwiGLU's two inputs are one tensor in the hub's files: gate above up
    (".mlp.up_proj.", ".mlp.weights_in."),
    (".mlp.down_proj.", ".mlp.weights_out."),
)

_META_NAMES = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "blocks": "encoder.layer",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
"""Meta's names (github.com/facebookresearch/dinov2) and the hub's, where they differ; so does the last LayerNorm's."""


def hub_name(name: str, kind: str = "dinov2") -> str:
    """A tensor's name in the hub's files, from its name in any version of transformers.

    kind: `EncoderConfig.kind`.
    """
    if kind == "clip":  # transformers 5 dropped the prefix
        return "vision_model." + name.removeprefix("vision_model.")
    if kind == "dinov3":  # transformers 5 moved the layers into a module of their own
        return name.removeprefix("model.")
    for new, old in _HUB_NAMES:
        name = name.replace(new, old)
    return name


def from_meta_names(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Meta's tensors under the hub's names; query, key and value are one tensor there, and three here."""
    tensors = {}
    for name, tensor in named.items():
        for theirs, ours in _META_NAMES.items():
            name = name.replace(theirs, ours)
        if name.startswith("norm."):
            name = f"layernorm.{name.removeprefix('norm.')}"
        if ".attn.qkv." in name:
            for kind, part in zip(("query", "key", "value"), tensor.chunk(3)):
                tensors[name.replace("attn.qkv", f"attention.attention.{kind}")] = part
        else:
            tensors[name] = tensor
    return tensors


def build_backbone(config: EncoderConfig) -> nn.Module:
    """transformers' model of these sizes, with fresh weights. Raises `ImprintError` if it is too old for DINOv3."""
    import transformers

    sizes = {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "patch_size": config.patch_size,
        "image_size": config.image_size,
    }
    inner = config.width * config.mlp_ratio
    if config.kind == "clip":
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(intermediate_size=inner, **sizes))
    if config.kind == "dinov3":
        if not hasattr(transformers, "DINOv3ViTModel"):
            raise ImprintError(
                f"this is transformers {transformers.__version__}, and DINOv3 needs 4.56 or newer; update transformers"
            )
        sizes |= {"intermediate_size": inner, "use_gated_mlp": config.swiglu}
        sizes |= {"hidden_act": "silu" if config.swiglu else "gelu", "num_register_tokens": config.register_tokens}
        # None: in training positions would be rescaled at random, by a generator that is not saved.
        return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(pos_embed_rescale=None, **sizes))
    sizes |= {"mlp_ratio": config.mlp_ratio, "use_swiglu_ffn": config.swiglu}
    if config.register_tokens:
        sizes["num_register_tokens"] = config.register_tokens
        return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes))
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes))


class IDEncoder(nn.Module):
    """Prepared views of an object -> its tokens (IMPRINT, arXiv 2403.10701, section 3.1)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) from `preprocess.prepare_object` -> (B, `config.tokens`, width), after the last LayerNorm.

        The CLS token comes first; register tokens, if any, are dropped. They are followed by `local_tokens` of the
        configured layer, without any LayerNorm; `config.split` separates them.
        """
        layer = self.config.local_layer
        seen = self.backbone(pixel_values, output_hidden_states=bool(layer))
        tokens = seen.last_hidden_state
        if self.config.output == "cls":
            tokens = tokens[:, :1]
        if self.config.kind == "clip":  # its model normalises only the CLS token
            tokens = getattr(self.backbone, "vision_model", self.backbone).post_layernorm(tokens)
            return torch.cat([tokens, seen.hidden_states[layer][:, 1:]], 1) if layer else tokens
        return torch.cat([tokens[:, :1], tokens[:, 1 + self.config.register_tokens :]], 1)

    def hub_state_dict(self) -> dict[str, torch.Tensor]:
        """The backbone's tensors under their hub names."""
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self.backbone.state_dict().items():
            key = hub_name(name, self.config.kind)
            tensors[key] = torch.cat([tensors[key], tensor]) if key in tensors else tensor
        return tensors

    def load_hub_state_dict(self, tensors: dict[str, torch.Tensor], assign: bool = False) -> None:
        """The inverse of `hub_state_dict`; strict. assign: as for `load_state_dict`."""
        own = {name: tensors[hub_name(name, self.config.kind)] for name in self.backbone.state_dict()}
        for name, tensor in own.items():
            # Two halves of one tensor, in a DINOv2.
            if self.config.kind == "dinov2" and (".mlp.gate_proj." in name or ".mlp.up_proj." in name):
                own[name] = tensor.chunk(2)[".mlp.up_proj." in name]
        self.backbone.load_state_dict(own, assign=assign)
