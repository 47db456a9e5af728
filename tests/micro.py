"""Shared inputs of the tests: a model of a few hundred kilobytes, and pictures."""

from __future__ import annotations

import dataclasses
import functools
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageCms

from imprint.checkpoint import Checkpoint
from imprint.config import ImprintConfig, LatentConfig, NoiseConfig, SamplingConfig, UNetConfig, dinov2, tokens_adapter

if TYPE_CHECKING:
    from imprint.lightnet import LightNet

HELD_OUT_PAIRS = 8
"""On which the tests' runs are validated."""


def micro_config(**changes) -> ImprintConfig:
    """The smallest model with every part of a real one: 64 px, 8x8 latents, two UNet levels, 5 tokens."""
    encoder = dinov2(width=32, layers=1, heads=2, image_size=28)
    config = ImprintConfig(
        resolution=64,
        background="blend",
        encoder=encoder,
        adapter=tokens_adapter(encoder, layers=1, heads=2, output_width=32),
        unet=UNetConfig(
            in_channels=4,
            out_channels=4,
            widths=(32, 64),
            layers_per_block=1,
            transformer_layers=(1, 0),
            mid_transformer_layers=1,
            heads=(1, 2),
            context_width=32,
        ),
        latent=LatentConfig(autoencoder="tiny", channels=4, downscale=8, scale_factor=1.0),
        noise=NoiseConfig(1000, 0.00085, 0.012, prediction_type="v_prediction", zero_terminal_snr=True),
        sampling=SamplingConfig(steps=3, guidance_scale=2.0, context=1.6),
    )
    return dataclasses.replace(config, **changes)


def concat_config() -> ImprintConfig:
    """Like `micro_config`, with SD-inpainting's nine input channels."""
    config = micro_config()
    return micro_config(background="concat", unet=dataclasses.replace(config.unet, in_channels=9))


def matte_config() -> ImprintConfig:
    """Like `micro_config`, with a predicted matte."""
    config = micro_config()
    return micro_config(matte=2, unet=dataclasses.replace(config.unet, out_channels=12))


def sdxl_config(**changes) -> ImprintConfig:
    """Like `matte_config`, with all features of SDXL's UNet.

    Two of its levels, the deeper one with more layers, linear projections, and conditions.
    """
    unet = UNetConfig(
        in_channels=4,
        out_channels=12,
        widths=(32, 64, 128),
        layers_per_block=2,
        transformer_layers=(0, 1, 2),
        mid_transformer_layers=2,
        heads=(1, 2, 4),
        context_width=32,
        linear_projections=True,
        pooled_width=16,
    )
    return dataclasses.replace(matte_config(), unet=unet, **changes)


def third_party_config() -> ImprintConfig:
    """Like `concat_config`, with everything that third-party models do differently.

    CLIP, a stretched object, the channels' order, and the timesteps.
    """
    config = concat_config()
    encoder = dataclasses.replace(
        config.encoder,
        kind="clip",
        output="cls",
        surroundings="kept",
        fit="stretch",
        object_margin=0.0,
        several_views=False,
    )
    noise = dataclasses.replace(
        config.noise, prediction_type="epsilon", zero_terminal_snr=False, timestep_spacing="leading"
    )
    return dataclasses.replace(
        config,
        encoder=encoder,
        adapter=tokens_adapter(encoder, layers=1, heads=1, output_width=32),
        noise=noise,
        concat_order="background, mask",
        concat_mask="background",
        hole_value=0.25,
    )


def told_config() -> ImprintConfig:
    """Like `third_party_config`, with ControlCom's additions: what to change, local tokens, and boxes as holes."""
    config = third_party_config()
    return dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, surroundings="black", local_layer=1),
        unet=dataclasses.replace(config.unet, in_channels=11, local_levels=1, local_region="corner"),
        hole_shape="box",
        changes=True,
    )


def sketched_config() -> ImprintConfig:
    """Like `micro_config`, with everything that differs in AnyDoor: a ControlNet for a sketch, and a linear adapter."""
    config = micro_config()
    encoder = dataclasses.replace(
        config.encoder,
        object_margin=0.1,
        several_views=False,
        surroundings="white",
        resize="opencv",
        nothing="black",
    )
    return dataclasses.replace(
        config,
        background="control",
        encoder=encoder,
        adapter=dataclasses.replace(config.adapter, kind="linear", layers=0, heads=1),
        noise=third_party_config().noise,
    )


def fresh_checkpoint(config: ImprintConfig, seed: int = 0, with_vae: bool = True) -> Checkpoint:
    """Random weights that react to the object as strongly as trained ones do."""
    from imprint.model import build_modules, module_tensors

    torch.manual_seed(seed)
    modules = build_modules(config, with_vae)
    if config.encoder.nothing == "learned":
        torch.nn.init.normal_(modules["adapter"].null_embedding)
    if config.background == "control":  # its last layers are zero until trained
        control = modules["control"]
        for layer in (
            *control.controlnet_down_blocks,
            control.controlnet_mid_block,
            control.controlnet_cond_embedding.conv_out,
        ):
            torch.nn.init.normal_(layer.weight, std=0.1)
    return Checkpoint(config, module_tensors(modules))


def micro_light(seed: int = 0) -> LightNet:
    """A light network of a few thousand weights that changes everything: bright and dark maps, and a strong shadow."""
    from imprint.lightnet import LightConfig, LightNet

    torch.manual_seed(seed)
    net = LightNet(LightConfig(resolution=64, widths=(8, 16, 16, 32), blocks=1))
    torch.nn.init.normal_(net.head[-1].weight, std=0.1)
    net.head[-1].bias.data.view(13, 4)[6] = 3
    return net.eval().requires_grad_(False)


def random_dinov2(swiglu: bool = False, registers: int = 0):
    """transformers' own random DINOv2, of a size that none of our configurations has: four patches a side, not two."""
    import transformers

    sizes = dict(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=56,
        mlp_ratio=4, use_swiglu_ffn=swiglu,
    )  # fmt: skip
    torch.manual_seed(0)
    if registers:
        sizes["num_register_tokens"] = registers
        model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes))
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    return varied(model)


def random_dinov3(**changes):
    """transformers' own random DINOv3, of a size that none of our configurations has."""
    import transformers

    sizes = dict(
        hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, num_register_tokens=3
    )  # fmt: skip
    torch.manual_seed(0)
    return varied(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes | changes)))


def varied(model):
    """Randomise all weights: fresh LayerNorms and LayerScales are uniform and would hide a mistake."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with noise on top, so that every pixel differs from its neighbours."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray((np.asarray(coarse) * 0.8 + random.integers(0, 50, (height, width, 3))).astype(np.uint8))


def rectangle(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A mask, white in (left, top, right, bottom)."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def cutout(width: int, height: int, seed: int = 0) -> Image.Image:
    """An object: a photo with an alpha channel that is opaque in an ellipse."""
    picture = photo(width, height, seed)
    y, x = np.mgrid[:height, :width]
    inside = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) < 0.16
    picture.putalpha(Image.fromarray((inside * 255).astype(np.uint8)))
    return picture


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache  # it contains its time of creation
def profile(kind: str) -> bytes:
    """An ICC profile: RGB with other primaries ("wide"), sRGB, or Lab."""
    if kind == "lab":
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if kind == "wide":  # the red and green primaries are swapped, so that every picture changes
        entries = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * data[131], 12)}
        red, green = entries[b"rXYZ"], entries[b"gXYZ"]
        data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    return bytes(data)


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that it does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


class Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)
