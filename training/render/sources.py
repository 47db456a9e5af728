"""Data sets of meshes, as `training.data.items` describes sources: any folder of them, and Objaverse."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from imprint.errors import ImprintError

from ..data.items import Dropped, Group, Item, Source, first_folder, subfolders
from ..data.settings import Prepare
from ..data.shards import Record
from .meshes import Mesh, load_parts, plan_identities, read_meshes
from .views import render_identity


def mesh_groups(path: Path, options: Prepare) -> Iterator[Group]:
    """A folder of .glb files, at any depth, with an optional index.json (`file`, `source`, `licence`, `procedural`).

    An object is a mesh with a material: first the mesh's own, then random ones, until there are `--identities`.
    """
    return _identities(path, read_meshes(path), options)


def objaverse_groups(path: Path, options: Prepare) -> Iterator[Group]:
    """Objaverse 1.0 in its downloader's layout: [hf-objaverse-v1/]glbs/000-NNN/UID.glb and metadata/000-NNN.json.gz.

    Each object's licence is read from the metadata (`license`: by, by-sa, by-nc, ..., cc0).
    """
    glbs = first_folder(path / "hf-objaverse-v1" / "glbs", path / "glbs")
    if glbs is None:
        raise ImprintError(f"{path} has no glbs/; --input is Objaverse's own folder, hf-objaverse-v1 or the one above")
    meshes = []
    for folder in subfolders(glbs):
        licences = _objaverse_licences(glbs.parent / "metadata" / f"{folder.name}.json.gz")
        for file in sorted(folder.glob("*.glb")):
            licence = licences.get(file.stem, options.licence)
            meshes.append(Mesh(f"{folder.name}/{file.name}", "Objaverse", licence))
    return _identities(glbs, meshes, options)


def _objaverse_licences(path: Path) -> dict[str, str]:
    """Read a metadata file's licences by UID; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            table = json.load(file)
        names = {uid: entry["license"].upper() for uid, entry in table.items() if entry.get("license")}
    except (OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ImprintError(f"{path} is not a metadata file of Objaverse ({error!r}); download it again") from error
    return {uid: "CC0-1.0" if name == "CC0" else f"CC-{name}-4.0" for uid, name in names.items()}


def _identities(root: Path, meshes: list[Mesh], options: Prepare) -> Iterator[Group]:
    if not meshes:
        raise ImprintError(f"{root} holds no .glb files; --input is the folder of the meshes")
    for identity in plan_identities(meshes, options.render.identities or len(meshes), options.render.seed):
        size = options.render.views + options.render.relit
        yield Group(f"{identity.index:07d}", size=size, data=(root, identity), key=identity.mesh.file)


def read_identity(group: Group, options: Prepare) -> Iterator[Item]:
    """Render the views of a mesh with a material. Raises `Dropped` if the mesh cannot be read."""
    root, identity = group.data
    mesh: Mesh = identity.mesh
    try:
        views = render_identity(identity, load_parts(root / mesh.file), options.render)
    except ImprintError:  # OpenGL is missing: not this mesh's fault
        raise
    except Exception as error:  # trimesh's loaders raise errors of any class
        raise Dropped("broken mesh", root / mesh.file, repr(error)) from error
    name = f"{mesh.file} {identity.variant}"
    licence = options.licence if mesh.licence == "unknown" else mesh.licence
    for view in views:
        record = Record(
            name, name, view.number, f"{mesh.source} {mesh.file}", licence, (0, options.render.views), view.shadow
        )
        yield Item(record, view.picture, scene=view.scene)


SOURCES = {
    "objaverse": Source(objaverse_groups, read_identity, licensed=True, least=2, zipped=False),
    "meshes": Source(mesh_groups, read_identity, licensed=True, least=2, zipped=False),
}
