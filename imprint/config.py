"""A checkpoint's configuration: every size, schedule and convention that its weights were trained with.

Fields without a default are required; `PRESETS` holds complete configurations. A field with a default was added later:
the default is the meaning of files without it, and it is written only if it differs, so that older code can still read
everything it can run. The configuration is stored as JSON in the checkpoint's metadata; nothing is ever guessed from a
file's name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Literal

from .config_parts import AdapterConfig, EncoderConfig, LatentConfig, NoiseConfig, SamplingConfig, UNetConfig
from .errors import ImprintError
from .fields import from_dict, require, require_choice, require_positive, to_dict

LARGEST_RESOLUTION = 8192
"""The largest resolution of a model, in pixels."""


@dataclass(frozen=True)
class ImprintConfig:
    """A whole model. `to_json` and `from_json` are exact inverses."""

    resolution: int
    """Side in pixels of the square crop that the model was trained at."""
    background: Literal["blend", "concat", "control"]
    """How the UNet sees the background: `blend` is IMPRINT's, `concat` is nine channels as in SD-inpainting, `control`
    is AnyDoor's: a ControlNet (arXiv 2302.05543) of the UNet's sizes sees it, as a hint (`imprint.hint`)."""
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
    """The grey, in [0, 1], that the hole is painted with before the background is encoded."""
    hole_shape: Literal["outline", "box"] = "outline"
    """Whether the hole is the mask's outline or its bounding box."""
    changes: bool = False
    """Whether two constant channels, after all others, tell the UNet what to change of the object; see `CHANGES`."""
    matte: int = 0
    """Values of the matte along each side of a latent cell; 0: the UNet predicts none. See `imprint.matte`."""

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
            f"the adapter is '{adapter.kind}' and no object is '{encoder.nothing}'; a 'linear' adapter has no learned "
            "embedding for no object, so it needs 'black', and the other kinds need 'learned'",
        )
        require(
            bool(unet.local_levels) == bool(encoder.local_layer) and (not unet.local_levels or self.changes),
            f"local_levels is {unet.local_levels}, local_layer {encoder.local_layer} and changes {self.changes}; the "
            "UNet's local blocks need an encoder's local tokens and what to change",
        )
        require(
            not self.changes or (self.background == "concat" and self.matte == 0),
            "changes needs background 'concat' and no matte",
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
        """What every resolution must be a multiple of, in pixels: a latent cell at the UNet's coarsest level."""
        return self.latent.downscale * 2 ** (len(self.unet.widths) - 1)

    def crop_size(self, resolution: int | None, context: float | None) -> tuple[int, float]:
        """`resolution` and `sampling.context`, or the given ones that are not None."""
        own = self.sampling.context
        return self.resolution if resolution is None else resolution, own if context is None else context

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
