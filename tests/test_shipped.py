"""The shipped checkpoint on ten pairs of a sample object and a box in a photo; former checkpoints still load."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from drawing import DrawingPipeline
from micro import fresh_checkpoint, seeded
from PIL import Image
from safetensors import safe_open

from imprint.checkpoint import SHIPPED, save_checkpoint
from imprint.config import EncoderConfig, ImprintConfig
from imprint.finishing import Finish
from imprint.images import image_to_tensor
from imprint.lora import FEW_STEPS, merge_lora
from imprint.mask_reading import alpha_to_tensor, mask_to_tensor
from imprint.preprocess import prepare_object

ROOT = Path(__file__).parents[1]
SAMPLES = SHIPPED.parent / "samples"
OBJECTS = {"duck.webp": None, "object.png": None, "sloth_1.webp": None, "bear.jpg": "bear_mask.png"}  # and their masks
BOXES = {
    "street.jpg": (90, 235, 215, 360),
    "hall.jpg": (120, 165, 270, 345),
    "room.jpg": (140, 235, 290, 385),
    "background.png": (80, 210, 230, 385),
}
PAIRS = [
    ("duck.webp", "street.jpg"),
    ("duck.webp", "hall.jpg"),
    ("duck.webp", "room.jpg"),
    ("object.png", "street.jpg"),
    ("object.png", "hall.jpg"),
    ("object.png", "background.png"),
    ("sloth_1.webp", "room.jpg"),
    ("sloth_1.webp", "background.png"),
    ("bear.jpg", "hall.jpg"),
    ("bear.jpg", "background.png"),
]

# What the first shipped checkpoint said of itself, in November 2026: no matte, and guidance 3.
FIRST = (
    '{"adapter": {"heads": 8, "input_tokens": 257, "input_width": 256, "kind": "tokens", "layers": 1, '
    '"output_tokens": 257, "output_width": 256}, "background": "blend", "encoder": {"heads": 8, "image_size": 224, '
    '"layers": 5, "mlp_ratio": 4, "object_margin": 0.05, "patch_size": 14, "register_tokens": 0, "swiglu": false, '
    '"width": 256}, "latent": {"autoencoder": "tiny", "channels": 4, "downscale": 8, "scale_factor": 1.0}, '
    '"noise": {"beta_end": 0.012, "beta_start": 0.00085, "prediction_type": "v_prediction", "timesteps": 1000, '
    '"zero_terminal_snr": true}, "resolution": 256, "sampling": {"context": 1.6, "guidance_scale": 3.0, "steps": '
    '20}, "unet": {"context_width": 256, "heads": [3, 6, 6], "in_channels": 4, "layers_per_block": 1, '
    '"mid_transformer_layers": 1, "out_channels": 4, "transformer_layers": [1, 2, 0], "widths": [96, 192, 192]}}'
)


@pytest.fixture(scope="module")
def shipped() -> DrawingPipeline:
    return DrawingPipeline.from_checkpoint()


def test_the_recorded_hash_is_the_file_s():
    recorded = re.search(r"SHA-256\n`(\w{64})`", (ROOT / "docs" / "log.md").read_text())[1]
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == recorded
    assert SHIPPED.stat().st_size <= 48e6


def test_a_checkpoint_of_the_first_kind_still_loads_and_runs(tmp_path):
    config, path = ImprintConfig.from_json(FIRST), tmp_path / "first.safetensors"
    save_checkpoint(path, fresh_checkpoint(config))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["config"] == FIRST and metadata["format_version"] == "1"  # what is written now is what was then
    pipeline = DrawingPipeline.from_checkpoint(path)
    result = pipeline(*read_object("duck.webp"), *read_place("street.jpg"), 1)
    assert result.alpha is None and result.images[0].size == Image.open(SAMPLES / "street.jpg").size
    assert pipeline.model_config.sampling.guidance_scale == 3.0


def read_object(name: str) -> tuple[Image.Image, Image.Image | None]:
    mask = OBJECTS[name]
    return Image.open(SAMPLES / name), mask and Image.open(SAMPLES / mask)


def read_place(name: str) -> tuple[Image.Image, Image.Image]:
    """A photo and the box in it."""
    scene = Image.open(SAMPLES / name)
    hole = Image.new("L", scene.size)
    hole.paste(255, BOXES[name])
    return scene, hole


def features(picture: torch.Tensor, alpha: torch.Tensor, config: EncoderConfig) -> torch.Tensor:
    """An object, cut out, as 8 x 8 pixels minus their mean: which colour is where."""
    _, cutout = prepare_object(picture, alpha, config)
    small = torch.nn.functional.adaptive_avg_pool2d(cutout, 8).flatten()
    return torch.nn.functional.normalize(small - small.mean(), dim=0)


def likeness(config: EncoderConfig, made: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity of each of `PAIRS`' objects to its own photo, and by how much that exceeds its similarity to the
    others'.
    """
    references = []
    for name in OBJECTS:
        photo, mask = read_object(name)
        alpha = alpha_to_tensor(photo) if mask is None else mask_to_tensor(mask)
        references.append(features(image_to_tensor(photo), alpha, config))
    similarity = torch.stack(made) @ torch.stack(references).T
    index = torch.tensor([list(OBJECTS).index(name) for name, _ in PAIRS])[:, None]
    own = similarity.gather(1, index)[:, 0]
    return own, own - similarity.scatter(1, index, -1).amax(1)


@pytest.fixture(scope="module")
@torch.no_grad()
def drawn(shipped) -> list[tuple]:
    """Each of `PAIRS` drawn in ten steps, as `finish` takes it."""
    drawings = []
    for name, background in PAIRS:
        scene = shipped.prepare(*read_object(name), *read_place(background))
        noise = torch.randn(scene.latents.shape, generator=seeded())
        drawings.append((scene, *shipped.denoise(scene.context, scene.latents, scene.hole, noise, steps=10)))
    return drawings


@torch.no_grad()
@pytest.mark.parametrize("detail", [0.0, 1.0])
def test_the_identity_score_of_ten_pairs_and_the_rest_of_the_box_stays_the_photo(shipped, drawn, detail):
    """Each composite's object, cut out with the predicted alpha, is more like its own reference than like the others'.

    Without detail it is the model's own drawing; with detail, mostly the photo.
    """
    config, made = shipped.model_config.encoder, []
    for (name, background), drawing in zip(PAIRS, drawn):
        scene, hole = read_place(background)
        result = shipped.finish(*drawing, Finish(feather_pixels=0, detail=detail, shadow=0.0), "pt")
        place = result.placement
        made.append(features(place.extract(result.images), result.alpha, config))

        inside = mask_to_tensor(hole)[0] > 0.5
        kept = (result.images == image_to_tensor(scene)).all(1)[0]
        covered = float(place.insert(torch.zeros(1, 1, *inside.shape), result.alpha[:, None])[0, 0][inside].mean())
        assert kept[~inside].all(), (name, background)
        assert 0.25 < covered < 0.95, (name, background, covered)
        assert kept[inside].float().mean() > 0.1, (name, background)
    own, gap = likeness(config, made)
    assert (gap > 0.1).all() and (gap > 0.15).sum() >= 9, gap
    assert own.mean() > 0.75, own


@torch.no_grad()
def test_with_its_lora_two_steps_draw_what_ten_draw(shipped, drawn):
    """Closer to it than two steps without, and its objects still more like their references than like the others'."""
    fast = DrawingPipeline.from_checkpoint()
    merge_lora(fast.unet, FEW_STEPS)
    errors, made = [], []
    for scene, latents, *_ in drawn:
        noise = torch.randn(scene.latents.shape, generator=seeded())
        both = [each.denoise(scene.context, scene.latents, scene.hole, noise, steps=2) for each in (shipped, fast)]
        errors.append([float((found[0] - latents).abs().mean()) for found in both])
        result = fast.finish(scene, *both[1], Finish(feather_pixels=0, detail=0.0, shadow=0.0), "pt")
        made.append(features(result.placement.extract(result.images), result.alpha, shipped.model_config.encoder))
    own, gap = likeness(shipped.model_config.encoder, made)
    without, with_lora = torch.tensor(errors).T
    assert (with_lora < without).all() and with_lora.mean() < 0.7 * without.mean(), errors
    assert (gap > 0.1).all() and own.mean() > 0.75, (own, gap)


@torch.no_grad()
def test_by_default_the_photo_itself_stands_in_the_box(shipped):
    """Ten pairs again, without `fit`: nothing is drawn, so each object is its own photo in the scene's light."""
    config, made = shipped.model_config.encoder, []
    for name, background in PAIRS:
        scene, hole = read_place(background)
        result = shipped(*read_object(name), scene, hole, output_type="pt", fit="contain")
        alpha = torch.zeros(1, *result.images.shape[2:])
        alpha[(slice(None), *result.lit.area)] = result.lit.alpha[:, 0]
        made.append(features(result.images, alpha, config))
        left, top, right, bottom = BOXES[background]
        covered = (alpha[0] > 0.1).nonzero()
        low, high = covered.amin(0).tolist(), (covered.amax(0) + 1).tolist()
        assert low[0] >= top and low[1] >= left and high[0] in (bottom - 1, bottom) and high[1] <= right
        before = image_to_tensor(scene)
        around = (alpha == 0).expand(3, -1, -1)
        assert (result.images[0][around] <= before[0][around]).all()  # shadow, and nothing else
    own, gap = likeness(config, made)
    assert (gap > 0.2).all() and own.min() > 0.85, (own, gap)


@torch.no_grad()
def test_words_on_the_object_are_the_photo_s(shipped):
    """The model cannot draw them; with detail, the object's face shows what its photo shows."""
    side = 192
    board = torch.nn.functional.interpolate(
        torch.rand(1, 1, 24, 24, generator=seeded()).round(), (side, side), mode="nearest"
    )
    photo = torch.cat([0.2 + 0.6 * board, 0.3 + 0.2 * board, 0.7 - 0.5 * board], 1)
    mask = torch.ones(1, side, side)
    photo, mask = (torch.nn.functional.pad(each, (32,) * 4) for each in (photo, mask))
    scene = Image.open(SAMPLES / "room.jpg")
    hole = Image.new("L", scene.size)
    hole.paste(255, (140, 215, 290, 365))

    def fine(picture: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        _, cutout = prepare_object(picture, alpha, shipped.model_config.encoder)
        inner = cutout[:, :, 40:-40, 40:-40]
        return (inner - torch.nn.functional.avg_pool2d(inner, 33, 1, 16, count_include_pad=False)).flatten()

    alike = []
    for detail in (0.0, 1.0):
        generator = seeded()
        result = shipped(photo, mask, scene, hole, 6, generator=generator, output_type="pt", detail=detail)
        alpha = result.placement.insert(torch.zeros(1, 1, *result.images.shape[2:]), result.alpha[:, None])[:, 0]
        alike.append(float(torch.nn.functional.cosine_similarity(fine(result.images, alpha), fine(photo, mask), dim=0)))
    assert alike[1] > max(0.5, alike[0] + 0.1), alike
