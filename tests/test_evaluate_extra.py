"""DreamSim, LPIPS and FID on random networks: the parts of the evaluation that need the extra `evaluate`."""

import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

try:
    import torchvision  # first: its own error says most
    from dreamsim.config import dreamsim_args
    from dreamsim.feature_extraction import load_clip_as_dino
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer
    from dreamsim.model import PerceptualModel
    from peft import LoraConfig, get_peft_model
    from torch_fidelity import feature_extractor_inceptionv3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
except ModuleNotFoundError as error:
    pytest.skip(f"the extra 'evaluate' is not installed: {error}", allow_module_level=True)
except (AttributeError, ImportError, OSError, RuntimeError) as error:
    pytest.skip(f"torchvision is of another build of torch: {error}", allow_module_level=True)


from evaluation import (
    NEEDS,
    check_readme_command,
    check_that_the_target_is_best,
    readme_commands,
    results,
    words,
    write_backbones,
)

from training import evaluate
from training.measure import networks, statistics


def small_vit(patch_size: int) -> VisionTransformer:
    return VisionTransformer(
        patch_size=patch_size, embed_dim=32, depth=1, num_heads=2, mlp_ratio=2, num_classes=0, qkv_bias=True
    )


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> Iterator[Path]:
    """Every network of the default metrics, small if its architecture allows it."""
    folder = write_backbones(tmp_path_factory.mktemp("backbones"))
    (folder / "checkpoints").mkdir()
    tensors = {
        # The classifier is not used: one number stands for each of its tensors.
        name: torch.zeros(()).expand(tensor.shape) if name.startswith("classifier") else tensor
        for name, tensor in torchvision.models.alexnet().state_dict().items()
    }
    torch.save(tensors, folder / NEEDS["lpips"])
    network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with (
        patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {}),
        patch.object(network, "load_state_dict", lambda *_: None),
    ):
        inception = network("random", ["2048"])
    torch.save({name: tensor.half() for name, tensor in inception.state_dict().items()}, folder / NEEDS["fid"])

    cache = folder / "dreamsim"
    cache.mkdir()
    with patch.object(load_clip_as_dino, "vit_base", small_vit), patch.object(networks, "DREAMSIM", "clip_vitb32"):
        model = small_vit(32)
        model.pos_drop = torch.nn.LayerNorm(32)  # as the package turns CLIP into DINO
        state = model.state_dict() | {"proj": torch.randn(32, 16)}
        torch.save({"state_dict": state}, cache / "clip_vitb32_pretrain.pth.tar")
        model = PerceptualModel(**dreamsim_args["model_config"]["clip_vitb32"], device="cpu", load_dir=str(cache))
        adapter = get_peft_model(model, LoraConfig(r=2, lora_alpha=2, target_modules=["qkv"]))
        adapter.save_pretrained(cache / "clip_vitb32_single_lora")
        yield folder


@pytest.mark.parametrize("name", ["dreamsim", "lpips"])
def test_a_metric_of_the_target_itself_is_the_best_there_is(bench, backbones, name):
    check_that_the_target_is_best(name, 0, bench, backbones)


def test_a_run_measures_everything(bench, backbones, tmp_path):
    evaluate.main(words(bench, tmp_path, metrics=None, backbones=backbones))
    found = results(tmp_path)
    columns = {"clip-i", "dino", "dinov2", "dreamsim", "lpips", "fid", "top-1", "margin"}
    for name, row in found["rows"].items():
        assert set(row) == columns | {"background"} and row["background"]["exact"]
        assert all(np.isfinite(list(row[column].values())).all() for column in columns)
        own = [record["lpips"] for record in found["records"] if record["row"] == name]
        assert row["lpips"]["mean"] == pytest.approx(np.mean(own))
    assert set(found["differences"]["copy-paste"]) == columns - {"fid"}
    table = (tmp_path / "results.md").read_text().splitlines()[2:6]
    assert {len(re.findall(r"\|", line)) for line in table} == {11}


@pytest.mark.parametrize("command", readme_commands(), ids=lambda command: command[-1])
def test_the_readme_s_commands_run_as_they_are(bench, backbones, tmp_path, command):
    check_readme_command(command, bench, backbones, tmp_path)


@pytest.mark.parametrize(("count", "width"), [(12, 5), (5, 12)])
def test_the_frechet_distance_is_torch_fidelity_s(count, width):
    random = np.random.default_rng(0)
    first, second = random.normal(size=(count, width)), random.normal(1, 2, size=(count + 2, width))
    theirs = [fid_features_to_statistics(torch.from_numpy(features)) for features in (first, second)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert statistics.frechet_distance(first, second) == pytest.approx(expected, abs=1e-5)
