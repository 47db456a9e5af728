"""The shards' format, and samples that violate it."""

import dataclasses
import gzip
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from micro import cutout, photo
from mutations import mutated
from PIL import Image
from runs import webp

from imprint.errors import ImprintError
from training.data.shards import Bad, Record, decode_sample, read_shards, sample, shard_writer
from training.pairs import handing, pictures
from training.pairs.photos import Photos
from training.pairs.views import Views

CPU = torch.device("cpu")


def test_shards_round_trip(tmp_path):
    record = Record("thing", "clip", 3, "test", "CC0")
    picture, mask = photo(20, 10), Image.new("L", (20, 10), 2)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with shard_writer(tmp_path / "a.tar") as writer:
        writer.write(sample("one", buffer.getvalue(), "png", record, mask))
        writer.write(sample("two", webp(cutout(8, 8)), "webp", record))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    (first, image, objects, _), (_, view, nothing, _) = read_shards(tmp_path)
    assert first == record and np.array_equal(np.asarray(image), np.asarray(picture))
    assert np.asarray(objects).max() == 2 and nothing is None and view.mode == "RGBA"
    assert len(list(read_shards(tmp_path, limit=1))) == 1


def test_a_shard_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), shard_writer(tmp_path / "a.tar") as writer:
        writer.write(sample("one", webp(photo(8, 8)), "webp", Record("", "", 0, "", "")))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [100, 512, 600, "member", -1])
def test_a_shard_that_is_cut_off_is_named_wherever_it_ends(tmp_path, left):
    """Even between two members: the rest is still a shard, and only the zeros at its end are missing."""
    with shard_writer(tmp_path / "a.tar") as writer:
        for number in range(3):
            writer.write(sample(f"{number}", webp(cutout(8, 8)), "webp", Record("a", "", number, "", "")))
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    assert len(list(read_shards([str(tmp_path / "a.tar.gz")]))) == len(list(read_shards(tmp_path / "a.tar"))) == 3
    with tarfile.open(tmp_path / "a.tar") as archive:
        ends = [member.offset for member in archive.getmembers()]
    (tmp_path / "a.tar").write_bytes(
        data[: ends[2] if left == "member" else len(data) - 10_240 if left == -1 else left]
    )
    with pytest.raises(ImprintError, match=r"a\.tar cannot be read as a shard"):
        list(read_shards(tmp_path / "a.tar"))


def test_a_frame_that_no_tensor_holds_is_named():
    parts = {"__key__": "sample-7", "__url__": "bad.tar", "webp": webp(photo(8, 8))}
    with pytest.raises(ImprintError, match="whole numbers"):
        decode_sample(parts | {"json": json.dumps(FIELDS | {"frame": 2**70}).encode()})


FIELDS = dataclasses.asdict(Record("a", "b", 3, "c", "d", (1, 2), (0.1, 0.2, 0.3)))


@given(fields=mutated(json.loads(json.dumps(FIELDS))))
def test_broken_fields_of_a_sample_are_named(fields):
    parts = {
        "__key__": "sample-7",
        "__url__": "bad.tar",
        "webp": webp(photo(8, 8)),
        "json": json.dumps(fields).encode(),
    }
    try:
        record = decode_sample(parts).record
    except ImprintError as error:
        assert re.match(r"bad\.tar: sample 'sample-7' is not as", str(error))
        return
    assert all(type(value) is str for value in (record.object, record.clip, record.source, record.licence))
    assert all(type(value) is int for value in (record.frame, *record.gap)) and len(record.gap) == 2
    assert record.shadow is None or (len(record.shadow) == 3 and all(map(math.isfinite, record.shadow)))


@pytest.mark.parametrize("lacking", ["json", "webp", "field", "picture"])
def test_bad_samples_are_named(tmp_path, lacking):
    parts = {"json": json.dumps(dataclasses.asdict(Record("a", "", 0, "", ""))).encode(), "webp": webp(photo(8, 8))}
    if lacking == "field":
        parts["json"] = b'{"object": "a"}'
    elif lacking == "picture":
        parts["webp"] = b"no picture"
    else:
        parts.pop(lacking)
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for kind, content in parts.items():
            member = tarfile.TarInfo(f"sample-7.{kind}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(ImprintError, match=r"bad\.tar.*sample-7"):
        list(read_shards(tmp_path))


def bad_shard(folder: Path) -> Path:
    """Four samples, one with a mask of another size, and one with more pixels than Pillow reads."""
    with shard_writer(folder / "bad-000000.tar") as writer:
        for number in range(4):
            record, mask = (
                Record("thing", str(number), 0, "test", "CC0"),
                Image.new("L", (60, 50 + 10 * (number == 1)), 0),
            )
            writer.write(sample(str(number), webp(photo(60 + (number == 2), 50, number)), "webp", record, mask))
    return folder


def test_bad_samples_are_sentences_and_may_be_left_out(tmp_path, monkeypatch):
    folder = bad_shard(tmp_path)
    with pytest.raises(ImprintError, match="sample '1' is not as .*its mask is 60x60, the picture 60x50"):
        list(read_shards(folder))
    with pytest.raises(ImprintError, match="sample '2' .*; 2 samples are bad, and --skip-bad allows 1"):
        list(read_shards(folder, bad=Bad(1)))
    bad = Bad(3)
    assert [record.clip for record, *_ in read_shards(folder, bad=bad)] == ["0", "3"] and len(bad.found) == 2
    with shard_writer(tmp_path / "none" / "none-000000.tar") as writer:
        writer.write(sample("0", b"no picture", "webp", Record("thing", "0", 0, "test", "CC0")))
    for _ in range(2):  # a sample is counted once, however often it is read
        assert not list(read_shards(tmp_path / "none", bad=bad))
    assert len(bad.found) == 3 and "sample '0' is not as" in list(bad.found)[2] and "0x" not in list(bad.found)[2]
    shutil.copy(folder / "bad-000000.tar", folder / "bad-000001.tar")  # read by processes
    others = set(multiprocessing.active_children())
    with pytest.raises(ImprintError, match="--skip-bad allows 3") as caught:
        Photos.load(folder, CPU, side=32, bad=Bad(3))
    assert caught and set(multiprocessing.active_children()) <= others  # although the error still holds what read them
    assert len(Photos.load(folder, CPU, side=32, bad=Bad(4)).rgb) == 4
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImprintError, match="sample '0' is not as .*DecompressionBomb"):
        list(read_shards(folder))


@pytest.mark.parametrize("system", ["linux", "any"])
def test_what_processes_read_is_what_one_reads(tmp_path, monkeypatch, system):
    """From two shards: handed over in memory if the system can do that, and otherwise through a pipe."""
    for shard in range(2):
        with shard_writer(tmp_path / f"{shard}.tar") as writer:
            for view in range(3):
                record = Record(f"thing-{shard}", "", view, "test", "CC0")
                writer.write(sample(f"{view}", webp(cutout(24, 24, seed=3 * shard + view)), "webp", record))
    if system == "any":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("there is no memfd_create here")
    monkeypatch.setattr(handing, "SMALL", 500)
    seen, take = [], pictures.taken
    monkeypatch.setattr(pictures, "taken", lambda value: seen.append(type(value)) or take(value))
    views, expected = Views.load(tmp_path, CPU), Views.of(read_shards(tmp_path))
    assert len(views.rgba) == 6 and len(expected.rgba.unique()) > 20
    for name, value in vars(expected).items():
        read = getattr(views, name)
        assert torch.equal(read, value) if isinstance(value, torch.Tensor) else read == value, name
    assert seen.count(handing.Handed) == (2 if system == "linux" else 0)  # the pictures of each shard


def test_two_folders_are_read_in_turn_and_views_of_several_objects_are_sorted(tmp_path):
    """Each photo shows two objects, so that the views of one are not in sequence."""
    mask = Image.new("L", (60, 50))
    mask.paste(1, (5, 5, 20, 25))
    mask.paste(2, (30, 10, 50, 40))
    for shard in range(2):
        with shard_writer(tmp_path / f"{shard}.tar") as writer:
            for frame in range(3):
                record = Record(f"pair-{shard}", f"clip-{shard}", frame, "test", "CC0")
                writer.write(sample(str(frame), webp(photo(60, 50, 3 * shard + frame)), "webp", record, mask))
    reading = pictures.Reading([pictures.Wanted(kind, tmp_path, side=32) for kind in (Views, Photos)])
    for kind in (Views, Photos):
        read, expected = reading.next(CPU), kind.of(read_shards(tmp_path), 32)
        for name, value in vars(expected).items():
            found = getattr(read, name)
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name
    assert expected.annotated == 12 and Views.of(read_shards(tmp_path), 32).frames.tolist() == [0, 1, 2] * 4
    assert reading.parts is None  # its processes have ended
