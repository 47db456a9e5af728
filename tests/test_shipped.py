"""What the shipped checkpoint does: four sample objects, each in a box in a photo."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from imprint.checkpoint import SHIPPED
from imprint.images import alpha_to_tensor, image_to_tensor, mask_to_tensor
from imprint.pipeline import ImprintPipeline
from imprint.preprocess import prepare_object

ROOT = Path(__file__).parents[1]
SAMPLES = SHIPPED.parent / "samples"
TASKS = {  # object: its mask, a background, a box
    "duck.webp": (None, "street.jpg", (90, 235, 215, 360)),
    "object.png": (None, "hall.jpg", (120, 165, 270, 345)),
    "sloth_1.webp": (None, "room.jpg", (140, 235, 290, 385)),
    "bear.jpg": ("bear_mask.png", "background.png", (80, 210, 230, 385)),
}


@pytest.fixture(scope="module")
def shipped() -> ImprintPipeline:
    pipeline = ImprintPipeline.from_checkpoint()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_recorded_hash_is_the_file_s():
    recorded = re.search(r"SHA-256\n`(\w{64})`", (ROOT / "training" / "README.md").read_text())[1]
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == recorded
    assert SHIPPED.stat().st_size <= 48e6


@torch.no_grad()
def test_objects_are_themselves_and_the_rest_of_the_box_stays_the_photo(shipped):
    """Each composite's object, cut out by the predicted alpha, is more like its own reference than like the others'.

    Compared in 8 x 8 pixels, without their mean: by which colour is where.
    """
    config = shipped.model_config.encoder

    def features(picture: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        _, cutout = prepare_object(picture, alpha, config)
        small = torch.nn.functional.adaptive_avg_pool2d(cutout, 8).flatten()
        return torch.nn.functional.normalize(small - small.mean(), dim=0)

    references, made = [], []
    for name, (mask, background, box) in TASKS.items():
        photo, scene = Image.open(SAMPLES / name), Image.open(SAMPLES / background)
        hole = Image.new("L", scene.size)
        hole.paste(255, box)
        given = mask and Image.open(SAMPLES / mask)
        references.append(
            features(image_to_tensor(photo), alpha_to_tensor(photo) if mask is None else mask_to_tensor(given))
        )
        result = shipped(
            photo,
            given,
            scene,
            hole,
            10,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            feather_pixels=0,
        )
        place = result.placement
        made.append(features(place.extract(result.images), result.alpha))

        inside = mask_to_tensor(hole)[0] > 0.5
        kept = (result.images == image_to_tensor(scene)).all(1)[0]
        covered = float(place.insert(torch.zeros(1, 1, *inside.shape), result.alpha[:, None])[0, 0][inside].mean())
        assert kept[~inside].all(), name
        assert 0.25 < covered < 0.95, (name, covered)
        assert kept[inside].float().mean() > 0.1, name
    similarity = torch.stack(made) @ torch.stack(references).T
    own = similarity.diagonal()
    others = similarity - 2 * torch.eye(len(TASKS))
    assert (own > others.amax(1) + 0.15).all(), similarity
    assert own.mean() > 0.75, similarity
