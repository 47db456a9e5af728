"""Your own objects, zipped data sets, and captions from anywhere."""

import base64
import functools
import io
import json
import pickle
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from leaving import refused
from micro import cutout, micro_config, photo
from PIL import Image
from preparing import (
    CPU,
    HEIGHT,
    WIDTH,
    assert_both_stages_train_on,
    disc,
    names,
    prepare,
    read,
    save,
    save_photo,
    write_mvimgnet,
    write_youtube_vos,
    zipped,
)

from imprint.errors import ImprintError
from training import prepare as prepare_command
from training.data import archives, describing
from training.data.archives import Zipped, open_folder
from training.data.shards import list_shards, read_parts, read_shards
from training.pairs.photos import Photos
from training.pairs.views import Views


def bytes_of(output: Path) -> dict[str, bytes]:
    """The shards' content; their keys and records do not depend on the data set's location."""
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*.tar"))}


# --- objects ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def objects(tmp_path):
    """A mug of tight cut-outs, a bear of photos with three kinds of masks, and a MureCom-like category."""
    root = tmp_path / "things"
    for number in range(2):
        tight = cutout(60, 50, seed=number)
        save(tight.crop(tight.getchannel("A").getbbox()), root / "mug" / f"{number}.png")
    for number, mask in enumerate(("0.mask.png", "1.png", "2_mask.png")):
        save_photo(root / "bear" / f"{number}.jpg", number)
        save(disc(), root / "bear" / mask)
    save_photo(root / "bear/3.jpg")
    save(photo(30, 30), root / "bear/4.png")  # opaque, and no mask
    save(disc(), root / "bear/9.mask.png")
    save_photo(root / "Airplane/bg/0.jpg")
    save(disc(), root / "Airplane/bg/0_bbox.png")
    for number in range(2):
        save_photo(root / "Airplane/fg1" / f"{number}.jpg", number)
        save(disc(), root / "Airplane/fg1" / f"{number}.png")
        save(disc(), root / "Airplane/fg1" / f"{number}_bbox.png")
        save_photo(root / "Airplane/fg1" / f"{number}_rmobj.jpg")
        save_photo(root / "Airplane/fg1" / f"{number}_aug/0.jpg")
    return root


def test_objects(objects, tmp_path):
    report = prepare("objects", objects, tmp_path / "out")
    samples = read(tmp_path / "out")
    assert {clip for clip, _ in samples} == {"mug", "bear", "Airplane/fg1"} and len(samples) == 7
    assert all(sample.record.gap == (0, 1 << 30) and sample.record.source == "things" for sample in samples.values())
    assert report["counts"]["train"] == {"pictures": 7, "objects": 7, "groups": 3}
    assert names(tmp_path / "out") == {
        ("no mask", "3.jpg"),
        ("no mask", "4.png"),
        ("no mask", "0.jpg"),
        ("mask without a picture", "9.mask.png"),
        *(("aside: a box, or a photo without the object", f"{number}_bbox.png") for number in range(2)),
        *(("aside: a box, or a photo without the object", f"{number}_rmobj.jpg") for number in range(2)),
    }
    for (clip, _), sample in samples.items():
        if clip != "mug":
            assert sample.picture.size == (WIDTH, HEIGHT) and set(np.unique(sample.mask)) == {0, 1}
    assert_both_stages_train_on(tmp_path / "out/train", "still", "video", views=tmp_path / "out/train")


def test_tight_cut_outs_get_room_on_all_sides(objects, tmp_path):
    prepare("objects", objects, tmp_path / "out", **{"longest-side": 40})
    mugs = [sample.picture for (clip, _), sample in read(tmp_path / "out").items() if clip == "mug"]
    for picture in mugs:
        left, top, right, bottom = picture.getchannel("A").point(lambda value: 255 * (value > 127)).getbbox()
        assert picture.mode == "RGBA" and picture.width == picture.height == 40
        assert max(right - left, bottom - top) == pytest.approx(0.8 * 40, abs=2)
        assert min(left, top, 40 - right, 40 - bottom) >= 3
    views, photos = (kind.load(tmp_path / "out/train", CPU, side=32) for kind in (Views, Photos))
    assert sorted(views.count.tolist()) == [2, 2, 3] and photos.about.left_out.total() == 2


# --- zips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("apart", ["mask", ""])
def test_mvimgnet_s_zips_give_what_its_folders_give(tmp_path, apart, method):
    """Zips of classes in one folder and of masks in another, as the download tool leaves them."""
    write_mvimgnet(tmp_path / "folders", tmp_path / "folders" / "mask")
    prepare("mvimgnet", tmp_path / "folders", tmp_path / "one", views=4)
    save_to = tmp_path / "zips"
    for number, category in enumerate(("1", "7")):
        part = tmp_path / f"part{number}"
        write_mvimgnet(part / "all", part / "masks" / apart)
        for other in {"1", "7"} - {category}:
            shutil.rmtree(part / "all" / other)
        zipped(part / "all", save_to / "MVImgNet_origin" / f"mvi_{number:02d}.zip", method)
    zipped(tmp_path / "part0/masks", save_to / "MVImgNet_mask/masks.zip", method)
    (save_to / "MVImgNet_origin/readme.txt").write_text("unzip me")
    report = prepare("mvimgnet", save_to, tmp_path / "two", views=4)
    assert report["counts"]["train"]["pictures"] == 8 and not report["dropped"]
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    prepare("mvimgnet", save_to, tmp_path / "three", views=4, workers=2)  # paths that have travelled
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "three")


def test_other_data_sets_zips_give_what_their_folders_give(objects, tmp_path):
    write_youtube_vos(tmp_path / "vos")
    for source, root, archive in (("youtube-vos", tmp_path / "vos", "train"), ("objects", objects, "things")):
        prepare(source, root, tmp_path / f"{source}-one")
        packed = zipped(root, tmp_path / "zips" / f"{archive}.zip")
        report = prepare(source, packed, tmp_path / f"{source}-two")
        found = list(read_shards(tmp_path / f"{source}-two/train"))
        assert len(found) == report["counts"]["train"]["pictures"] == (6 if source == "youtube-vos" else 7)
        one, two = (read(tmp_path / f"{source}-{name}") for name in ("one", "two"))
        for name, sample in one.items():
            assert two[name].picture.tobytes() == sample.picture.tobytes()
    save_photo(tmp_path / "davis/DAVIS/JPEGImages/480p/bear/00000.jpg")
    save(disc(), tmp_path / "davis/DAVIS/Annotations/480p/bear/00000.png")
    packed = zipped(tmp_path / "davis", tmp_path / "DAVIS-2017-trainval-480p.zip")
    assert prepare("davis", packed, tmp_path / "davis-two")["counts"]["train"]["objects"] == 1
    save_photo(tmp_path / "pictures/a/one.jpg")
    (tmp_path / "pictures/a/one.txt").write_text("a thing")
    packed = zipped(tmp_path / "pictures", tmp_path / "pictures.zip")
    report = prepare("captions", packed, tmp_path / "captions", workers=2)
    assert report["counts"]["train"]["pictures"] == 1


def test_a_damaged_picture_in_a_zip_is_dropped_and_a_damaged_zip_is_said(tmp_path, capsys):
    write_youtube_vos(tmp_path / "vos")
    packed = zipped(tmp_path / "vos", tmp_path / "train.zip", zipfile.ZIP_STORED)
    picture = (tmp_path / "vos/train/JPEGImages/003234408d/00000.jpg").read_bytes()
    data = packed.read_bytes()
    packed.write_bytes(data.replace(picture, picture[:-100] + bytes(100), 1))
    report = prepare("youtube-vos", packed, tmp_path / "out")
    assert report["dropped"] == {"broken picture": 1}
    assert "its checksum does not match" in (tmp_path / "out/data.dropped.tsv").read_text()
    packed.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImprintError, match=r"train\.zip cannot be read as a zip"):
        prepare("youtube-vos", packed, tmp_path / "no")
    with pytest.raises(ImprintError, match="'meshes' is read from folders alone; unpack the zips"):
        zipped(tmp_path / "vos", packed)
        prepare("meshes", packed, tmp_path / "no")
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("../outside.jpg", b"")
    with pytest.raises(ImprintError, match="is outside its folder"):
        prepare("folder", packed, tmp_path / "no")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("one.jpg", b"")
    with pytest.raises(ImprintError, match="compresses one.jpg by a method that is not supported"):
        prepare("folder", packed, tmp_path / "no")


def test_zips_beside_pictures_are_not_read_and_that_is_said(tmp_path, capsys):
    save_photo(tmp_path / "data/one.jpg")
    zipped(tmp_path / "data", tmp_path / "data/all.zip")
    assert open_folder(tmp_path / "data") == tmp_path / "data"
    assert "note: 1 zips in" in capsys.readouterr().err
    (tmp_path / "data/one.jpg").unlink()
    assert isinstance(open_folder(tmp_path / "data"), Zipped) and not capsys.readouterr().err
    with pytest.raises(ImprintError, match=r"no such folder or \.zip"):
        open_folder(tmp_path / "absent")


def test_an_encrypted_zip_is_refused(tmp_path):
    member = zipfile.ZipInfo("one.jpg")
    member.flag_bits = archives.ENCRYPTED
    with pytest.raises(ImprintError, match="is encrypted; unpack it with its password"):
        archives._add({}, "a.zip", member)


def test_what_travels_is_the_folder_alone(tmp_path):
    write_youtube_vos(tmp_path / "vos")
    root = open_folder(zipped(tmp_path / "vos", tmp_path / "train.zip"))
    clip = root / "train/JPEGImages/003234408d"
    arrived = pickle.loads(pickle.dumps(clip))
    assert [path.name for path in sorted(arrived.iterdir())] == ["00000.jpg", "00005.jpg", "00010.jpg"]
    assert arrived == clip and not (arrived.parent / "0043f083b5").is_dir() and not (root / "absent").is_file()
    (picture,) = arrived.glob("00005.*")
    alone = pickle.loads(pickle.dumps(picture))
    assert Image.open(io.BytesIO(alone.read_bytes())).size == (WIDTH, HEIGHT) and alone.parents[-1] == root
    assert not pickle.loads(pickle.dumps(root / "absent/one.jpg")).is_file()


# --- captions --------------------------------------------------------------------------------------------------------


class Files(SimpleHTTPRequestHandler):
    """Serves files, and like many servers always all of one, whatever range is asked for."""

    def log_message(self, *_):
        pass


@pytest.fixture
def web(captioned, tmp_path):
    """An address of the captions' folder."""
    pytest.importorskip("aiohttp", reason="fsspec needs it for HTTP")
    folder = shutil.copytree(captioned / "train", tmp_path / "train")
    (folder / "shards.txt").write_text("".join(f"{shard.name}\n" for shard in folder.glob("*.tar")))
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(tmp_path))) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/train"
        found.shutdown()


def test_captions_are_drawn_from_anywhere_as_from_a_folder(captioned, web):
    import fsspec
    import torch

    from training.pairs.captions import Captions

    memory = fsspec.filesystem("memory")
    for shard in (captioned / "train").glob("*.tar"):
        memory.pipe_file(f"/captions/train/{shard.name}", shard.read_bytes())

    class Text:
        nothing = torch.zeros(1, 2, 32)

        def __call__(self, captions):
            return torch.tensor([[[float(sum(map(ord, caption)))]] for caption in captions])

    local, *remote = (
        Captions(url, micro_config(), Text(), CPU)(6, torch.Generator().manual_seed(3))
        for url in (captioned / "train", "memory://captions/train", web)
    )
    for drawn in remote:
        assert torch.equal(drawn.target, local.target) and torch.equal(drawn.text, local.text)


@pytest.fixture
def server():
    """A server of chat completions; `asked` holds the requests, and `answers` what it replies, in turn."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, self.headers, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, content = answers.pop(0) if answers else (200, f"a thing\n number {len(asked)} ")
            data = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    asked, answers = [], []
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/v1/", asked, answers
    found.shutdown()
    found.server_close()


def test_a_server_describes_pictures_that_have_no_caption(tmp_path, server, monkeypatch):
    address, asked, answers = server
    monkeypatch.setattr(describing.time, "sleep", lambda seconds: None)
    monkeypatch.setenv(describing.KEY, "secret")
    answers += [(503, ""), (200, "")]  # busy, then nothing to say: asked again
    for name in ("one", "two"):
        save_photo(tmp_path / "pictures" / f"{name}.jpg", size=(900, 600))
    (tmp_path / "pictures/two.txt").write_text("its own")
    given = {"describe": address, "describe-model": "small"}
    report = prepare("captions", tmp_path / "pictures", tmp_path / "out", **given)
    assert report["counts"]["train"]["pictures"] == 2 and not report["dropped"]
    texts = {parts["txt"].decode() for shard in list_shards(tmp_path / "out/train") for parts in read_parts(shard)}
    assert texts == {"its own", "a thing number 3"}
    path, headers, body = asked[-1]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret" and body["model"] == "small"
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
    assert sent.size == (512, 341) and sent.format == "JPEG"

    answers.append((401, ""))
    with pytest.raises(
        ImprintError, match=r"gave no caption \(<HTTPError 401.*OPENAI_API_KEY; finished shards are kept"
    ):
        prepare("captions", tmp_path / "pictures", tmp_path / "no", **given)
    assert len(asked) == 4  # a refusal is not asked again


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("captions", ["--describe", "http://x"], "go together"),
        ("folder", ["--describe", "http://x", "--describe-model", "m"], "only with the source 'captions'"),
        ("captions", ["--describe", "file:///x", "--describe-model", "m"], "starts with http://"),
    ],
)
def test_what_cannot_describe_is_said(source, given, message):
    words = [source, "--input", ".", "--output", "x", "--licence", "own", *given]
    assert message in refused(prepare_command.main, words)


def test_a_picture_that_another_zip_has_otherwise_is_not_lost(tmp_path):
    def put(archive: str, files: dict[str, str]) -> None:
        with zipfile.ZipFile(tmp_path / archive, "w") as file:
            for name, text in files.items():
                file.writestr(name, text)

    put("a.zip", {"mug/0.jpg": "one", "readme.txt": "one"})
    put("b.zip", {"mug/0.jpg": "one", "readme.txt": "two"})  # texts may differ
    assert (open_folder(tmp_path) / "mug/0.jpg").read_bytes() == b"one"
    put("b.zip", {"mug/0.jpg": "two"})
    with pytest.raises(ImprintError, match=r"b\.zip and .*a\.zip hold different pictures named mug/0\.jpg"):
        open_folder(tmp_path)
    put("b.zip", {"mug": "a file"})
    with pytest.raises(ImprintError, match=r"b\.zip has the file mug, a folder of another zip"):
        open_folder(tmp_path)
