"""The metrics. Libraries and networks are loaded only when a metric is built.

A metric takes a task's scene and crops of several composites of it, and returns one number per crop for each of its
columns. Networks come from the hub, or only from `--backbones FOLDER`:

    clip-vit-base-patch32/ dino-vits16/ dinov2-base/        folders as `hf download` makes them
    checkpoints/alexnet-owt-7be5be79.pth                    as torch's hub folder has them
    checkpoints/weights-inception-2015-12-05-6726825d.pth
    dreamsim/                                               DreamSim's own cache
    mobilenet_v1_0.75_224.safetensors                       MobileNet-v1 0.75 with Keras' names

Pictures are Pillow RGB; each is resized to a network's square input without cutting anything off.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from imprint.checkpoint import open_safetensors
from imprint.errors import ImprintError
from imprint.images import image_to_tensor
from imprint.preprocess import MEAN_AND_STD
from imprint.released import require_safe_pickles

from .light import GAINS
from .tasks import Photo, Scene

SIDE = 224  # resolution at which every network except Inception was trained
INCEPTION_SIDE = 299
DREAMSIM = "ensemble"  # of the paper (arXiv 2306.09344): DINO, CLIP and OpenCLIP ViT-B/16
Scores = dict[str, list[float]]


@dataclass(frozen=True)
class Column:
    """A reported number, and how to read it."""

    title: str
    better: str
    """"higher" or "lower"."""


SIMILARITIES = {"clip-i": "clip", "dino": "dino", "dinov2": "dinov2", "mobilenet": "mobilenet"}
"""Columns of cosine similarity, and their backbones."""
COLUMNS = {
    "clip-i": Column("CLIP-I", "higher"),
    "dino": Column("DINO", "higher"),
    "dinov2": Column("DINOv2", "higher"),
    "dreamsim": Column("DreamSim", "lower"),
    "mobilenet": Column("MobileNet", "higher"),
    "lpips": Column("LPIPS", "lower"),
    "top-1": Column("top-1", "higher"),
    "margin": Column("margin", "higher"),
    "fid": Column("FID", "lower"),
    "light": Column("light gain", "higher"),
    "shadow": Column("shadow gain", "higher"),
    "contact": Column("contact gain", "higher"),
}
PADDED = ", padded"
COLUMNS |= {
    name + PADDED: Column(column.title + PADDED, column.better) for name, column in COLUMNS.items() if name not in GAINS
}


class Backbone:
    """A pretrained network as a measure: pictures -> (B, D) unit vectors."""

    HUB = {"clip": "openai/clip-vit-base-patch32", "dino": "facebook/dino-vits16", "dinov2": "facebook/dinov2-base"}
    MOBILENET = "mobilenet_v1_0.75_224.safetensors"

    def __init__(self, name: str, folder: Path | None, device: torch.device):
        """folder: of its weights, None for the hub. Raises `ImprintError` if they are unavailable."""
        self.name, self.device = name, device
        if name == "mobilenet":
            self.network, self.side = _mobilenet(folder), SIDE
        else:
            self.network = self._from_hub(self.HUB[name], folder)
            self.side = min(SIDE, self.network.config.image_size)
        self.network.eval().requires_grad_(False).to(device)

    def _from_hub(self, repository: str, folder: Path | None) -> torch.nn.Module:
        import transformers

        kind = transformers.CLIPVisionModelWithProjection if self.name == "clip" else transformers.AutoModel
        if folder is None:
            with _needed(self.name, f"{repository} from the hub"):
                return kind.from_pretrained(repository)
        path = folder / repository.split("/")[1]
        _require(self.name, path, f"hf download {repository} --local-dir {path}")
        with _needed(self.name, str(path)):
            return kind.from_pretrained(path, local_files_only=True)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        x = stack(pictures, self.side).to(self.device)
        if self.name == "mobilenet":  # responses of five layers: texture and colour count as well as the category
            states = self.network(x * 2 - 1, output_hidden_states=True).hidden_states
            pooled = [F.normalize(states[2 * block - 1].mean((2, 3)).sqrt(), dim=1) for block in (3, 5, 9, 11, 13)]
            return F.normalize(torch.cat(pooled, 1), dim=1)
        mean, std = (x.new_tensor(v)[:, None, None] for v in MEAN_AND_STD["clip" if self.name == "clip" else "dinov2"])
        output = self.network((x - mean) / std)
        return F.normalize(output.image_embeds if self.name == "clip" else output.last_hidden_state[:, 0], dim=1)


def _mobilenet(folder: Path | None) -> torch.nn.Module:
    """transformers' MobileNet-v1 0.75 with weights under Keras' names, kernels as (height, width, in, out)."""
    import transformers

    if folder is None:
        raise ImprintError(f"mobilenet comes from no hub; give --backbones a folder with {Backbone.MOBILENET}")
    path = folder / Backbone.MOBILENET
    with open_safetensors(path, "MobileNet's weights"):  # says what is wrong with it
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    network = transformers.MobileNetV1Model(transformers.MobileNetV1Config(depth_multiplier=0.75, tf_padding=True))
    layers = [("conv1.kernel", "conv1_bn", (3, 2, 0, 1), network.conv_stem)]
    for block in range(13):
        depthwise, pointwise = network.layer[2 * block], network.layer[2 * block + 1]
        layers.append((f"conv_dw_{block + 1}.depthwise_kernel", f"conv_dw_{block + 1}_bn", (2, 3, 0, 1), depthwise))
        layers.append((f"conv_pw_{block + 1}.kernel", f"conv_pw_{block + 1}_bn", (3, 2, 0, 1), pointwise))
    with _needed("mobilenet", str(path)):
        for kernel, norm, order, layer in layers:
            layer.convolution.weight.data.copy_(weights[kernel].permute(order))
            names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
            for ours, theirs in names.items():
                getattr(layer.normalization, ours).data.copy_(weights[f"{norm}.{theirs}"])
    return network


def stack(pictures: Sequence[Image.Image], side: int) -> torch.Tensor:
    """Pictures -> (B, 3, side, side) in [0, 1]; bicubic and antialiased, as Pillow resizes."""
    return torch.cat([image_to_tensor(picture.resize((side, side), Image.BICUBIC)) for picture in pictures])


def _checkpoint(metric: str, folder: Path | None, name: str) -> Path | None:
    """A file of torch's hub folder; None if its library may download it. A pickle that would run code is refused."""
    path = (folder or Path(torch.hub.get_dir())) / "checkpoints" / name
    if folder is None and not path.exists():
        return None
    _require(metric, path, "run the metric once without --backbones, which keeps it in torch's hub folder")
    require_safe_pickles(path)
    with _needed(metric, str(path)):
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return path


def _require(metric: str, path: Path, cure: str) -> None:
    if not path.exists():
        raise ImprintError(
            f"'{metric}' needs {path}, which is not there; get it ({cure}), or choose others with --metrics"
        )


@contextmanager
def _needed(metric: str, what: str) -> Iterator[None]:
    """Turn any failure to load a metric's networks into an `ImprintError`."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ImprintError(
            f"'{metric}' needs {what}, which could not be loaded ({_brief(error)}); give a folder that holds it as "
            "--backbones, or choose others with --metrics"
        ) from error


def _module(metric: str, name: str) -> ModuleType:
    """Import a module of the extra `evaluate`. Raises `ImprintError` if it, or its torchvision, fails to import."""
    try:
        import_module("torchvision")  # first, on its own: its own error is the most informative
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ImprintError(
            f"'{metric}' needs the package '{error.name}'; pip install 'imprint[evaluate]', or choose others with "
            "--metrics"
        ) from error
    except (AttributeError, ImportError, OSError, RuntimeError) as error:  # torchvision for another build of torch
        raise ImprintError(
            f"'{metric}' needs {name}, which does not import here ({_brief(error)}); install a torchvision that was "
            "built for this torch, or choose others with --metrics"
        ) from error


def _brief(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"


class Similarity:
    """Cosine similarity of a backbone's features of crop and target (DreamBooth, arXiv 2208.12242, section 4.1)."""

    def __init__(self, column: str, backbone: Backbone):
        self.column, self.backbone = column, backbone

    def __call__(self, scene: Scene, crops: Sequence[Image.Image]) -> Scores:
        target, *rest = self.backbone([scene.target, *crops])
        return {self.column: (torch.stack(rest) @ target).tolist()}


class DreamSim:
    """DreamSim's distance (arXiv 2306.09344) of the crop to the target, by its authors' package."""

    def __init__(self, folder: Path | None, device: torch.device):
        hub = torch.hub.get_dir()
        cache = (folder or Path(hub)) / "dreamsim"
        if folder is not None:
            _require("dreamsim", cache, "run the metric once without --backbones, which keeps it in torch's hub folder")
        package = _module("dreamsim", "dreamsim")
        try:
            with _needed("dreamsim", "its weights and DINO's code"):
                cache.parent.mkdir(parents=True, exist_ok=True)
                self.model, _ = package.dreamsim(cache_dir=str(cache), device=str(device), dreamsim_type=DREAMSIM)
        finally:
            torch.hub.set_dir(hub)  # which the package moves
        self.device = device

    @torch.no_grad()
    def __call__(self, scene: Scene, crops: Sequence[Image.Image]) -> Scores:
        target, *rest = self.model.embed(stack([scene.target, *crops], SIDE).to(self.device))
        return {"dreamsim": [1 - F.cosine_similarity(one, target, dim=0).item() for one in rest]}


class LPIPS:
    """LPIPS with AlexNet (arXiv 1801.03924) between the crop and the target, both at `SIDE` pixels, by torchmetrics."""

    def __init__(self, folder: Path | None, device: torch.device):
        path, hub = _checkpoint("lpips", folder, "alexnet-owt-7be5be79.pth"), torch.hub.get_dir()
        kind = _module("lpips", "torchmetrics.image.lpip").LearnedPerceptualImagePatchSimilarity
        try:
            with _needed("lpips", "AlexNet's weights"):
                if path is not None:
                    torch.hub.set_dir(path.parents[1])
                self.distance = kind("alex", reduction="none", normalize=True).to(device)
        finally:
            torch.hub.set_dir(hub)
        self.device = device

    @torch.no_grad()
    def __call__(self, scene: Scene, crops: Sequence[Image.Image]) -> Scores:
        x, target = stack(crops, SIDE).to(self.device), stack([scene.target], SIDE).to(self.device)
        return {"lpips": self.distance(x, target.expand_as(x)).reshape(-1).tolist()}


class Retrieval:
    """Is the object retrieved as itself among all subjects?

    Every subject's cut-out, if possible from another photo than the reference, is pasted into the box of the same
    background, and the composite's box is compared with all of them. top-1: whether its own is the most similar.
    margin: its own similarity minus the mean of the others'.
    """

    def __init__(self, backbone: Backbone, subjects: Mapping[str, list[Photo]]):
        if len(subjects) < 2:
            raise ImprintError(f"'retrieval' chooses among subjects, and there is {len(subjects)}; give two or more")
        self.backbone = backbone
        self.cutouts = {name: photos[-1].load()[0] for name, photos in subjects.items()}

    def __call__(self, scene: Scene, crops: Sequence[Image.Image]) -> Scores:
        candidates = [scene.crop(scene.paste(cutout)) for cutout in self.cutouts.values()]
        features = self.backbone([*crops, *candidates])
        similarity = features[: len(crops)] @ features[len(crops) :].T
        own = list(self.cutouts).index(scene.subject)
        others = (similarity.sum(1) - similarity[:, own]) / (len(candidates) - 1)
        return {
            "top-1": (similarity <= similarity[:, own, None]).all(1).float().tolist(),
            "margin": (similarity[:, own] - others).tolist(),
        }


class Inception:
    """Features for the Frechet inception distance: torch-fidelity's network of the FID's authors, (B, 2048).

    Pictures are resized by Pillow before, as Parmar et al. (arXiv 2104.11222) advise, so that the network's own
    resampling, which aliases, has no effect.
    """

    def __init__(self, folder: Path | None, device: torch.device):
        path = _checkpoint("fid", folder, "weights-inception-2015-12-05-6726825d.pth")
        kind = _module("fid", "torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        with _needed("fid", "Inception's weights"):
            self.network = kind("inception-v3-compat", ["2048"], None if path is None else str(path)).to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        x = (stack(pictures, INCEPTION_SIDE) * 255).round().to(torch.uint8)
        return self.network(x.to(self.device))[0].double().cpu().numpy()
