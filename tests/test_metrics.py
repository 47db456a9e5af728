"""The evaluation's metrics on random networks, saved in a folder in the real ones' layout, and its intervals.

DreamSim, LPIPS and FID, which need the extra `evaluate`, are in `test_evaluate_extra.py`.
"""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from evaluation import CPU, NEEDS, check_that_the_target_is_best, scene_of
from micro import photo

from imprint.errors import ImprintError
from training.measure import networks, statistics, tasks


@pytest.mark.parametrize("name", ["clip-i", "dino", "dinov2"])
def test_a_metric_of_the_target_itself_is_the_best_there_is(bench, backbones, name):
    check_that_the_target_is_best(name, 1, bench, backbones)


def test_similarity_is_the_cosine_of_the_model_s_own_features(backbones):
    one, two = photo(32, 32, seed=1), photo(32, 32, seed=2)
    model = transformers.AutoModel.from_pretrained(backbones / "dino-vits16").eval()
    processor = {"mean": torch.tensor([0.485, 0.456, 0.406]), "std": torch.tensor([0.229, 0.224, 0.225])}
    x = torch.stack([torch.from_numpy(np.asarray(p) / 255).permute(2, 0, 1).float() for p in (one, two)])
    x = (x - processor["mean"][:, None, None]) / processor["std"][:, None, None]
    with torch.no_grad():
        a, b = model(x).last_hidden_state[:, 0]
    metric = networks.Similarity("dino", networks.Backbone("dino", backbones, CPU))
    assert metric(scene_of(one), [two])["dino"][0] == pytest.approx(
        torch.cosine_similarity(a, b, dim=0).item(), abs=1e-6
    )


def test_mobilenet_is_built_from_keras_names(tmp_path):
    """Compared with explicit convolutions: TensorFlow pads "same", and batch norm's epsilon is 1e-3."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    widths, weights = [24, 48, 96, 96, 192, 192, 384, 384, 384, 384, 384, 384, 768, 768], {}

    def norm(name: str, width: int) -> None:
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            weights[f"{name}.{part}"] = torch.rand(width) + 0.5

    weights["conv1.kernel"] = torch.randn(3, 3, 3, 24) * 0.3
    norm("conv1_bn", 24)
    for block in range(1, 14):
        weights[f"conv_dw_{block}.depthwise_kernel"] = torch.randn(3, 3, widths[block - 1], 1) * 0.3
        weights[f"conv_pw_{block}.kernel"] = (
            torch.randn(1, 1, widths[block - 1], widths[block]) * widths[block - 1] ** -0.5
        )
        norm(f"conv_dw_{block}_bn", widths[block - 1])
        norm(f"conv_pw_{block}_bn", widths[block])
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / NEEDS["mobilenet"])

    def layer(
        x: torch.Tensor, name: str, kernel: torch.Tensor, norm: str, stride: int, groups: int = 1
    ) -> torch.Tensor:
        size = kernel.shape[-1]
        padding = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = torch.nn.functional.pad(x, (padding // 2, padding - padding // 2) * 2)
        x = torch.nn.functional.conv2d(x, kernel, stride=stride, groups=groups)
        mean, variance, gamma, beta = (
            weights[f"{norm}.{p}"] for p in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-3).clamp(0, 6)

    picture = photo(224, 224, seed=1)
    x = torch.from_numpy(np.asarray(picture) / 255).permute(2, 0, 1)[None].float() * 2 - 1
    x, pooled = layer(x, "conv1", weights["conv1.kernel"].permute(3, 2, 0, 1), "conv1_bn", 2), []
    for block in range(1, 14):
        depthwise = weights[f"conv_dw_{block}.depthwise_kernel"].permute(2, 3, 0, 1)
        x = layer(x, "", depthwise, f"conv_dw_{block}_bn", 2 if block in (2, 4, 6, 12) else 1, x.shape[1])
        x = layer(x, "", weights[f"conv_pw_{block}.kernel"].permute(3, 2, 0, 1), f"conv_pw_{block}_bn", 1)
        if block in (3, 5, 9, 11, 13):
            pooled.append(torch.nn.functional.normalize(x.mean((2, 3)).sqrt(), dim=1))
    expected = torch.nn.functional.normalize(torch.cat(pooled, 1), dim=1)
    assert torch.allclose(networks.Backbone("mobilenet", tmp_path, CPU)([picture]), expected, atol=1e-5)


def test_retrieval_finds_what_was_pasted(bench, backbones):
    subjects = tasks.read_subjects(bench / "subjects")
    metric = networks.Retrieval(networks.Backbone("dinov2", backbones, CPU), subjects)
    scene = dataclasses.replace(scene_of(photo(50, 40)), subject="cup")
    own, other = (scene.crop(scene.paste(subjects[name][-1].load()[0])) for name in ("cup", "bear"))
    scores = metric(scene, [own, other])
    assert scores["top-1"] == [1, 0]
    assert scores["margin"][0] > 0 and scores["margin"][1] == pytest.approx(-scores["margin"][0], abs=1e-6)


def test_retrieval_needs_a_choice(bench, backbones):
    one = {"bear": tasks.read_subjects(bench / "subjects")["bear"]}
    with pytest.raises(ImprintError, match="there is 1; give two or more"):
        networks.Retrieval(networks.Backbone("dinov2", backbones, CPU), one)


@pytest.mark.parametrize(("count", "width"), [(12, 5), (5, 12)])
def test_the_frechet_distance_is_that_of_the_covariances(count, width):
    random = np.random.default_rng(0)
    first, second = random.normal(size=(count, width)), random.normal(1, 2, size=(count + 2, width))
    a, b = (np.cov(features, rowvar=False) for features in (first, second))
    root = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert statistics.frechet_distance(first, second) == pytest.approx(expected, abs=1e-5)
    assert statistics.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert statistics.frechet_distance(first, first + 2) == pytest.approx(4 * width, abs=1e-9)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_s_interval_is_that_of_the_mean_over_subjects():
    values = np.random.default_rng(0).normal(3, 2, 200)
    found = statistics.bootstrap(values, [str(i) for i in range(200)])
    reach = 1.96 * values.std() / 200**0.5
    assert found["mean"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - reach, abs=0.05)
    assert found["high"] == pytest.approx(values.mean() + reach, abs=0.05)


def test_more_tasks_of_the_same_subjects_do_not_narrow_the_interval():
    few, subjects = [0.1, 0.5, 0.9, 0.2], list("abcd")
    assert statistics.bootstrap(few * 10, subjects * 10) == pytest.approx(statistics.bootstrap(few, subjects))


def test_one_subject_has_no_interval():
    assert statistics.bootstrap([1.0, 2.0], ["a", "a"]) == {"mean": 1.5, "low": None, "high": None}
    assert statistics.jackknife(lambda i: float(len(i)), ["a", "a"]) == {"mean": 2.0, "low": None, "high": None}


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 4.0, 2.0, 7.0] * 2)
    found = statistics.jackknife(lambda i: values[i].mean(), list("abcdefgh"))
    assert found["mean"] == values.mean()
    assert found["high"] - found["mean"] == pytest.approx(1.959964 * values.std(ddof=1) / 8**0.5)
