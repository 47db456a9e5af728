import errno

import pytest
import torch
from micro import fresh_checkpoint, matte_config, micro_config

from imprint import files
from imprint.checkpoint import load_checkpoint, save_checkpoint
from imprint.lightnet import LightConfig, LightNet, load_light, save_light
from training import merge


@pytest.fixture
def pair(tmp_path):
    paths = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        save_checkpoint(path, fresh_checkpoint(micro_config()))
    return paths


def test_the_mean_of_two(pair, tmp_path):
    merge.main([*map(str, pair), "--output", str(tmp_path / "mean.safetensors")])
    one, two, mean = (load_checkpoint(path) for path in (*pair, tmp_path / "mean.safetensors"))
    assert mean.config == one.config
    for part, tensors in mean.parts.items():
        for name, tensor in tensors.items():
            expected = (one.parts[part][name].float() + two.parts[part][name].float()) / 2
            assert tensor.dtype == one.parts[part][name].dtype
            assert torch.equal(tensor, expected.to(tensor.dtype))


def test_what_does_not_fit_together_is_refused(pair, tmp_path):
    save_checkpoint(tmp_path / "matte.safetensors", fresh_checkpoint(matte_config()))
    for others, message in (([], "1 checkpoint"), (["matte.safetensors"], "different kinds")):
        with pytest.raises(SystemExit, match=message):
            merge.main(
                [str(pair[0]), *(str(tmp_path / name) for name in others), "--output", str(tmp_path / "x.safetensors")]
            )
    assert not (tmp_path / "x.safetensors").exists()


def test_light_networks_too(tmp_path, pair):
    paths = [tmp_path / f"light-{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        save_light(path, LightNet(LightConfig(resolution=64, widths=(8, 8, 32), guesses=3 if seed == 2 else 6)))
    merge.main([*map(str, paths[:2]), "--output", str(tmp_path / "mean.safetensors")])
    one, two, mean = (load_light(path).state_dict() for path in (*paths[:2], tmp_path / "mean.safetensors"))
    for name, tensor in mean.items():
        assert torch.allclose(tensor.float(), (one[name] + two[name]).float() / 2, atol=1e-3), name
    assert not torch.equal(one["stem.weight"], two["stem.weight"])
    for others, message in (
        ([paths[2]], "different kinds"),
        ([pair[0]], "give files of one kind"),
        ([], "two or more"),
    ):
        with pytest.raises(SystemExit, match=message):
            merge.main([*map(str, [paths[0], *others]), "--output", str(tmp_path / "x.safetensors")])
    assert not (tmp_path / "x.safetensors").exists()


def test_the_mean_never_writes_over_what_it_is_made_of(pair, tmp_path):
    before = pair[1].read_bytes()
    (tmp_path / "link.safetensors").symlink_to(pair[1])
    for output in (pair[1], tmp_path / "link.safetensors"):
        with pytest.raises(SystemExit, match="would be overwritten; give another --output"):
            merge.main([*map(str, pair), "--output", str(output)])
    assert pair[1].read_bytes() == before


def test_a_mean_that_cannot_be_written_is_kept_elsewhere(pair, tmp_path, monkeypatch):
    real = files.os.replace

    def refuse(source, target):
        if target.parent == tmp_path / "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(SystemExit, match=r"No space left.*the checkpoint is kept as .*imprint-kept.safetensors"):
        merge.main([*map(str, pair), "--output", str(tmp_path / "full" / "mean.safetensors")])
    assert load_checkpoint(tmp_path / "other" / "imprint-kept.safetensors").config == load_checkpoint(pair[0]).config
