"""Models of custom sizes, from a file."""

from __future__ import annotations

import json

import pytest
from leaving import failed
from micro import micro_config
from runs import words

from imprint.checkpoint import read_config
from imprint.config import PRESETS
from imprint.errors import ImprintError
from training import train
from training.loop.sizes import read_sizes

CHANGED = """
preset: micro
unet: {widths: [32, 96], heads: [1, 3], context_width: 64}
adapter: {output_width: 64}
"""


@pytest.fixture(autouse=True)
def preset(micro_preset):
    pass


def test_a_preset_with_changes_or_a_whole_configuration(tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text(CHANGED)
    config = read_sizes(str(changed))
    assert config.unet.widths == (32, 96) and config.unet.layers_per_block == micro_config().unet.layers_per_block
    assert config.adapter.output_width == 64 and config.encoder == micro_config().encoder
    whole = tmp_path / "whole.json"
    whole.write_text(config.to_json())
    assert read_sizes(str(whole)) == config
    assert read_sizes("tiny") is PRESETS["tiny"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: huge", "has the preset 'huge'; presets are tiny"),
        ("unet: {widths: [32, 64]}", "lacks"),
        ("preset: [micro]", r"has the preset \['micro'\]; presets are tiny"),
        ("preset: micro\nunet: {width: 3}", "unknown"),
        ("preset: micro\nunet: {widths: [33, 64]}", "UNet width 33 must be a multiple of 32"),
        ("preset: micro\nadapter: {output_width: 64}", "the adapter gives context of width 64, but the UNet takes 32"),
        ("preset: micro\nresolution: many", "it must be of type int"),
        ("preset: micro\nresolution: 2026-11-29", "date is not JSON serializable"),
        (f"preset: micro\nresolution: {64 * 10**20}", "resolution is 64.*; it is 8192 pixels at most"),
        (f"preset: micro\nunet: {{widths: [{32 * 10**20}, {64 * 10**20}]}}", "no model of these sizes can be built"),
        (f"preset: micro\nunet: {{widths: [{32 * 10**15}, {64 * 10**15}]}}", "no model of these sizes can be built"),
        ("preset: micro\nunet: {layers_per_block: 100000}", "layers_per_block is 100000; it must be 1000 at most"),
        ("preset: micro\nnoise: {timesteps: 100000000000}", "timesteps is 100000000000; it must be 100000 at most"),
        ("a: &a [*a]", "Circular reference"),
        ("[", "cannot be read"),
        ("- tiny", "holds list, where"),
    ],
)
def test_sizes_that_do_not_fit_are_a_sentence(tmp_path, text, message):
    file = tmp_path / "sizes.yaml"
    file.write_text(text)
    with pytest.raises(ImprintError, match=f"(?s)sizes.yaml.*{message}"):
        read_sizes(str(file))


def test_a_model_of_a_file_s_sizes_trains_and_goes_on_as_it_is(data, tmp_path):
    file = tmp_path / "sizes.yaml"
    file.write_text(CHANGED)
    command = words(data, tmp_path / "run", sizes=file)
    train.main(command)
    assert read_config(tmp_path / "run" / "checkpoint.safetensors") == read_sizes(str(file))
    described = json.loads((tmp_path / "run" / "options.json").read_text())
    assert described["sizes"] == str(file) and described["model"]["unet"]["widths"] == [32, 96]
    file.write_text("preset: micro")  # the same name, and another model
    assert "was begun with model" in failed(train.main, command)
    assert f"--sizes {tmp_path / 'x'} is neither a file nor a preset" in failed(
        train.main, words(data, tmp_path / "other", sizes=tmp_path / "x")
    )
