"""More than forty damaged files: each gives one sentence that names it, and nothing in any of them is executed."""

import dataclasses
import io
import json
import os
import pickle
import re
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from micro import Payload, fresh_checkpoint, micro_config, seeded, sketched_config, told_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imprint.checkpoint import FORMAT_VERSION, PARTS, Checkpoint, load_checkpoint, read_config, save_checkpoint
from imprint.errors import ImprintError
from imprint.model import build_modules, load_model, load_modules, module_tensors
from imprint.pipeline import ImprintPipeline


@pytest.fixture(scope="module")
def small_file(tmp_path_factory, micro) -> Path:
    """The micro model without its autoencoder: under two megabytes."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    checkpoint = fresh_checkpoint(micro, with_vae=False)
    for tensors in checkpoint.parts.values():
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})
    save_checkpoint(path, checkpoint)
    return path


def sentence(path: Path) -> str:
    """The error for an unusable file; reading it must not get as far as using the autoencoder, which the file lacks."""
    with pytest.raises(ImprintError) as caught:
        ImprintPipeline.from_checkpoint(path, vae=torch.nn.Identity())
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message and len(message) < 1000
    return message


@pytest.fixture
def written(tmp_path) -> Callable[[bytes], str]:
    """The sentence for a file with these bytes."""

    def write(content: bytes) -> str:
        path = tmp_path / "written.safetensors"
        path.write_bytes(content)
        return sentence(path)

    return write


@pytest.fixture
def resaved(tmp_path, small_file) -> Callable[[Callable], str]:
    """The sentence for `small_file` after `change(parts)`, with a correct checksum, as another exporter could have made
    it.

    change: what it returns, if anything, is the configuration.
    """

    def save(change: Callable) -> str:
        checkpoint, path = load_checkpoint(small_file), tmp_path / "resaved.safetensors"
        parts = {part: dict(tensors) for part, tensors in checkpoint.parts.items()}
        save_checkpoint(path, Checkpoint(change(parts) or checkpoint.config, parts))
        return sentence(path)

    return save


def header_of(data: bytes) -> dict:
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def with_header(data: bytes, header: dict) -> bytes:
    """The same tensors with another header."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + struct.unpack("<Q", data[:8])[0] :]


def same(one: Path, other: Path) -> bool:
    """Whether two files have the same content; the order of the metadata in a file is random."""
    with safe_open(one, framework="pt") as first, safe_open(other, framework="pt") as second:
        if first.metadata() != second.metadata():
            return False
    tensors, others = load_file(one), load_file(other)
    return tensors.keys() == others.keys() and all(
        tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]) for name, tensor in tensors.items()
    )


# --- whole files -----------------------------------------------------------------------------------------------------


def test_round_trip_is_exact(tmp_path, micro, micro_file):
    checkpoint = load_checkpoint(micro_file)
    assert checkpoint.config == micro and set(checkpoint.parts) == set(PARTS)
    expected = fresh_checkpoint(micro)
    for part, tensors in expected.parts.items():
        assert tensors.keys() == checkpoint.parts[part].keys()
        assert all(torch.equal(tensor, checkpoint.parts[part][name]) for name, tensor in tensors.items())
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, checkpoint)
    assert same(again, micro_file)


def test_the_file_is_plain_safetensors_with_the_documented_names(micro, micro_file):
    with safe_open(micro_file, framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata["format"] == "imprint" and metadata["format_version"] == str(FORMAT_VERSION)
    assert json.loads(metadata["config"])["resolution"] == micro.resolution
    assert "null_embedding" in names and "adapter.null_embedding" not in names
    assert {name.partition(".")[0] for name in names} == {*PARTS, "null_embedding"}
    assert "encoder.encoder.layer.0.attention.attention.query.weight" in names
    assert {"unet.conv_in.weight", "adapter.blocks.0.qkv.weight"} <= names
    assert any(name.startswith("vae.decoder.layers.") for name in names)


def test_the_pipeline_saves_what_it_loaded(tmp_path, micro_file, pipeline):
    path = tmp_path / "new folder" / "saved.safetensors"
    pipeline.save_checkpoint(path)
    assert same(path, micro_file)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_memory_layout_and_shared_memory_are_no_matter(tmp_path, micro_file):
    checkpoint = load_checkpoint(micro_file)
    unet = checkpoint.parts["unet"]
    for name, tensor in unet.items():
        unet[name] = tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
    save_checkpoint(tmp_path / "last.safetensors", checkpoint)
    assert same(tmp_path / "last.safetensors", micro_file)
    whole = torch.rand(8, 8)
    checkpoint.parts["unet"] = {"a": whole, "b": whole[2:4], "c": whole.T}
    save_checkpoint(tmp_path / "shared.safetensors", checkpoint)
    shared = load_checkpoint(tmp_path / "shared.safetensors").parts["unet"]
    assert torch.equal(shared["b"], whole[2:4]) and torch.equal(shared["c"], whole.T)


def test_read_config_reads_the_configuration_alone(micro, micro_file, tmp_path):
    assert read_config(micro_file) == micro
    with pytest.raises(ImprintError, match="no such file"):
        read_config(tmp_path / "absent.safetensors")


def test_half_precision_is_kept_in_the_file(small_file):
    assert {tensor.dtype for tensors in load_checkpoint(small_file).parts.values() for tensor in tensors.values()} == {
        torch.float16
    }


def test_a_header_whose_length_begins_like_a_pickle_is_no_pickle(tmp_path, small_file):
    """One header in 32 has a length whose first byte is 0x80."""
    tensors = load_file(small_file)
    with safe_open(small_file, framework="pt") as file:
        metadata = file.metadata()
    path = tmp_path / "eighty.safetensors"
    for length in range(0, 256, 4):
        save_file(tensors, path, metadata | {"note": "x" * length})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert load_checkpoint(path).config == load_checkpoint(small_file).config


def test_saving_over_a_file_is_whole_or_not_at_all(tmp_path, small_file, monkeypatch):
    path = tmp_path / "kept.safetensors"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(ImprintError, match="cannot be written .disk full"):
        save_checkpoint(path, load_checkpoint(small_file))
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_without_an_autoencoder_one_must_be_given(small_file, pipeline):
    with pytest.raises(ImprintError, match="holds no autoencoder.*vae="):
        ImprintPipeline.from_checkpoint(small_file)
    given = ImprintPipeline.from_checkpoint(small_file, vae=pipeline.vae)
    assert given.vae is pipeline.vae


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        (torch.nn.Identity(), "of type Identity, and .*small.safetensors needs .* of 4 channels"),
        ("taesd", "vae is of type str"),
        (AutoencoderTiny(latent_channels=16), "latents of 16 channels"),
    ],
)
def test_an_autoencoder_of_other_latents_is_refused(small_file, vae, message):
    with pytest.raises(ImprintError, match=message):
        ImprintPipeline.from_checkpoint(small_file, vae=vae)


@pytest.mark.parametrize("dtype", ["fp16", torch.int8, torch.float8_e4m3fn, None])
def test_only_precisions_that_draw_are_taken(small_file, dtype):
    with pytest.raises(ImprintError, match="dtype is .*; it must be one of torch.float32"):
        ImprintPipeline.from_checkpoint(small_file, torch_dtype=dtype)


def test_save_pretrained_says_what_to_call(tmp_path, pipeline):
    with pytest.raises(ImprintError, match="save_checkpoint"):
        pipeline.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# --- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0002, 0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 0.99, 0.99999])
def test_truncated(written, small_file, share):
    data = small_file.read_bytes()
    written(data[: int(len(data) * share)])


@pytest.mark.parametrize("length", range(17))
def test_truncated_at_the_very_start(written, small_file, length):
    written(small_file.read_bytes()[:length])


@pytest.mark.parametrize("bit", range(0, 64, 3))
def test_flipped_bits_of_the_header_s_length(written, small_file, bit):
    data = bytearray(small_file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    written(data)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_of_the_header(written, small_file, seed):
    """Tensors' names, types, shapes and offsets, the configuration, the version and the checksum."""
    data = bytearray(small_file.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    text = bytes(data[8 : 8 + length]).rstrip()  # spaces after the JSON carry nothing
    random = seeded(seed)
    metadata = text.index(b"__metadata__")
    low, high = (metadata, metadata + 2500) if seed % 2 else (0, len(text))
    place = int(torch.randint(low, high, (1,), generator=random))
    data[8 + place] ^= 1 << int(torch.randint(8, (1,), generator=random))
    written(data)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bits_of_the_tensors(written, small_file, seed):
    data = bytearray(small_file.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    random = seeded(seed)
    place = (start, len(data) - 1)[seed] if seed < 2 else int(torch.randint(start, len(data), (1,), generator=random))
    data[place] ^= 1 << int(torch.randint(8, (1,), generator=random))
    assert "does not match its checksum" in written(data)


@pytest.mark.parametrize("part", ["encoder", "adapter", "unet"])
def test_a_renamed_tensor(resaved, part):
    def rename(parts):
        name = sorted(parts[part])[3]
        parts[part][f"{name}.old"] = parts[part].pop(name)

    message = resaved(rename)
    assert f"part '{part}'" in message and "1 missing, 1 surplus" in message


@pytest.mark.parametrize("part", ["encoder", "adapter", "unet"])
@pytest.mark.parametrize("surplus", [False, True])
def test_a_missing_and_a_surplus_tensor(resaved, small_file, part, surplus):
    def change(parts):
        if surplus:
            parts[part]["more.weight"] = torch.zeros(3)
        else:
            parts[part].pop(min(parts[part]))

    message = resaved(change)
    count = len(load_checkpoint(small_file).parts[part])
    assert f"part '{part}' has {count + (1 if surplus else -1)} tensors" in message and f"asks for {count}" in message


@pytest.mark.parametrize("part", ["encoder", "adapter", "unet"])
def test_a_tensor_of_another_shape(resaved, part):
    def reshape(parts):
        name = next(name for name in sorted(parts[part]) if parts[part][name].ndim > 1)
        parts[part][name] = parts[part][name].flatten()

    message = resaved(reshape)
    assert f"part '{part}'" in message and "of shape (" in message and "asks for (" in message


@pytest.mark.parametrize("part", ["encoder", "adapter", "unet"])
def test_a_missing_part(resaved, part):
    message = resaved(lambda parts: parts.pop(part) and None)
    assert f"'{part}'" in message and "missing" in message


def test_a_missing_null_embedding(resaved):
    assert "'null_embedding' is missing" in resaved(lambda parts: parts["adapter"].pop("null_embedding") is None)


def test_an_unknown_part(resaved):
    assert "'lora.a' is of no known part (encoder, adapter, unet, vae, control)" in resaved(
        lambda parts: parts.update(lora={"a": torch.zeros(2)})
    )


def test_a_controlnet_of_a_model_without_one(resaved):
    message = resaved(lambda parts: parts.update(control={"conv_in.weight": torch.zeros(2)}))
    assert "part 'control' is not of the model, whose configuration has background 'blend'" in message


def test_a_part_of_another_model(resaved):
    """A complete encoder, but not the one that the configuration describes."""
    other = dataclasses.replace(micro_config().encoder, layers=2)
    adapter = micro_config().adapter

    def swap(parts):
        return micro_config(encoder=other, adapter=adapter)

    message = resaved(swap)
    assert "part 'encoder'" in message and "configuration asks for" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"encoder": {"width": 64}}, "64.*the adapter takes 5 of width 32"),
        ({"adapter": {"input_width": 16}}, "width 32.*of width 16"),
        ({"encoder": {"image_size": 42}}, "gives 10 tokens.*takes 5"),
        ({"adapter": {"output_width": 64}}, "width 64, but the UNet takes 32"),
        ({"latent": {"channels": 16}}, "16"),
        ({"unet": {"in_channels": 9}}, "9 input.*need 4 and 4"),
        ({"resolution": 72}, "72 is not a multiple of 16"),
        ({"encoder": {"depth": 1}}, "unknown.*depth"),
    ],
)
def test_parts_that_do_not_fit_together(written, small_file, changes, expected):
    data = small_file.read_bytes()
    header = header_of(data)
    config = json.loads(header["__metadata__"]["config"])
    for name, change in changes.items():
        config[name] = config[name] | change if isinstance(change, dict) else change
    header["__metadata__"]["config"] = json.dumps(config)
    message = written(with_header(data, header))
    assert re.search(expected, message), message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format_version": "2"}, "version '2'.*reads version 1"),
        ({"format_version": "1000"}, "update Imprint"),
        ({"format_version": "one"}, "'one'"),
        ({"format_version": None}, "version None"),
        ({"format": "pt"}, "not an Imprint checkpoint"),
        ({"format": None}, "not an Imprint checkpoint"),
        ({"config": None}, "no configuration"),
        ({"config": "{}"}, "lacks"),
        ({"config": "not json"}, "not JSON"),
        ({"config": "[" * 100_000}, "not JSON"),
        ({"sha256": None}, "checksum"),
        ({"sha256": ""}, "checksum"),
    ],
)
def test_metadata(written, small_file, changes, expected):
    data = small_file.read_bytes()
    header = header_of(data)
    header["__metadata__"] |= changes
    header["__metadata__"] = {key: value for key, value in header["__metadata__"].items() if value is not None}
    message = written(with_header(data, header))
    assert re.search(expected, message), message


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "BOOL", "U64", "F99"])
def test_a_type_of_numbers_that_was_not_written(written, small_file, dtype):
    data = small_file.read_bytes()
    header = header_of(data)
    header["null_embedding"]["dtype"] = dtype
    written(with_header(data, header))


def foreign(path: Path, metadata=None) -> None:
    save_file({"model.weight": torch.zeros(4, 4), "lora.up": torch.ones(2)}, path, metadata)


def test_a_foreign_safetensors_file(tmp_path):
    path = tmp_path / "foreign.safetensors"
    foreign(path)
    assert "not an Imprint checkpoint" in sentence(path)
    foreign(path, {"format": "pt"})
    assert "not an Imprint checkpoint" in sentence(path)
    save_file({}, path)
    assert "not an Imprint checkpoint" in sentence(path)
    save_file({"lora_unet_conv_in.lora_down.weight": torch.zeros(2)}, path)
    assert "is a LoRA; give the checkpoint that it was trained from" in sentence(path)


def pickles() -> dict:
    def torch_zip(target: Path) -> bytes:
        buffer = io.BytesIO()
        torch.save({"unet": torch.zeros(2), "payload": Payload(target)}, buffer)
        return buffer.getvalue()

    def torch_legacy(target: Path) -> bytes:
        buffer = io.BytesIO()
        torch.save(Payload(target), buffer, _use_new_zipfile_serialization=False)
        return buffer.getvalue()

    def zip_of_pickle(target: Path) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Payload(target)))
        return buffer.getvalue()

    def behind_a_header(target: Path) -> bytes:
        """Looks like safetensors for nine bytes."""
        return struct.pack("<Q", 0x80) + b"{" + pickle.dumps(Payload(target))

    made = {f"protocol {number}": lambda target, n=number: pickle.dumps(Payload(target), n) for number in range(6)}
    return made | {"torch": torch_zip, "legacy": torch_legacy, "zip": zip_of_pickle, "disguised": behind_a_header}


@pytest.mark.parametrize("kind", pickles())
def test_a_pickle_is_refused_and_not_executed(tmp_path, kind):
    target, path = tmp_path / "executed", tmp_path / "model.safetensors"
    path.write_bytes(pickles()[kind](target))
    message = sentence(path)
    assert not target.exists()
    if kind not in ("protocol 0", "protocol 1", "disguised"):  # text without a mark
        assert "is a pickle" in message
    if kind.startswith("protocol"):
        pickle.loads(path.read_bytes())  # it would have worked
        assert target.exists()


def test_what_is_no_file_of_tensors(tmp_path, small_file):
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    made = {
        "empty": b"",
        "zeros": bytes(4096),
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 48000000\n",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "json": b'{"resolution": 256}',
        "long": struct.pack("<Q", 2**63) + b"{",
        "no tensors": struct.pack("<Q", 8) + b"{}      ",
        "doubled": small_file.read_bytes() * 2,
        "with a tail": small_file.read_bytes() + b"\0",
        "not utf-8": struct.pack("<Q", 8) + b'{"\xff\xff":1',
    }
    for name, content in made.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        assert ("Git LFS pointer" in sentence(path)) == (name == "text")
    with pytest.raises(ImprintError, match="is a folder; give the path of an Imprint checkpoint"):
        ImprintPipeline.from_checkpoint(folder)
    for path in (tmp_path / "absent.safetensors", tmp_path / ("n" * 400), tmp_path / "a\0b.safetensors"):
        with pytest.raises(ImprintError, match="no such file"):
            ImprintPipeline.from_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path):
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)
    caught = []

    def load():
        try:
            load_checkpoint(path)
        except ImprintError as error:
            caught.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive() and len(caught) == 1


def test_loading_is_strict_for_the_autoencoder_too(tmp_path, micro_file):
    checkpoint = load_checkpoint(micro_file)
    name = min(checkpoint.parts["vae"])
    checkpoint.parts["vae"][name] = checkpoint.parts["vae"][name][:1]
    path = tmp_path / "vae.safetensors"
    save_checkpoint(path, checkpoint)
    with pytest.raises(ImprintError, match=f"part 'vae' has '{name}' of shape"):
        ImprintPipeline.from_checkpoint(path)


def test_module_tensors_are_what_a_checkpoint_of_the_model_holds(micro_file, pipeline):
    parts = module_tensors({part: getattr(pipeline, part) for part in PARTS})
    for part, tensors in load_checkpoint(micro_file).parts.items():
        assert tensors.keys() == parts[part].keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("make", [micro_config, told_config, sketched_config])
def test_a_model_is_loaded_as_if_filled_and_then_converted(make: Callable, dtype: torch.dtype, tmp_path: Path):
    """All of its tensors, also those that are not in the file, and none of the file's memory."""
    path = tmp_path / "micro.safetensors"
    save_checkpoint(path, fresh_checkpoint(make()))
    _, made = load_model(path, dtype)
    expected = build_modules(make())
    load_modules(expected, load_checkpoint(path))
    for name, module in expected.items():
        module.to(dtype)
        kept, new = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (module, made[name]))
        assert kept.keys() == new.keys()
        for key, tensor in kept.items():
            assert new[key].dtype == tensor.dtype and torch.equal(new[key], tensor), (name, key)
            assert not new[key].requires_grad
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(made["unet"].conv_in.weight, expected["unet"].conv_in.weight)
