"""What a checkpoint says of itself: every size, schedule and convention that its weights were trained with.

Fields without a default are required; `PRESETS` names complete configurations. A field with a default came later: the
default is what files without it mean, and it is written only where it differs, so that older code goes on reading all
that it can run. A configuration travels as JSON in the checkpoint's metadata, and nothing is ever guessed from a file's
name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .errors import ImprintError
from .fields import from_dict, require, require_choice, require_positive, to_dict

if TYPE_CHECKING:
    import torch

LARGEST_RESOLUTION = 8192
"""Pixels of the side of a model's pictures, at most."""


@dataclass(frozen=True)
class EncoderConfig:
    """The image encoder, DINOv2 (arXiv 2304.07193), DINOv3 (arXiv 2508.10104) or CLIP's (arXiv 2103.00020), and what it
    is shown.

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
    """Free border around the object in the input, as a part of the object's longer side (if stretched, of each)."""
    kind: Literal["dinov2", "dinov3", "clip"] = "dinov2"
    output: Literal["tokens", "cls"] = "tokens"
    """CLS and patch tokens, or the CLS token alone; both after the last LayerNorm."""
    surroundings: Literal["black", "kept", "white"] = "black"
    """What lies around the object in the input: black, white, or what lay there in its picture."""
    fit: Literal["pad", "stretch"] = "pad"
    """How the object's box becomes the square input: with a free border beside its shorter sides, or stretched."""
    several_views: bool = True
    """Whether the model takes more than one picture of the object."""
    local_layer: int = 0
    """The layer after which the patch tokens, as they are, also go to the UNet's local blocks; 0: there are none."""
    resize: Literal["antialias", "opencv"] = "antialias"
    """How the object's box is brought to the input's size; `opencv` leaves pixels out, and is in whole 8-bit steps."""
    nothing: Literal["learned", "black"] = "learned"
    """What stands for no object: an embedding that the adapter learned, or what it makes of a black picture."""

    def __post_init__(self) -> None:
        require_positive(self, "register_tokens", "object_margin", "local_layer")
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
        """The tokens of one view that the adapter takes."""
        return 1 if self.output == "cls" else 1 + (self.image_size // self.patch_size) ** 2

    @property
    def local_tokens(self) -> int:
        """The tokens of one view that the UNet's local blocks take; the encoder's output has them after the others."""
        return (self.image_size // self.patch_size) ** 2 if self.local_layer else 0

    def split(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The encoder's output (..., N, C) -> the adapter's tokens, and the local ones or None."""
        return tokens[..., : self.tokens, :], tokens[..., self.tokens :, :] if self.local_layer else None


@dataclass(frozen=True)
class AdapterConfig:
    """The content adapter (ObjectStitch, arXiv 2212.00932, section 3.2) from encoder tokens to UNet context."""

    kind: Literal["tokens", "conv", "linear"]
    """`tokens` keeps every token; `conv` first reduces their number by a 1x1 convolution over the token axis; `linear`
    is the last layer of `tokens` alone, without its LayerNorm and its learned embedding."""
    layers: int
    heads: int
    input_width: int
    input_tokens: int
    output_width: int
    output_tokens: int

    def __post_init__(self) -> None:
        require_positive(self, "layers")
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
    """Whether linear layers lead into and out of the transformers, as in SD 2 and SDXL, and not 1x1 convolutions."""
    upcast_attention: bool = False
    """Whether attention scores are in fp32 whatever the precision, as in SD 2."""
    pooled_width: int = 0
    """Of SDXL's pooled text, beside which it is told the picture's size; 0 = it is told neither, as SD 1.5."""
    local_levels: int = 0
    """How many of the first levels have a local block after each layer on the way down; see `imprint.local`."""
    local_region: Literal["box", "corner"] = "box"
    """Where a local block looks: the hole's box, or, as ControlCom's published code has it, the map's first cells."""

    def __post_init__(self) -> None:
        require_positive(self, "transformer_layers", "mid_transformer_layers", "pooled_width", "local_levels")
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
    """The UNet's latents are the autoencoder's times this."""

    def __post_init__(self) -> None:
        require_positive(self)
        require_choice(self, "autoencoder")


@dataclass(frozen=True)
class NoiseConfig:
    """The forward process: SD's scaled-linear betas, if wished rescaled to zero terminal SNR (arXiv 2305.08891)."""

    timesteps: int
    beta_start: float
    beta_end: float
    prediction_type: Literal["epsilon", "v_prediction"]
    zero_terminal_snr: bool
    timestep_spacing: Literal["trailing", "leading"] = "trailing"
    """Of n sampling steps: T, T - T/n, ... as diffusers' `trailing`, or ..., 1 + T/n, 1 as latent diffusion's DDIM."""

    def __post_init__(self) -> None:
        require_positive(self)
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
    """What the checkpoint's authors recommend; every caller may choose otherwise."""

    steps: int
    guidance_scale: float
    context: float
    """Side of the square crop over the longer side of the hole's box."""
    undistilled_guidance: float = 0.0
    """`guidance_scale` before it was distilled into the weights, for when they are trained further; 0: it was not."""

    def __post_init__(self) -> None:
        require_positive(self, "undistilled_guidance")


@dataclass(frozen=True)
class ImprintConfig:
    """A whole model. `to_json` and `from_json` are exact inverses."""

    resolution: int
    """Side in pixels of the square crop that the model was trained at."""
    background: Literal["blend", "concat", "control"]
    """How the UNet sees the background: `blend` is IMPRINT's, `concat` is nine channels as in SD-inpainting, `control`
    is AnyDoor's: a ControlNet (arXiv 2302.05543) of the UNet's sizes sees it, as `imprint.hint` shows it."""
    encoder: EncoderConfig
    adapter: AdapterConfig
    unet: UNetConfig
    latent: LatentConfig
    noise: NoiseConfig
    sampling: SamplingConfig
    concat_order: Literal["mask, background", "background, mask"] = "mask, background"
    """What follows the noisy latent in the UNet's input; SD-inpainting has the mask first."""
    concat_mask: Literal["hole", "background"] = "hole"
    """Where the mask channel is 1."""
    hole_value: float = 0.5
    """The grey in [0, 1] of the hole in the picture that the autoencoder encodes."""
    hole_shape: Literal["outline", "box"] = "outline"
    """The hole in a mask: its outline, or the box around it."""
    changes: bool = False
    """Whether two constant channels after the others tell the UNet what to change of the object; see `CHANGES`."""
    matte: int = 0
    """Values of the predicted matte along a side of a latent cell; 0 = the UNet predicts none. See `imprint.matte`."""

    def __post_init__(self) -> None:
        require_positive(self, "hole_value", "matte")
        require_choice(self, "background", "concat_order", "concat_mask", "hole_shape")
        require(0 <= self.hole_value <= 1, f"hole_value is {self.hole_value}; it is a grey from 0 to 1")
        encoder, adapter, unet, latent = self.encoder, self.adapter, self.unet, self.latent
        require(
            (encoder.width, encoder.tokens) == (adapter.input_width, adapter.input_tokens),
            f"the encoder gives {encoder.tokens} tokens of width {encoder.width}, but the adapter takes "
            f"{adapter.input_tokens} of width {adapter.input_width}; use an encoder and an "
            "adapter that were trained together",
        )
        require(
            adapter.output_width == unet.context_width,
            f"the adapter gives context of width {adapter.output_width}, but the UNet takes {unet.context_width}; "
            "use an adapter and a UNet that were trained together",
        )
        require(
            self.matte == 0 or latent.downscale % self.matte == 0,
            f"matte is {self.matte}; it must divide a latent cell's {latent.downscale} pixels, or be 0 for none",
        )
        require(
            (adapter.kind == "linear") == (encoder.nothing == "black"),
            f"the adapter is '{adapter.kind}' and no object is '{encoder.nothing}'; a 'linear' adapter has learned no "
            "embedding for it, so that these two go together: 'linear' and 'black'",
        )
        require(
            bool(unet.local_levels) == bool(encoder.local_layer) and (not unet.local_levels or self.changes),
            f"local_levels is {unet.local_levels}, local_layer {encoder.local_layer} and changes {self.changes}; the "
            "UNet's local blocks need an encoder's local tokens and what to change",
        )
        require(
            not self.changes or (self.background == "concat" and self.matte == 0),
            "what to change of the object is told beside a background of background 'concat', without a matte",
        )
        beside = latent.channels + 1 + 2 * self.changes if self.background == "concat" else 0
        inputs = latent.channels + beside
        outputs = latent.channels + 2 * self.matte**2
        require(
            (unet.in_channels, unet.out_channels) == (inputs, outputs),
            f"the UNet has {unet.in_channels} input and {unet.out_channels} output channels; background "
            f"'{self.background}', changes {self.changes} and matte {self.matte} on {latent.channels} latent channels "
            f"need {inputs} and {outputs}",
        )
        require(
            self.resolution <= LARGEST_RESOLUTION,
            f"resolution is {self.resolution}; it is {LARGEST_RESOLUTION} pixels at most",
        )
        require(
            self.resolution % self.multiple == 0,
            f"resolution {self.resolution} is not a multiple of {self.multiple} (latent cell times UNet levels)",
        )

    @property
    def multiple(self) -> int:
        """Every resolution is a multiple of this, in pixels: a latent cell at the UNet's coarsest level."""
        return self.latent.downscale * 2 ** (len(self.unet.widths) - 1)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(to_dict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ImprintConfig:
        """Raises `ImprintError` for anything that is not a complete, known and consistent configuration."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ImprintError(f"the configuration is not JSON ({error}); it must be what `to_json` writes") from error
        return from_dict(cls, values, "configuration")


def dinov2(
    width: int, layers: int, heads: int, swiglu: bool = False, register_tokens: int = 0, image_size: int = 224
) -> EncoderConfig:
    """A DINOv2 of patch size 14 with the published conventions (MLP ratio 4; SwiGLU in ViT-g)."""
    return EncoderConfig(
        width=width,
        layers=layers,
        heads=heads,
        mlp_ratio=4,
        swiglu=swiglu,
        patch_size=14,
        image_size=image_size,
        register_tokens=register_tokens,
        object_margin=0.05,
    )


def dinov3(width: int, layers: int, heads: int, swiglu: bool = False, image_size: int = 224) -> EncoderConfig:
    """A DINOv3 with the published conventions: patch size 16, four registers, MLP ratio 4 (gated in ViT-H+)."""
    plain = dinov2(width, layers, heads, swiglu, register_tokens=4)
    return replace(plain, kind="dinov3", patch_size=16, image_size=image_size)


def tokens_adapter(encoder: EncoderConfig, layers: int, heads: int, output_width: int) -> AdapterConfig:
    """A `tokens` adapter that fits the encoder."""
    return AdapterConfig(
        kind="tokens",
        layers=layers,
        heads=heads,
        input_width=encoder.width,
        input_tokens=encoder.tokens,
        output_width=output_width,
        output_tokens=encoder.tokens,
    )


def _tiny() -> ImprintConfig:
    encoder = dinov2(width=256, layers=5, heads=8)
    return ImprintConfig(
        resolution=256,
        background="blend",
        encoder=encoder,
        adapter=tokens_adapter(encoder, layers=1, heads=8, output_width=256),
        unet=UNetConfig(
            in_channels=4,
            out_channels=36,
            widths=(96, 192, 192),
            layers_per_block=1,
            transformer_layers=(1, 2, 0),
            mid_transformer_layers=1,
            heads=(3, 6, 6),
            context_width=256,
        ),
        latent=LatentConfig(autoencoder="tiny", channels=4, downscale=8, scale_factor=1.0),
        noise=NoiseConfig(1000, 0.00085, 0.012, prediction_type="v_prediction", zero_terminal_snr=True),
        sampling=SamplingConfig(steps=20, guidance_scale=2.0, context=1.3),
        matte=4,
    )


def _sd15(encoder: EncoderConfig) -> ImprintConfig:
    return ImprintConfig(
        resolution=512,
        background="blend",
        encoder=encoder,
        adapter=tokens_adapter(encoder, layers=5, heads=16, output_width=768),
        unet=UNetConfig(
            in_channels=4,
            out_channels=36,
            widths=(320, 640, 1280, 1280),
            layers_per_block=2,
            transformer_layers=(1, 1, 1, 0),
            mid_transformer_layers=1,
            heads=(8, 8, 8, 8),
            context_width=768,
        ),
        latent=LatentConfig(autoencoder="kl", channels=4, downscale=8, scale_factor=0.18215),
        noise=NoiseConfig(1000, 0.00085, 0.012, prediction_type="epsilon", zero_terminal_snr=False),
        sampling=SamplingConfig(steps=50, guidance_scale=5.0, context=2.0),
        matte=4,
    )


def _sdxl(encoder: EncoderConfig) -> ImprintConfig:
    """SDXL's base (arXiv 2307.01952); its noise is SD 1.5's."""
    sd15 = _sd15(encoder)
    return replace(
        sd15,
        resolution=1024,
        adapter=tokens_adapter(encoder, layers=5, heads=16, output_width=2048),
        unet=UNetConfig(
            in_channels=4,
            out_channels=36,
            widths=(320, 640, 1280),
            layers_per_block=2,
            transformer_layers=(0, 2, 10),
            mid_transformer_layers=10,
            heads=(5, 10, 20),
            context_width=2048,
            linear_projections=True,
            pooled_width=1280,
        ),
        latent=replace(sd15.latent, scale_factor=0.13025),
    )


PRESETS: dict[str, ImprintConfig] = {
    "tiny": _tiny(),
    "sd15": _sd15(dinov2(width=1024, layers=24, heads=16)),
    "sd15-g": _sd15(dinov2(width=1536, layers=40, heads=24, swiglu=True)),
    "sdxl": _sdxl(dinov2(width=1024, layers=24, heads=16)),
}
"""`tiny` is the shipped checkpoint's; `sd15` and `sd15-g` are SD 1.5 with DINOv2 ViT-L/14 and ViT-g/14, `sdxl` is SDXL
with ViT-L/14."""
