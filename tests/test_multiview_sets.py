"""Data sets that show an object from many sides, and meshes rendered that way, converted to shards."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
import trimesh
from micro import photo
from preparing import (
    CPU,
    HEIGHT,
    WIDTH,
    assert_both_stages_train_on,
    disc,
    prepare,
    read,
    render,
    save,
    save_photo,
    write_broken,
)

from imprint.errors import ImprintError
from training.data.shards import read_shards
from training.pairs.views import Views

# --- video -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["2.0", "1.0", "rgba"])
def test_mvimgnet(tmp_path, layout):
    root = tmp_path / "MVImgNet"
    for thing in ("0100012d", "010005ca"):
        folder = root / "1" / thing
        for frame in range(1, 17):
            picture = photo(WIDTH, HEIGHT, frame)
            save(picture, folder / "images" / f"{frame:03d}.jpg")
            if layout == "2.0":
                save(disc(), folder / "masks" / f"{frame:03d}.png")
            elif layout == "1.0":
                save(disc(), tmp_path / "mask" / "1" / thing / f"{frame:03d}.jpg.png")
            else:
                picture.putalpha(disc(value=255 if frame > 1 else 128))  # faint, and an object all the same
                save(picture, folder / "images" / f"{frame:03d}_rgba.png")
        write_broken(folder / "sparse/0/cameras.bin")
    for frame in range(1, 16):
        write_broken(root / f"1/010005ca/images/{frame:03d}.jpg")

    report = prepare("mvimgnet", root, tmp_path / "out", views=8)
    samples = read(tmp_path / "out")
    frames = sorted(frame for _, frame in samples)
    assert {clip for clip, _ in samples} == {"1/0100012d"}
    assert frames == list(range(0, 16, 2))
    assert all(record.gap == (2, 16) and record.object == "1/0100012d" for record, *_ in samples.values())
    assert all(set(np.unique(mask)) == {0, 1} for _, _, mask, _ in samples.values())
    assert report["dropped"]["broken picture"] == 8
    assert_both_stages_train_on(tmp_path / "out/train", "still", "video", views=tmp_path / "out/train")


def test_objaverse_and_meshes(tmp_path):
    root = tmp_path / ".objaverse" / "hf-objaverse-v1"
    for chunk, uid, colour in (("000-000", "aa", 200), ("000-001", "bb", 90)):
        mesh = trimesh.creation.box()
        mesh.visual.vertex_colors = [colour, 40, 255 - colour, 255]
        (root / "glbs" / chunk).mkdir(parents=True)
        mesh.export(root / "glbs" / chunk / f"{uid}.glb")
    write_broken(root / "glbs/000-001/cc.glb")
    (root / "metadata").mkdir()
    with gzip.open(root / "metadata/000-000.json.gz", "wt") as file:
        json.dump({"aa": {"license": "by-sa", "name": "A box"}}, file)

    report = render("objaverse", root.parent, tmp_path / "out", licence=None, views=3, resolution=48)
    samples = list(read_shards(tmp_path / "out" / "train"))
    assert Counter(record.object for record, *_ in samples) == {"000-000/aa.glb 0": 3, "000-001/bb.glb 0": 3}
    assert {record.source: record.licence for record, *_ in samples} == {
        "Objaverse 000-000/aa.glb": "CC-BY-SA-4.0",
        "Objaverse 000-001/bb.glb": "unknown",
    }
    for record, picture, *_ in samples:
        alpha = np.asarray(picture)[..., 3]
        assert picture.mode == "RGBA" and picture.size == (48, 48) and record.gap == (0, 3)
        assert 0.05 < (alpha > 127).mean() < 0.95 and not alpha[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    lights = {
        tuple(np.asarray(picture)[..., :3].max((0, 1))) for record, picture, *_ in samples if "aa" in record.object
    }
    assert len(lights) == 3  # each view has a light of its own
    assert report["dropped"] == {"broken mesh": 1}

    index = [{"file": "000-000/aa.glb", "source": "here", "licence": "MIT", "procedural": False}]
    (root / "glbs/index.json").write_text(json.dumps(index))
    save_photo(tmp_path / "photos/one.jpg")
    more = dict(identities=12, textures=tmp_path / "photos", views=2, resolution=32, licence=None)
    report = prepare("meshes", root / "glbs", tmp_path / "meshes", **more)
    licences = {record.source: record.licence for record, *_ in read_shards(tmp_path / "meshes" / "train")}
    assert licences == {"here 000-000/aa.glb": "MIT", "unknown 000-001/bb.glb": "unknown"}
    assert report["counts"]["train"] == {"pictures": 16, "objects": 16, "groups": 8}
    assert report["dropped"] == {"broken mesh": 4}
    assert_both_stages_train_on(tmp_path / "out/train", views=tmp_path / "out/train")


def test_meshes_lit_by_panoramas_bring_the_place_and_their_shadow_along(tmp_path, capsys):
    import cv2

    mesh = trimesh.creation.box()
    mesh.visual.vertex_colors = [200, 40, 90, 255]
    (tmp_path / "meshes").mkdir()
    mesh.export(tmp_path / "meshes/box.glb")
    (tmp_path / "panoramas").mkdir()
    sky = np.full((64, 128, 3), 0.1, np.float32)
    sky[10:14, 30:34] = 300
    cv2.imwrite(str(tmp_path / "panoramas/noon.hdr"), sky)
    options = dict(identities=3, views=3, resolution=48, licence=None, relit=2)
    report = render("meshes", tmp_path / "meshes", tmp_path / "out", panoramas=tmp_path / "panoramas", **options)
    assert report["counts"]["train"] == {"pictures": 15, "objects": 15, "groups": 3}
    samples = list(read_shards(tmp_path / "out/train"))
    assert [sample.record.frame for sample in samples[:5]] == [0, 0, 1, 1, 2]
    for sample in samples:
        lit = sample.scene is not None
        assert lit == (sample.record.shadow is not None) and (not lit or sample.scene.size == (36, 36))
    views = Views.load(tmp_path / "out/train", CPU)
    assert views.count.tolist() == [3, 3, 3] and views.twin.tolist() == [0, 1, -1, 2, 3, -1, 4, 5, -1]
    assert_both_stages_train_on(tmp_path / "out/train", views=tmp_path / "out/train")

    with pytest.raises(SystemExit):
        prepare("meshes", tmp_path / "meshes", tmp_path / "no", **options)
    assert "--relit needs the light of --panoramas" in capsys.readouterr().err
    with pytest.raises(ImprintError, match=r"hold no \.hdr;"):
        prepare("meshes", tmp_path / "meshes", tmp_path / "no", panoramas=tmp_path / "meshes", **options)
