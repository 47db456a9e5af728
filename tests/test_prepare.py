"""What all sources of `training.prepare` share: the split, resuming, workers, options, and the output's location."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from leaving import failed, refused
from micro import photo, profile
from PIL import Image, ImageFilter
from preparing import HEIGHT, WIDTH, disc, prepare, read, save, save_photo, write_broken

from imprint.errors import ImprintError
from imprint.images import open_image, to_srgb
from training import prepare as command
from training.data.filters import Limits, edge_width, unusable_objects
from training.data.items import read_names
from training.data.shards import held_out, read_shards


def test_where_nothing_is_made_the_command_fails(tmp_path):
    write_broken(tmp_path / "in/broken.png")
    words = ["folder", "--input", tmp_path / "in", "--output", tmp_path / "out", "--licence", "CC0", "--workers", "1"]
    with pytest.raises(SystemExit, match="nothing was made"):
        command.main(list(map(str, words)))


@pytest.fixture
def clips(tmp_path) -> Path:
    """Twelve clips of three frames in DAVIS's layout, with one broken picture."""
    root = tmp_path / "clips"
    for clip in range(12):
        for frame in range(3):
            save_photo(root / f"JPEGImages/480p/clip{clip}/{frame:05d}.jpg", 10 * clip + frame, (64, 48))
            save(disc((15, 10, 45, 40), size=(64, 48)), root / f"Annotations/480p/clip{clip}/{frame:05d}.png")
    write_broken(root / "JPEGImages/480p/clip3/00000.jpg")
    return root


def content(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


SHARDS = {"held-out": 0.3, "shard-size": 9}


def test_the_split_is_by_clip_and_shards_hold_whole_clips(clips, tmp_path):
    report = prepare("davis", clips, tmp_path / "out", **SHARDS)
    sides = {split: {clip for clip, _ in read(tmp_path / "out", split)} for split in ("train", "held-out")}
    assert sides["held-out"] == {f"clip{clip}" for clip in range(12) if held_out(f"clip{clip}", 0.3)}
    assert sides["train"] and sides["held-out"] and not sides["train"] & sides["held-out"]
    found = Counter()
    for shard in (tmp_path / "out").rglob("*.tar"):
        members = Counter(record.clip for record, *_ in read_shards(shard))
        assert 0 < sum(members.values()) <= 9
        found.update(dict.fromkeys(members, 1))
    assert set(found.values()) == {1}
    total = Counter(report["counts"]["train"]) + Counter(report["counts"]["held-out"])
    assert total == {"pictures": 35, "objects": 35, "groups": 12} and report["dropped"] == {"broken picture": 1}
    sheet = Image.open(tmp_path / "out" / "data.png")
    assert sheet.size == (8 * 192, 5 * 192)
    assert (np.asarray(sheet) == (255, 70, 70)).all(2).any()  # an outline
    listed = (tmp_path / "out" / "train" / "shards.txt").read_text().split()
    assert listed == sorted(path.name for path in (tmp_path / "out" / "train").glob("*.tar")) and len(listed) > 1


def test_a_signal_to_the_command_alone_ends_its_workers(monkeypatch):
    from training.data import engines

    others = set(multiprocessing.active_children())  # of tests before this one

    def workers() -> set:
        return set(multiprocessing.active_children()) - others

    def interrupt():
        while len(workers()) < 2:
            time.sleep(0.05)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(engines, "PATIENCE", 0.2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes that run tests may ignore it
    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(engines.in_processes(time.sleep, [60.0, 60.0], 2, "naps"))
        assert time.monotonic() - began < 30 and not workers()
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_same_command_gives_the_same_bytes_and_goes_on_where_it_was_stopped(clips, tmp_path, monkeypatch):
    prepare("davis", clips, tmp_path / "whole", **SHARDS)
    written = []
    from training.data import engines

    write = engines.write_shard

    def stop_at_third(job, **settings):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(job)
        return write(job, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(engines, "write_shard", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            prepare("davis", clips, tmp_path / "stopped", **SHARDS)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("*.tar")}
    assert len(kept) == 2
    prepare("davis", clips, tmp_path / "stopped", **SHARDS)
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())

    before = content(tmp_path / "whole")
    prepare("davis", clips, tmp_path / "whole", **SHARDS)
    assert content(tmp_path / "whole") == before
    # A shard without its report may be half a shard: it is made again.
    report = next((tmp_path / "whole" / "reports").rglob("train-000001.json"))
    shard = tmp_path / "whole" / "train" / "data-000001.tar"
    report.unlink()
    shard.write_bytes(b"half")
    prepare("davis", clips, tmp_path / "whole", **SHARDS)
    assert content(tmp_path / "whole") == before


def test_a_new_process_finds_the_package_and_not_the_clone_that_has_its_name():
    """pytest's default would put the folder above the repository first; that is a package too, for ComfyUI."""
    assert str(Path(__file__).parents[2]) not in sys.path


def test_workers_change_nothing(clips, tmp_path):
    prepare("davis", clips, tmp_path / "one", **SHARDS)
    prepare("davis", clips, tmp_path / "two", **SHARDS | {"workers": 2})
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_other_options_or_other_data_are_refused(clips, tmp_path):
    prepare("davis", clips, tmp_path / "out", **SHARDS)
    with pytest.raises(ImprintError, match="begun with longest_side = 640, not 32"):
        prepare("davis", clips, tmp_path / "out", **SHARDS | {"longest-side": 32})
    shutil.rmtree(clips / "JPEGImages/480p/clip5")
    with pytest.raises(ImprintError, match="begun with groups = 12, not 11"):
        prepare("davis", clips, tmp_path / "out", **SHARDS)


def test_on_ray_the_result_is_the_same(clips, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        prepare("davis", clips, tmp_path / "ray", **SHARDS | {"shard-size": 18, "engine": "ray"})
    finally:
        ray.shutdown()
    prepare("davis", clips, tmp_path / "one", **SHARDS | {"shard-size": 18})
    assert content(tmp_path / "ray") == content(tmp_path / "one")


def test_output_may_be_anywhere_that_fsspec_knows(clips, tmp_path):
    for _ in range(2):  # the second time all is there
        prepare("davis", clips, "memory://bucket/set", **SHARDS)
    prepare("davis", clips, tmp_path / "local", **SHARDS)
    memory = fsspec.filesystem("memory")
    there = {name.removeprefix("/bucket/set/"): memory.cat(name) for name in memory.find("/bucket/set")}
    assert there == content(tmp_path / "local")
    local = [record for record, *_ in read_shards(tmp_path / "local" / "train")]
    assert [record for record, *_ in read_shards("memory://bucket/set/train")] == local


@pytest.mark.parametrize("output", [".", "shards"])
def test_an_output_in_the_input_is_refused(tmp_path, output):
    save_photo(tmp_path / "a.png", 0)
    with pytest.raises(ImprintError, match="lies in --input"):
        prepare("folder", tmp_path, tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_list_of_names_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffone.jpg\r\ntwo.jpg".encode())
    assert read_names(tmp_path / "names.txt") == {"one.jpg", "two.jpg"}


def test_filters():
    labels = np.zeros((100, 200), np.uint8)
    labels[50, 10:200] = 1  # under 1 %, and at the border
    labels[10:30, 20:40] = 2
    labels[60:90, 100:198] = 3  # two pixels from the border
    assert unusable_objects(labels, Limits()) == {1: "object under 1% of the picture", 3: "object cut by the border"}
    assert unusable_objects(labels, Limits(border=2)).keys() == {1}
    assert unusable_objects(np.full((10, 10), 4, np.uint8), Limits()) == {4: "object over 64% of the picture"}
    hard = np.asarray(disc(), np.float32) / 255
    soft = np.asarray(disc().filter(ImageFilter.GaussianBlur(4)), np.float32) / 255
    assert edge_width(hard) == 0 and 5 < edge_width(soft) < 12


@pytest.mark.parametrize("part", [0.001, 0.999])
def test_of_little_data_one_group_is_on_either_side(tmp_path, part):
    for number in range(3):
        save_photo(tmp_path / f"in/{number}.jpg", number)
    counts = prepare("folder", tmp_path / "in", tmp_path / "out", **{"held-out": part})["counts"]
    assert sorted(counts[split]["pictures"] for split in counts) == [1, 2]


def test_a_dry_run_tries_the_output(tmp_path):
    save_photo(tmp_path / "in/0.jpg")
    words = ["folder", "--input", tmp_path / "in", "--output", "/proc/x", "--licence", "CC0", "--dry-run"]
    with pytest.raises(SystemExit, match="cannot be written"):
        command.main(list(map(str, words)))


def test_pictures_of_every_kind_are_srgb_in_shards(tmp_path):
    """Wide-gamut colours are converted, 16-bit grey is scaled, CMYK and EXIF-rotated pictures look as intended."""
    plain, root = photo(8, 6, seed=3).resize((WIDTH, HEIGHT), Image.BICUBIC), tmp_path / "in"  # smooth: JPEGs are made
    wide, turned = plain.copy(), plain.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.asarray(plain.convert("L"))
    root.mkdir()
    wide.save(root / "wide.png", icc_profile=profile("wide"))
    turned.save(root / "turned.png", exif=exif)
    Image.fromarray(grey * np.uint16(257)).save(root / "deep.png")
    plain.convert("CMYK").save(root / "inks.tif")
    prepare("folder", root, tmp_path / "out", quality=100)
    made = {clip: np.asarray(sample.picture).astype(int) for (clip, _), sample in read(tmp_path / "out").items()}
    colours, grey = np.asarray(plain).astype(int), np.repeat(grey[..., None], 3, 2)
    for name, expected in (("turned", colours), ("deep", grey), ("inks", colours)):
        assert np.abs(made[name] - expected).mean() < 3, name
    assert np.abs(made["wide"] - np.asarray(to_srgb(open_image(root / "wide.png")))).mean() < 3
    assert np.abs(made["wide"] - colours).mean() > 20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf_8_is_one_like_any_other(tmp_path):
    root, name = tmp_path / "in", os.fsdecode(b"caf\xe9.jpg")
    save_photo(root / "ok.jpg")
    (root / "ok.jpg").rename(root / name)
    write_broken(root / os.fsdecode(b"\xff.png"))
    report = prepare("folder", root, tmp_path / "out")
    assert report["counts"]["train"]["pictures"] == 1 and report["dropped"] == {"broken picture": 1}
    (sample,) = read(tmp_path / "out").values()
    assert sample.record.clip == Path(name).stem
    assert "\\udcff.png" in (tmp_path / "out" / "data.dropped.tsv").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "[]", "null", '{"options": 3}', '{"size": "x"}', "{"])
def test_broken_reports_are_made_again(clips, tmp_path, text):
    first = prepare("davis", clips, tmp_path / "out")
    for report in (tmp_path / "out" / "data.json", *(tmp_path / "out" / "reports").rglob("*.json")):
        report.write_text(text)
    assert prepare("davis", clips, tmp_path / "out") == first


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", "a.b", ".", "\udcff"])
def test_a_name_that_would_leave_the_folder_or_break_the_keys_is_refused(tmp_path, name):
    assert "--name is" in refused(
        command.parse, ["folder", "--input", "x", "--output", "y", "--licence", "CC0", "--name", name]
    )


def test_the_split_never_moves():
    kept = [name for name in map(str, range(1000)) if held_out(name, 0.05)]
    assert 20 < len(kept) < 90
    assert set(kept) <= {name for name in map(str, range(1000)) if held_out(name, 0.1)}
    assert not held_out("bear", 0.0) and held_out("bear", 1.0)


@pytest.mark.parametrize(
    "source", ["davis", "youtube-vos", "vipseg", "coco", "ppr10k", "mvimgnet", "objaverse", "meshes", "folder"]
)
def test_a_folder_of_another_layout_is_one_sentence(tmp_path, source):
    (tmp_path / "in").mkdir()
    assert str(tmp_path / "in") in failed(
        command.main, [source, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--licence", "CC0"]
    )
    assert not (tmp_path / "out").exists()


def test_the_command_line(clips, tmp_path, capsys):
    with pytest.raises(SystemExit, match="no such folder"):
        command.main(["davis", "--input", str(tmp_path / "absent"), "--output", "x", "--licence", "CC0"])
    assert "give --licence" in refused(command.main, ["davis", "--input", str(clips), "--output", "x"])
    words = ["davis", "--input", str(clips), "--output", str(tmp_path / "out"), "--licence", "BSD", "--workers", "1"]
    command.main([*words, "--dry-run"])
    assert json.loads(capsys.readouterr().out)["shards"] == 2 and not (tmp_path / "out").exists()
    command.main(words)
    printed = capsys.readouterr().out
    assert "dropped, broken picture: 1" in printed and "davis-clips.dropped.tsv" in printed
    assert (tmp_path / "out" / "davis-clips.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--held-out 1.5", "--held-out is 1.5; it must be a finite number from 0 to 1"),
        ("--quality 101", "--quality is 101; it must be a whole number from 1 to 100"),
        ("--relit 2", "--relit needs the light of --panoramas"),
        ("--relit 9 --panoramas p", "--relit is 9; it must be a whole number from 0 to 8"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    assert message in refused(command.parse, f"meshes --input x --output y --licence CC0 {options}".split())
