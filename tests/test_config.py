import dataclasses
import json

import pytest
from micro import concat_config, micro_config, third_party_config, told_config

from imprint.config import PRESETS, ImprintConfig, LatentConfig, dinov2
from imprint.errors import ImprintError


@pytest.mark.parametrize(
    "config", [*PRESETS.values(), micro_config(), concat_config(), third_party_config(), told_config()]
)
def test_json_round_trip_is_exact(config):
    text = config.to_json()
    again = ImprintConfig.from_json(text)
    assert again == config
    assert again.to_json() == text
    assert "\n" not in text


def test_presets_are_the_documented_models():
    tiny, sd15, giant = (PRESETS[name] for name in ("tiny", "sd15", "sd15-g"))
    assert (tiny.resolution, tiny.latent.autoencoder, tiny.background) == (256, "tiny", "blend")
    assert tiny.noise.prediction_type == "v_prediction" and tiny.noise.zero_terminal_snr
    # SD 1.5's UNet and autoencoder
    assert sd15.unet.widths == (320, 640, 1280, 1280) and sd15.unet.context_width == 768
    assert (sd15.resolution, sd15.latent.scale_factor) == (512, 0.18215)
    assert sd15.noise.prediction_type == "epsilon"
    # DINOv2 ViT-L/14 and ViT-g/14 at 224 px: 16 x 16 patches and CLS
    assert (sd15.encoder.width, sd15.encoder.layers, sd15.encoder.heads) == (1024, 24, 16)
    assert (giant.encoder.width, giant.encoder.layers, giant.encoder.swiglu) == (1536, 40, True)
    assert sd15.encoder.tokens == giant.encoder.tokens == 257


def test_every_field_is_required():
    values = json.loads(PRESETS["tiny"].to_json())
    for name, part in values.items():
        lacking = {key: value for key, value in values.items() if key != name}
        with pytest.raises(ImprintError, match=name):
            ImprintConfig.from_json(json.dumps(lacking))
        for field in part if isinstance(part, dict) else ():
            cut = {key: value for key, value in part.items() if key != field}
            with pytest.raises(ImprintError, match=field):
                ImprintConfig.from_json(json.dumps(values | {name: cut}))


def change(path: str, value) -> str:
    """The tiny preset's JSON with one value changed."""
    values = json.loads(PRESETS["tiny"].to_json())
    *parents, last = path.split(".")
    inner = values
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("resolution", "256", "resolution"),
        ("resolution", 256.0, "resolution"),
        ("resolution", -256, "resolution"),
        ("resolution", 264, "not a multiple of 32"),
        ("resolution", True, "resolution"),
        ("background", "paint", "'blend' or 'concat'"),
        ("background", ["blend"], "'blend' or 'concat'"),
        ("background", "concat", "need 9 and 36"),
        ("surplus", 1, "surplus"),
        ("encoder", [], "JSON object"),
        ("encoder.swiglu", 1, "swiglu"),
        ("encoder.width", 0, "EncoderConfig.width is 0"),
        ("encoder.heads", 0, "heads"),
        ("encoder.heads", 7, "heads"),
        ("encoder.patch_size", 0, "patch"),
        ("encoder.patch_size", 15, "patch"),
        ("encoder.width", 384, "gives 257 tokens of width 384.*257 of width 256"),
        ("encoder.image_size", 112, "gives 65 tokens.*257"),
        ("adapter.kind", "mlp", "'tokens' or 'conv'"),
        ("adapter.heads", 0, "heads"),
        ("adapter.output_tokens", 77, "use 'conv'"),
        ("adapter.output_width", 768, "768.*UNet takes 256"),
        ("unet.widths", [], "widths"),
        ("unet.widths", [96, 100, 192], "multiple"),
        ("unet.widths", [0, 192, 192], "width"),
        ("unet.widths", [96, 192], "levels"),
        ("unet.widths", [96, "192", 192], "widths"),
        ("unet.heads", [3, 6], "heads"),
        ("unet.heads", [0, 6, 6], "heads"),
        ("unet.heads", [3, 6, 7], "192.*7 heads"),
        ("unet.transformer_layers", [1, 1, 2], "transformer"),
        ("latent.autoencoder", "vq", "'tiny' or 'kl'"),
        ("latent.downscale", 0, "downscale"),
        ("latent.scale_factor", None, "scale_factor"),
        ("noise.prediction_type", "sample", "prediction"),
        ("noise.prediction_type", "epsilon", "zero terminal SNR"),
        ("noise.timesteps", 0, "timesteps"),
        ("noise.timestep_spacing", "linspace", "'trailing' or 'leading'"),
        ("encoder.kind", "siglip", "'dinov2' or 'dinov3' or 'clip'"),
        ("encoder.kind", ["clip"], "'dinov2' or 'dinov3' or 'clip'"),
        ("encoder.output", "cls", "gives 1 tokens.*257"),
        ("encoder.surroundings", "grey", "'black' or 'kept' or 'white'"),
        ("encoder.resize", "pillow", "'antialias' or 'opencv'"),
        ("encoder.nothing", "black", "adapter is 'tokens' and no object is 'black'"),
        ("adapter.kind", "linear", "no transformer layers"),
        ("encoder.fit", "crop", "'pad' or 'stretch'"),
        ("encoder.several_views", 1, "several_views"),
        ("concat_order", "mask", "'mask, background' or 'background, mask'"),
        ("concat_mask", "object", "'hole' or 'background'"),
        ("hole_value", 1.5, "from 0 to 1"),
        ("hole_value", -0.5, "hole_value"),
        ("sampling.steps", 0, "steps"),
    ],
)
def test_a_wrong_value_is_named(path, value, message):
    with pytest.raises(ImprintError, match=message) as caught:
        ImprintConfig.from_json(change(path, value))
    assert "\n" not in str(caught.value)


def test_a_clip_encoder_has_no_parts_of_dinov2():
    for part in ({"swiglu": True}, {"register_tokens": 4}):
        with pytest.raises(ImprintError, match="CLIP"):
            dataclasses.replace(dinov2(width=32, layers=1, heads=2, image_size=28), kind="clip", **part)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"tiny"', "{}", "[" * 100_000, '{"resolution": NaN}'])
def test_anything_else_is_no_configuration(text):
    with pytest.raises(ImprintError, match="configuration"):
        ImprintConfig.from_json(text)


def test_not_a_number_is_refused():
    with pytest.raises(ImprintError, match="finite"):
        ImprintConfig.from_json(change("sampling.guidance_scale", float("nan")))


def test_whole_numbers_serve_as_floats():
    config = ImprintConfig.from_json(change("sampling.guidance_scale", 3))
    assert type(config.sampling.guidance_scale) is float


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["tiny"].resolution = 512


def test_a_config_built_in_python_is_checked_too():
    with pytest.raises(ImprintError, match="autoencoder"):
        LatentConfig(autoencoder="vq", channels=4, downscale=8, scale_factor=1.0)
    with pytest.raises(ImprintError, match="heads"):
        dinov2(width=100, layers=1, heads=3)
