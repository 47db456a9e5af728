"""The configurations of a model's parts, which `imprint.config` combines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .fields import require, require_at_most, require_choice, require_positive

if TYPE_CHECKING:
    import torch

MOST_LAYERS = 1000
"""Far more than any real model: building more would take minutes before it fails."""
MOST_TIMESTEPS = 100_000


@dataclass(frozen=True)
class EncoderConfig:
    """The image encoder, DINOv2 (arXiv 2304.07193), DINOv3 (arXiv 2508.10104) or CLIP's (arXiv 2103.00020).

    Sizes as in transformers' `Dinov2Config`, `DINOv3ViTConfig` and `CLIPVisionConfig`.
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: int
    swiglu: bool
    """Whether the MLP is gated."""
    patch_size: int
    image_size: int
    """Side of the square input in pixels."""
    register_tokens: int
    """Register tokens (arXiv 2309.16588) of the backbone; they are dropped from its output."""
    object_margin: float
    """Margin around the object in the input, as a fraction of its longer side (if stretched, of each side)."""
    kind: Literal["dinov2", "dinov3", "clip"] = "dinov2"
    output: Literal["tokens", "cls"] = "tokens"
    """CLS and patch tokens, or only the CLS token; both after the last LayerNorm."""
    surroundings: Literal["black", "kept", "white"] = "black"
    """The object's surroundings in the input: black, white, or those of its picture."""
    fit: Literal["pad", "stretch"] = "pad"
    """How the object's box becomes the square input: padded, or stretched."""
    several_views: bool = True
    """Whether the model accepts more than one picture of the object."""
    local_layer: int = 0
    """The layer whose patch tokens, unnormalised, also go to the UNet's local blocks; 0: there are none."""
    resize: Literal["antialias", "opencv"] = "antialias"
    """How the object's box is resized; `opencv` skips pixels when it shrinks, and computes in 8-bit steps."""
    nothing: Literal["learned", "black"] = "learned"
    """What represents no object: an embedding learned by the adapter, or its output for a black picture."""

    def __post_init__(self) -> None:
        require_positive(self, "register_tokens", "object_margin", "local_layer")
        require_at_most(self, MOST_LAYERS, "layers")
        require_choice(self, "kind", "output", "surroundings", "fit", "resize", "nothing")
        require(
            self.resize == "antialias" or self.fit == "pad",
            f"the encoder's input is resized by '{self.resize}' and its fit is '{self.fit}'; 'opencv' needs 'pad'",
        )
        require(
            self.local_layer <= self.layers and (self.kind == "clip" or not self.local_layer),
            f"local_layer is {self.local_layer}; it must be one of a CLIP encoder's {self.layers} layers, or 0",
        )
        require(
            self.kind != "clip" or not (self.swiglu or self.register_tokens),
            "a CLIP encoder has neither SwiGLU nor register tokens",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"the encoder's image size {self.image_size} is not a multiple of its patch size {self.patch_size}",
        )
        require(
            self.width % self.heads == 0,
            f"the encoder's width {self.width} is not a multiple of its {self.heads} heads",
        )

    @property
    def tokens(self) -> int:
        """Number of tokens per view for the adapter."""
        return 1 if self.output == "cls" else 1 + (self.image_size // self.patch_size) ** 2

    @property
    def local_tokens(self) -> int:
        """Number of tokens per view for the UNet's local blocks, which follow the others in the encoder's output."""
        return (self.image_size // self.patch_size) ** 2 if self.local_layer else 0

    def split(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The encoder's output (..., N, C) -> the adapter's tokens, and the local ones or None."""
        return tokens[..., : self.tokens, :], tokens[..., self.tokens :, :] if self.local_layer else None


@dataclass(frozen=True)
class AdapterConfig:
    """The content adapter (ObjectStitch, arXiv 2212.00932, section 3.2) from encoder tokens to UNet context."""

    kind: Literal["tokens", "conv", "linear"]
    """`tokens` keeps every token; `conv` first reduces their number by a 1x1 convolution over the token axis; `linear`
    is only the last layer of `tokens`, without LayerNorm and learned embedding."""
    layers: int
    heads: int
    input_width: int
    input_tokens: int
    output_width: int
    output_tokens: int

    def __post_init__(self) -> None:
        require_positive(self, "layers")
        require_at_most(self, MOST_LAYERS, "layers")
        require_choice(self, "kind")
        require(
            self.kind == "conv" or self.input_tokens == self.output_tokens,
            f"a '{self.kind}' adapter keeps its tokens, but takes {self.input_tokens} and gives {self.output_tokens}; "
            "use 'conv'",
        )
        require(
            self.kind != "linear" or self.layers == 0,
            f"a 'linear' adapter has no transformer layers, and not {self.layers}",
        )
        require(
            self.input_width % self.heads == 0,
            f"the adapter's width {self.input_width} is not a multiple of its {self.heads} heads",
        )


@dataclass(frozen=True)
class UNetConfig:
    """The Stable Diffusion UNet: diffusers' `UNet2DConditionModel`, ComfyUI's `UNetModel`."""

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    """Channels of each level, finest first; ComfyUI needs whole multiples of the first."""
    layers_per_block: int
    transformer_layers: tuple[int, ...]
    """Transformer blocks per layer at each level; 0 = a level without attention."""
    mid_transformer_layers: int
    heads: tuple[int, ...]
    """Attention heads at each level; the middle has the last level's."""
    context_width: int
    linear_projections: bool = False
    """Whether the transformers' input and output projections are linear, as in SD 2 and SDXL, or 1x1 convolutions."""
    upcast_attention: bool = False
    """Whether attention scores are computed in fp32 at any precision, as in SD 2."""
    pooled_width: int = 0
    """Width of SDXL's pooled text embedding, which comes with the picture's size; 0: neither, as in SD 1.5."""
    local_levels: int = 0
    """Number of first levels with a local block after each layer on the way down; see `imprint.local`."""
    local_region: Literal["box", "corner"] = "box"
    """Where a local block looks: the hole's box or, as in ControlCom's published code, the map's first cells."""

    def __post_init__(self) -> None:
        require_positive(self, "transformer_layers", "mid_transformer_layers", "pooled_width", "local_levels")
        require_at_most(self, MOST_LAYERS, "layers_per_block", "transformer_layers", "mid_transformer_layers")
        require_choice(self, "local_region")
        levels = len(self.widths)
        require(
            all(self.transformer_layers[: self.local_levels]) and self.local_levels <= levels,
            f"local_levels is {self.local_levels}, but local blocks follow attention, and the UNet's levels have "
            f"{self.transformer_layers} transformer layers",
        )
        for name in ("transformer_layers", "heads"):
            got = len(getattr(self, name))
            require(got == levels, f"the UNet's {name} has {got} entries for {levels} levels of widths {self.widths}")
        for width in self.widths:
            require(
                width % self.widths[0] == 0 and width % 32 == 0,
                f"UNet width {width} must be a multiple of 32 and of the first width, {self.widths[0]}",
            )
        for width, heads in zip(self.widths, self.heads):
            require(width % heads == 0, f"UNet width {width} is not a multiple of its level's {heads} heads")
        require(
            self.transformer_layers[-1] in (0, self.mid_transformer_layers),
            f"the UNet's last level has {self.transformer_layers[-1]} transformer layers and the middle "
            f"{self.mid_transformer_layers}; the last level must have the same number or none",
        )


@dataclass(frozen=True)
class LatentConfig:
    """The autoencoder's latent space."""

    autoencoder: Literal["tiny", "kl"]
    """`tiny` = TAESD (diffusers' `AutoencoderTiny`), `kl` = SD's own (`AutoencoderKL`)."""
    channels: int
    downscale: int
    """Pixels of one latent cell along a side."""
    scale_factor: float
    """Factor from the autoencoder's latents to the UNet's."""

    def __post_init__(self) -> None:
        require_positive(self)
        require_choice(self, "autoencoder")


@dataclass(frozen=True)
class NoiseConfig:
    """The forward process: SD's scaled-linear betas, optionally rescaled to zero terminal SNR (arXiv 2305.08891)."""

    timesteps: int
    beta_start: float
    beta_end: float
    prediction_type: Literal["epsilon", "v_prediction"]
    zero_terminal_snr: bool
    timestep_spacing: Literal["trailing", "leading"] = "trailing"
    """Timesteps of n steps: T, T - T/n, ... (diffusers' `trailing`) or ..., 1 + T/n, 1 (latent diffusion's DDIM)."""

    def __post_init__(self) -> None:
        require_positive(self)
        require_at_most(self, MOST_TIMESTEPS, "timesteps")
        require_choice(self, "prediction_type", "timestep_spacing")
        require(
            self.beta_start <= self.beta_end < 1,
            f"betas run from {self.beta_start} to {self.beta_end}; they must rise and stay below 1",
        )
        require(
            self.prediction_type == "v_prediction" or not self.zero_terminal_snr,
            "zero terminal SNR needs 'v_prediction': from pure noise, epsilon says nothing of the picture",
        )


@dataclass(frozen=True)
class SamplingConfig:
    """The defaults that the checkpoint's authors recommend; callers may override them."""

    steps: int
    guidance_scale: float
    context: float
    """Side of the square crop relative to the longer side of the hole's box."""
    undistilled_guidance: float = 0.0
    """`guidance_scale` before it was distilled into the weights, restored by further training; 0: not distilled."""
    undistilled_steps: int = 0
    """`steps`, likewise."""

    def __post_init__(self) -> None:
        require_positive(self, "undistilled_guidance", "undistilled_steps")
