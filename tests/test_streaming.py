"""Shards from anywhere, split by process, and a window over them that moves on while a model trains."""

import functools
import io
import re
import shutil
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import cutout, micro_config, photo, seeded
from PIL import Image

from imprint.errors import ImprintError
from training.data import shards
from training.data.shards import Record, Sample, list_shards, read_shards, sample, shard_writer, shards_at
from training.pairs import streams as pool
from training.pairs.about import About
from training.pairs.draw import Draw
from training.pairs.pair_maker import PairMaker
from training.pairs.photos import Photos
from training.pairs.pictures import Wanted
from training.pairs.streams import Pool, StreamedPairs
from training.pairs.views import Views

CPU = torch.device("cpu")
COUNT = 5


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """views/ with two objects per shard, photos/ with a clip and a background per shard; five shards each."""
    root = tmp_path_factory.mktemp("stream")
    for number in range(COUNT):
        with shard_writer(root / "cutouts" / f"v-{number}.tar") as writer:
            for view in range(6):
                record = Record(f"thing-{number}-{view // 3}", "", view % 3, "test", "CC0", (0, 3))
                writer.write(sample(f"{view}", encoded(cutout(32, 32, 10 * number + view)), "png", record))
        with shard_writer(root / "photos" / f"p-{number}.tar") as writer:
            for frame in range(3 + number % 2):
                mask = Image.new("L", (96, 96))
                mask.paste(1, (20 + frame, 20, 70 + frame, 70))
                picture = encoded(photo(96, 96, 10 * number + frame))
                writer.write(sample(f"{frame}", picture, "png", Record("", f"clip-{number}", frame, "test", ""), mask))
            background = Record("", f"plain-{number}", 0, "test", "", (0, 0))
            writer.write(sample("plain", encoded(photo(96, 96, number)), "png", background))
    return root


# --- which shards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "processes"), [(6, 1), (6, 2), (7, 3), (2, 4), (1, 3)])
def test_an_epoch_of_all_processes_is_every_shard(count, processes):
    names = [f"{number}.tar" for number in range(count)]
    share = -(-count // processes)
    for epoch in range(3):
        read = Counter()
        for index in range(processes):
            read.update(shards_at(names, (index, processes), 0, epoch * share, share))
        assert (
            set(read) == set(names)
            and sum(read.values()) == share * processes
            and max(read.values()) <= 2 + processes // count
        )
    orders = [tuple(shards_at(names, (0, 1), seed, 0, count)) for seed in range(20)]
    assert all(sorted(order) == names for order in orders) and (count == 1 or len(set(orders)) > 1)


def test_the_sequence_is_a_function_of_its_numbers():
    names = [f"{number}.tar" for number in range(7)]
    whole = shards_at(names, (1, 2), 3, 0, 20)
    assert [shards_at(names, (1, 2), 3, number, 1)[0] for number in range(20)] == whole
    assert shards_at(names, (0, 2), 3, 0, 20) != whole != shards_at(names, (1, 2), 4, 0, 20)


# --- from where ------------------------------------------------------------------------------------------------------


class Handler(SimpleHTTPRequestHandler):
    failures = 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        if Handler.failures and self.path.endswith(".tar"):
            Handler.failures -= 1
            self.send_error(503)
        else:
            super().do_GET()


@pytest.fixture
def server(data):
    pytest.importorskip("aiohttp", reason="fsspec needs it for HTTP")
    (data / "cutouts" / "shards.txt").write_text("".join(f"v-{number}.tar\n" for number in range(COUNT)))
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(data))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_from_a_web_server(data, server, monkeypatch):
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: None)
    local = [(record, np.asarray(picture).tobytes()) for record, picture, *_ in read_shards(data / "cutouts")]
    Handler.failures = 2  # tried again
    served = [(record, np.asarray(picture).tobytes()) for record, picture, *_ in read_shards(f"{server}/cutouts")]
    assert served == local and len(local) == 6 * COUNT
    Handler.failures = 3
    with pytest.raises(ImprintError, match=r"v-0\.tar cannot be read .*tried 3 times"):
        list(read_shards(f"{server}/cutouts"))
    with pytest.raises(ImprintError, match=r"photos has no shards\.txt"):
        list_shards(f"{server}/photos")
    with pytest.raises(ImprintError, match=r"absent\.tar: no such shard"):
        list(read_shards(f"{server}/absent.tar"))


def test_a_lost_or_damaged_shard_is_named(data, tmp_path):
    with pytest.raises(ImprintError, match=r"gone\.tar: no such shard"):
        list(read_shards([str(tmp_path / "gone.tar")]))
    whole = (data / "cutouts" / "v-0.tar").read_bytes()
    for name, content in {"half": whole[: len(whole) // 2], "noise": b"x" * 2000}.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(ImprintError, match=rf"{name}\.tar"):
            list(read_shards(tmp_path / f"{name}.tar"))


@pytest.mark.parametrize("place", ["unknown-kind://bucket/x", "pipe:cat /etc/hostname", "pipe://cat"])
def test_an_address_is_never_a_command(place):
    with pytest.raises(ImprintError):
        list(read_shards(place))


# --- views and photos ------------------------------------------------------------------------------------------------


def test_views_are_cut_out_of_photos_and_pairs_keep_their_distance():
    def samples():
        for frame in range(0, 32, 4):
            mask = Image.new("L", (120, 90))
            mask.paste(1, (40, 20, 80, 60))
            yield Sample(Record("mug", "mug", frame, "MVImgNet", "", (4, 32)), photo(120, 90, frame), mask)
        for view in range(3):
            yield Sample(Record("mesh", "mesh", view, "render", "", (0, 3)), cutout(40, 40, view))

    views = Views.of(samples(), side=40)
    assert views.count.tolist() == [8, 3] and views.first.tolist() == [0, 8] and views.rgba.shape == (11, 4, 40, 40)
    assert views.frames.tolist() == [*range(0, 32, 4), 0, 1, 2]
    alpha = views.rgba[:8, 3].float() / 255
    assert 0.65 < alpha.mean() < 0.8  # a square object that fills 85 % of the side
    assert ((alpha > 0.5).flatten(1).float().mean(1) > 0.65).all()

    draw = Draw(seeded())
    index = torch.tensor([0, 1]).repeat(2000)
    first, second = views.pair(index, draw)
    distance = (views.frames[first] - views.frames[second]).abs()
    assert distance[index == 0].min() == 4 and distance[index == 0].max() == 28
    assert set(distance[index == 1].tolist()) == {0, 1, 2}  # of a rendering any two, also one twice
    assert (first[index == 0] < 8).all() and (second[index == 1] >= 8).all()

    narrow = Views.of(one for one in samples() if one.record.frame < 4)
    first, second = narrow.pair(torch.zeros(50, dtype=torch.long), draw)
    assert (first == 0).all() and (second == 0).all()  # one frame is left of the mug


def test_photos_of_an_object_seen_from_many_sides_are_partners_far_apart():
    mask = Image.new("L", (96, 96))
    mask.paste(1, (20, 20, 70, 70))
    photos = Photos.of(
        Sample(Record("mug", "mug", frame, "MVImgNet", "", (4, 32)), photo(96, 96, frame), mask) for frame in (0, 3, 8)
    )
    assert [photos.partners[row, : photos.partner_count[row]].tolist() for row in range(3)] == [[2], [2], [0, 1]]


def same(one, other) -> bool:
    pairs = ((getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    return all(a == b if isinstance(a, About) else torch.equal(a, b) for a, b in pairs)


def test_processes_that_read_a_shard_each_give_what_reading_all_at_once_gives(data, tmp_path):
    for kind, folder in ((Views, "cutouts"), (Photos, "photos")):
        whole = kind.of(read_shards(data / folder), 48)
        joined = kind.load(data / folder, CPU, side=48)
        if kind is Photos:  # padded alike
            assert joined.partners.shape == whole.partners.shape and int(whole.partner_count.max()) == 3
        assert same(joined, whole)
        few = kind.load(data / folder, CPU, limit=3, side=48)
        assert 3 <= len(few.rgba if kind is Views else few.rgb) < 10
    shutil.copytree(data / "cutouts", tmp_path / "views")
    broken = list_shards(tmp_path / "views")[1]
    Path(broken).write_bytes(b"no tar" * 400)
    with pytest.raises(ImprintError, match=rf"^{re.escape(broken)} cannot be read"):
        Views.load(tmp_path / "views", CPU, side=48)


# --- the window ------------------------------------------------------------------------------------------------------


def test_the_pool_slides_on_by_a_shard_and_begins_anywhere(data, monkeypatch):
    read = []
    monkeypatch.setattr(pool, "read_shards", lambda names, **more: read.extend(names) or read_shards(names, **more))
    walked = Pool(Wanted(Views, data / "cutouts", side=32), CPU, size=2, seed=1)
    held = [walked.at(turn) for turn in range(8)]
    assert walked.at(7) is held[7]
    walked.reader.shutdown()
    names = list_shards(data / "cutouts")
    assert read == shards_at(names, (0, 1), 1, 0, 10)  # each once, and the next one ahead
    for turn, views in enumerate(held):
        assert len(views.first) == 4 and same(views, Views.of(read_shards(shards_at(names, (0, 1), 1, turn, 2)), 32))
        assert same(Pool(Wanted(Views, data / "cutouts", side=32), CPU, size=2, seed=1).at(turn), views)


def test_a_pool_with_room_for_all_stands_still(data):
    still = Pool(Wanted(Photos, data / "photos"), CPU, size=9, part=(1, 2))
    assert still.at(0) is still.at(7) and still.size == 3 and len(still.at(0).rgb) >= 3 * 4


def test_processes_hold_different_shards(data):
    held = [Pool(Wanted(Views, data / "cutouts", side=32), CPU, size=2, part=(index, 2)).at(0) for index in range(2)]
    one, other = ({tuple(row.tolist()) for row in views.rgba.flatten(1)[:, :64].to(torch.int)} for views in held)
    assert not one & other


def test_pairs_change_with_the_turn_alone(data):
    config = micro_config()
    mix = {"rendered": 1.0, "still": 1.0, "video": 1.0}

    def streamed() -> StreamedPairs:
        pools = Pool(Wanted(Views, data / "cutouts", side=64), CPU, 2), Pool(Wanted(Photos, data / "photos"), CPU, 2)
        return StreamedPairs(config, "compositing", *pools, mix)

    maker = streamed()
    assert maker.config is config
    made = {}
    for turn in range(3):
        maker.turn = turn
        made[turn] = maker(6, seeded(5)).reference
    again = streamed()
    again.turn = 2
    assert torch.equal(again(6, seeded(5)).reference, made[2])
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[1], made[2])
    whole = PairMaker(config, "compositing", Views.load(data / "cutouts", CPU), Photos.load(data / "photos", CPU), mix)
    assert whole(6, seeded(5)).reference.shape == made[0].shape
