"""What a run reports about its data: what is usable and why the rest is not, shares, enlargement, licences."""

import json

import pytest
import torch
from micro import cutout, micro_config, photo
from PIL import Image
from runs import words

from training import train
from training.data.shards import Record, Sample
from training.pairs.about import CUT, LARGE, SMALL, USABLE
from training.pairs.account import enlargement, sentences, usable
from training.pairs.pair_maker import PairMaker
from training.pairs.photos import Photos
from training.pairs.views import Views

MIX = {"rendered": 0.5, "still": 0.3, "video": 0.1, "patch": 0.1}


def record(name: str, licence: str = "CC0", frame: int = 0) -> Record:
    return Record(name, name, frame, "test", licence, (1, 7))


def scene(name: str, *boxes: tuple[int, int, int, int], side: int = 100, licence: str = "CC0") -> Sample:
    mask = Image.new("L", (side, side))
    for number, box in enumerate(boxes, 1):
        mask.paste(number, box)
    return Sample(record(name, licence), photo(side, side, seed=len(name)), mask)


def views(side: int = 100, count: int = 2) -> Views:
    return Views.of([Sample(record("mug", "own", view), cutout(side, side, seed=view)) for view in range(count)], 64)


def test_every_annotated_object_has_one_fate():
    photos = Photos.of(
        [
            scene("usable", (20, 20, 60, 60)),
            scene("small and cut", (20, 20, 24, 60), (90, 20, 100, 60)),
            scene("large", (2, 2, 97, 97)),
            scene("vanishes", (50, 50, 51, 51), side=1000),
        ],
        64,
    )
    assert photos.about.objects == {USABLE: 1, SMALL: 2, CUT: 1, LARGE: 1} and photos.annotated == 5


def test_an_object_in_several_squares_counts_once_and_by_its_best():
    picture, mask = photo(320, 100), Image.new("L", (320, 100))
    mask.paste(1, (80, 20, 140, 70))  # the first square's border cuts it, a square of its own does not
    mask.paste(2, (0, 40, 60, 60))  # the picture's own border does
    photos = Photos.of([Sample(record("wide"), picture, mask)], 64)
    assert photos.about.objects == {USABLE: 1, CUT: 1}


def test_cut_outs_are_no_photos():
    photos = Photos.of([scene("a", (20, 20, 60, 60)), Sample(record("mug"), cutout(60, 60))], 64)
    assert len(photos.rgb) == 1 and photos.about.left_out == {"cut-outs, which are not photos": 1}


def test_objects_are_measured_against_their_size_in_targets():
    stored, shown = torch.tensor([50.0, 100.0, 200.0]), torch.full((3,), 100.0)
    assert enlargement(stored, shown) == {"median": 1.0, "share above 1.5": 0.333}
    # Cut-outs of 100 px, held at 64, that fill their picture: the middle of 35 to 80 % of 64 px is 36.8.
    data = views(), Photos.of([scene("a", (20, 20, 60, 60))], 96)
    extent = float((data[0].boxes[:, 2:] - data[0].boxes[:, :2]).amax(1).float().quantile(0.5))
    found = usable(*data, "compositing", 64)["enlargement"]
    assert found["cut-outs"]["median"] == pytest.approx(0.575 * 64 / extent, abs=0.01)
    # An object of 40 of 100 stored pixels, held at 96: 38.4 of 96 pixels, one of which is 100 / 96 stored ones.
    held = float((data[1].boxes[:, 2:] - data[1].boxes[:, :2]).amax())
    assert found["objects of photos"]["median"] == pytest.approx(0.575 * 64 / held, abs=0.01)
    assert found["photos"]["median"] == pytest.approx(64 / 0.75 / 96, abs=0.01)
    larger = usable(*data, "compositing", 512)["enlargement"]
    assert larger["cut-outs"]["median"] == pytest.approx(8 * found["cut-outs"]["median"], rel=0.02)
    data = views(32), Photos.of([scene("a", (8, 8, 24, 24), side=40)], 96)
    stored_small = usable(*data, "compositing", 64)["enlargement"]  # held larger than stored: what is stored counts
    assert stored_small["photos"]["median"] == pytest.approx(64 / 0.75 / 40, abs=0.01)
    assert stored_small["cut-outs"]["median"] == pytest.approx(2 * found["cut-outs"]["median"], rel=0.1)


def test_the_account_says_why_and_warns_of_small_pictures():
    photos = Photos.of([scene("a", (20, 20, 60, 60)), scene("b", (20, 20, 24, 60), licence="CC-BY-4.0")], 96)
    maker = PairMaker(micro_config(), "compositing", views(count=1), photos, MIX)
    assert maker.shares(20) == {"rendered": 0.55, "still": 0.35, "patch": 0.1}  # of 20 pairs as they are drawn
    found = usable(maker.views, photos, "compositing", 64) | {"mix": {"pairs of 64 px as drawn": maker.shares(20)}}
    text = "\n".join(sentences("train", found, 64))
    for part in (
        "train: 1 views, 1 objects of views, 2 squares of photos, 2 annotated objects, 1 usable objects",
        "1 under 15% of their square",
        "1 objects of one view, which pairs with itself",
        "1 objects without another frame, for video",
        "train: pairs of 64 px as drawn: rendered 55%, still 35%, patch 10%",
        "train: licences of cut-outs: own 100%",
        "train: licences of photos: CC0 50%, CC-BY-4.0 50%",
    ):
        assert part in text, text
    assert "warning" not in text
    warned = sentences("train", usable(maker.views, photos, "compositing", 512), 512)
    assert [line.partition(" are smaller")[0] for line in warned if line.startswith("warning")] == [
        "warning: cut-outs",
        "warning: objects of photos",
        "warning: photos",
    ]


@pytest.mark.parametrize("pool", [None, 1])
def test_a_run_prints_and_logs_it_also_where_data_stream(data, tmp_path, capfd, pool):
    given = words(data, tmp_path / "run", "compositing", init=data / "start.safetensors", pool=pool)
    train.main([*given, "--resolutions", "64", "96"])
    said = capfd.readouterr().err
    assert "train: pairs of 64 px as drawn: rendered" in said and "train: pairs of 96 px as drawn: rendered" in said
    assert "shown" in said and "in targets of 96 px" in said and "licences of photos: CC0 100%" in said
    partial = "train: all this is of what the first process holds now: 1 of 3 shards of photos\n"
    assert (partial in said) == (pool is not None)
    logged = json.loads((tmp_path / "run/usable.json").read_text(encoding="utf-8"))
    train_part = logged["train"]
    assert train_part.get("shards") == ({"cut-outs": [1, 1], "photos": [1, 3]} if pool else None)
    assert sum(train_part["mix"]["pairs of 64 px as drawn"].values()) == pytest.approx(1)
    assert train_part["licences"]["cut-outs"] == {"CC0": 12} and "enlargement" in logged["held-out"]
