"""Random weights under the names and shapes of third-party released files, the same for their code and for ours.

`third_party/full.txt` lists the tensors of their code at its own sizes, `third_party/small.txt` with two layers of CLIP
at 56 px and a UNet of two levels; the sizes of the mapper and the autoencoder are fixed in their code. ObjectStitch and
Paint-by-Example have the same lists; `third_party/controlcom-*.txt` and `anydoor-*.txt` list the differences of
ControlCom and AnyDoor, whose code accepts only pictures of 224 px. ControlCom's small UNet has three levels, since with
two its middle would have a local block. `third_party/*.safetensors` hold the results of their code with these weights;
repository and commit are in the metadata.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "third_party"
KINDS = ("objectstitch", "paint-by-example", "controlcom")
"""The kinds of the common tests; AnyDoor has its own tests."""
SIDES = {"small": (56, 16), "full": (224, 16)}
"""Side of CLIP's input in pixels, and of the scene in latent cells."""


def shapes(size: str, kind: str = "objectstitch") -> dict[str, tuple[int, ...]]:
    """Every tensor of a released file: name -> shape.

    A line of a list of differences is `NAME SHAPE`, where the name may have a range of numbers, `PREFIX -` for names to
    remove, or `PREFIX =OTHER` for names that have another prefix.
    """
    sides: dict[str, str] = {}
    for file in (f"{size}.txt", f"{kind}-{size}.txt") if kind in ("anydoor", "controlcom") else (f"{size}.txt",):
        for name, shape in map(str.split, (FOLDER / file).read_text().splitlines()):
            if shape == "-":
                sides = {other: value for other, value in sides.items() if not other.startswith(name)}
            elif shape.startswith("="):
                alike = {other: value for other, value in sides.items() if other.startswith(shape[1:])}
                sides |= {name + other.removeprefix(shape[1:]): value for other, value in alike.items()}
            else:
                sides |= dict.fromkeys(_expanded(name), shape)
    return {name: tuple(map(int, shape.split("x"))) for name, shape in sides.items()}


def _expanded(name: str) -> list[str]:
    """`blocks.0-39.norm1` -> `blocks.0.norm1`, ..., `blocks.39.norm1`."""
    numbers = re.search(r"(\d+)-(\d+)", name)
    if not numbers:
        return [name]
    first, last = map(int, numbers.groups())
    return [name.replace(numbers[0], str(number)) for number in range(first, last + 1)]


def is_schedule(name: str) -> bool:
    """Whether a tensor is a table of the noise schedule and not a weight."""
    return "." not in name and name != "learnable_vector"


def uniform(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers in [-1, 1) that depend only on the name, the same on every machine."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.rand(shape, generator=generator) * 2 - 1


def random_weight(name: str, shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """Scaled so that every layer's output is about as large as its input."""
    values = uniform(name, shape)
    if name.endswith(
        ("learnable_vector", "class_embedding", "position_embedding.weight", "cls_token", "pos_embed", "mask_token")
    ):
        return values
    if len(shape) == 1:
        return 0.1 * values + name.endswith((".weight", ".gamma"))  # a norm's weight is about 1
    values = values * math.sqrt(3 / math.prod(shape[1:]))
    if kind == "paint-by-example" and name.endswith("attn.c_qkv.weight"):
        values[: 2 * shape[1]] /= math.sqrt(3)  # as initialised by torch's Linear: they never had a gradient
    return values


def random_weights(size: str, kind: str) -> dict[str, torch.Tensor]:
    """A whole file's weights, without the schedule's tables."""
    return {
        name: random_weight(name, shape, kind) for name, shape in shapes(size, kind).items() if not is_schedule(name)
    }


def scene(size: str) -> dict[str, torch.Tensor]:
    """The inputs: an object's colours and mask, a picture for the autoencoder, and latents with a hole."""
    side = SIDES[size][1]
    hole = torch.zeros(1, 1, side, side)
    hole[:, :, 4:12, 5:13] = 1
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    waves = [((rows * a + columns * b) / 40).sin() for a, b in ((1, 2), (3, 1), (2, -1))]
    return {
        "object": (torch.stack(waves)[None] * 100 + 128).round() / 255,  # (1, 3, 60, 80), whole 8-bit steps
        "mask": (((rows / 59 - 0.5) ** 2 + (columns / 79 - 0.5) ** 2) <= 0.26).float()[None],  # touches every side
        "pixels": uniform("pixels", (1, 3, 224, 224)) * 1.5,  # in place of a prepared object of that size
        "picture": uniform("picture", (1, 3, 32, 32)) / 2 + 0.5,
        "background": uniform("background", (1, 4, side, side)) * 2,
        "hole": hole,
        "noise": uniform("noise", (1, 4, side, side)) * math.sqrt(3),
        "hint": uniform("hint", (1, 4, 8 * side, 8 * side)),
    }


HOLES = ("box", "shape", "border")


def collage_scene(hole: str) -> dict[str, torch.Tensor]:
    """An object of coarse checks with its mask (1, 3, 300, 400), and a background (1, 3, 700, 800) with one of `HOLES`.

    The hole is a box, an ellipse, or a box at the background's upper border. All values are whole 8-bit steps, masks 0
    and 1.
    """

    def checks(name: str, height: int, width: int) -> torch.Tensor:
        coarse = uniform(name, (1, 3, height // 20, width // 20)) / 2 + 0.5
        return (coarse.repeat_interleave(20, 2).repeat_interleave(20, 3) * 255).round() / 255

    def ellipse(height: int, width: int, centre: tuple[int, int], radii: tuple[int, int]) -> torch.Tensor:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return (((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1).float()[None]

    mask = torch.zeros(1, 700, 800)
    if hole == "shape":
        mask = ellipse(700, 800, (350, 400), (70, 99))
    elif hole == "box":
        mask[:, 270:400, 300:499] = 1
    else:
        mask[:, 20:150, 401:600] = 1
    return {
        "object": checks("object", 300, 400),
        "mask": ellipse(300, 400, (150, 200), (70, 100)),
        "background": checks("background", 700, 800),
        "hole": mask,
    }


def digest(whole_numbers: torch.Tensor) -> str:
    """SHA-256 of numbers from 0 to 255."""
    return hashlib.sha256(whole_numbers.round().to(torch.uint8).contiguous().numpy().tobytes()).hexdigest()
