"""Read meshes from files, as parts scaled to the unit sphere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imprint.errors import ImprintError, from_extra

ORIGINAL_TEXTURE_SIZE = 512  # longest side of a mesh's own texture, in pixels
PROCEDURAL_WEIGHT = 0.5  # relative number of identities: abstract shapes teach less than real objects


@dataclass(frozen=True)
class Mesh:
    """A file, and its entry in the mesh index."""

    file: str
    source: str = "unknown"
    licence: str = "unknown"
    procedural: bool = False


@dataclass(frozen=True)
class Identity:
    """Object `index` of the data set: a mesh and the number of its material (0 is the mesh's own)."""

    index: int
    mesh: Mesh
    variant: int


@dataclass
class Part:
    """One part of a mesh: vertices (V, 11) float32 of xyz, normal, uv and sRGB in [0, 1]; faces (F, 3) int32."""

    vertices: np.ndarray
    faces: np.ndarray
    texture: Image.Image
    triplanar: bool = False

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre (3,) and extent (3,) of its bounding box."""
        low, high = self.vertices[:, :3].min(0), self.vertices[:, :3].max(0)
        return (low + high) / 2, np.maximum(high - low, 1e-4)


def read_meshes(folder: Path) -> list[Mesh]:
    """List a folder's .glb files, at any depth, with source and licence from index.json if it names them.

    Raises `ImprintError` for a broken index.json.
    """
    index = folder / "index.json"
    try:
        lines = json.loads(index.read_text(encoding="utf-8")) if index.exists() else []
        facts = {line["file"]: {name: line[name] for name in ("source", "licence", "procedural")} for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImprintError(
            f"{index} is not a list of meshes with file, source, licence and procedural ({error!r})"
        ) from error
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.glb"))
    return [Mesh(file, **facts.get(file, {})) for file in files]


def plan_identities(meshes: list[Mesh], count: int, seed: int) -> list[Identity]:
    """Distribute `count` identities over the meshes, in random order."""
    weights = np.array([PROCEDURAL_WEIGHT if mesh.procedural else 1.0 for mesh in meshes])
    edges = np.rint(np.cumsum(weights) / weights.sum() * count).astype(int)
    pairs = [
        (mesh, variant) for mesh, most in zip(meshes, np.diff(edges, prepend=0), strict=True) for variant in range(most)
    ]
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [Identity(index, *pairs[place]) for index, place in enumerate(order.tolist())]


def load_parts(path: Path) -> list[Part]:
    """Load a mesh's parts, centred and scaled to the unit sphere.

    Raises `ImprintError` if trimesh is not installed, and any error of its loaders for a file that they cannot read.
    """
    trimesh = from_extra("trimesh", "train", "reading meshes")

    parts = []
    for mesh in trimesh.load(path, force="scene").dump():
        if not isinstance(mesh, trimesh.Trimesh):  # lines and points
            continue
        texture, uv = Image.new("RGB", (1, 1), "white"), np.zeros((len(mesh.vertices), 2))
        colours = np.full((len(mesh.vertices), 3), 0.8)
        if mesh.visual.kind == "vertex":
            colours = mesh.visual.vertex_colors[:, :3] / 255
        elif mesh.visual.kind == "texture":
            material = mesh.visual.material
            if isinstance(material, trimesh.visual.material.SimpleMaterial):
                material = material.to_pbr()
            if material.baseColorTexture is not None and mesh.visual.uv is not None:
                texture, uv = material.baseColorTexture.convert("RGB"), mesh.visual.uv
                texture.thumbnail((ORIGINAL_TEXTURE_SIZE, ORIGINAL_TEXTURE_SIZE))
                colours[:] = 1
            if material.baseColorFactor is not None:  # linear in glTF, 0 to 255 in trimesh
                colours[:] = (material.baseColorFactor[:3] / 255) ** (1 / 2.2)
        vertices = np.hstack([mesh.vertices, mesh.vertex_normals, uv, colours]).astype(np.float32)
        parts.append(Part(vertices, mesh.faces.astype(np.int32), texture))
    points = np.concatenate([part.vertices[:, :3] for part in parts])
    centre = (points.min(0) + points.max(0)) / 2
    radius = np.linalg.norm(points - centre, axis=1).max()
    if not np.isfinite(radius) or radius == 0:
        raise ValueError(f"{path.name} has radius {radius}")
    for part in parts:
        part.vertices[:, :3] = (part.vertices[:, :3] - centre) / radius
    return parts


def is_plain(parts: list[Part]) -> bool:
    """Whether the mesh is roughly one shade of grey, so that its own colours do not identify it."""
    colours = np.concatenate([part.vertices[:, 8:] for part in parts])
    textured = any(part.texture.width > 1 for part in parts)
    return not textured and np.ptp(colours, axis=1).max() < 0.1 and np.ptp(colours, axis=0).max() < 0.3
