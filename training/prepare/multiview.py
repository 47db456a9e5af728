"""Several views of one object: MVImgNet's photos, and meshes (Objaverse's or any) that are rendered here."""

from __future__ import annotations

import argparse
import functools
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imprint.errors import ImprintError

from ..render import Mesh, load_parts, plan_identities, read_meshes, render_identity
from ..shards import Record
from .items import PICTURES, Dropped, Group, Item, Source, alpha_of, first_folder, open_mask, subfolders

VIEW_GAP = 8  # AnyDoor: the views of a pair are at least an eighth of the object's frames apart


def mvimgnet_groups(path: Path, options: argparse.Namespace) -> Iterator[Group]:
    """MVImgNet: CLASS/OBJECT/images/NNN.jpg. Masks are looked for in three places:

    OBJECT/masks/NNN.png or NNN.jpg.png (as in MVImgNet 2.0); mask/ or masks/CLASS/OBJECT/NNN.jpg.png or NNN.png beside the
    classes or beside their folder; images/NNN_anything.png, the object on nothing (as AnyDoor reads it). Of a mask
    without an alpha channel its brightness is taken.
    """
    for category in subfolders(path):
        if category.name in ("mask", "masks"):
            continue
        for thing in subfolders(category):
            if (thing / "images").is_dir():
                name = f"{category.name}/{thing.name}"
                yield Group(name, size=options.views, data=(thing, path))


def read_mvimgnet(group: Group, options: argparse.Namespace) -> Iterator[Item | Dropped]:
    """`--views` frames, spread evenly; a frame's number is its place among all of the object's."""
    thing, root = group.data
    files = sorted(entry for entry in (thing / "images").iterdir() if entry.is_file())
    frames = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg")]
    for file in files:
        if file.suffix.lower() not in PICTURES:
            yield Dropped("odd file", file)
    folders = [
        thing / "masks",
        *(base / name / group.name for base in (root, root.parent) for name in ("mask", "masks")),
    ]
    gap = (max(1, len(frames) // VIEW_GAP), max(1, len(frames)))
    count = min(options.views, len(frames))
    for place in (index * len(frames) // count for index in range(count)):
        picture = frames[place]
        record = Record(group.name, group.name, place, "MVImgNet", options.licence, gap)
        yield Item(record, picture, functools.partial(_view_mask, picture, folders))


def _view_mask(picture: Path, folders: list[Path]) -> np.ndarray:
    places = [folder / name for folder in folders for name in (f"{picture.name}.png", f"{picture.stem}.png")]
    places += sorted(picture.parent.glob(f"{picture.stem}_*.png"))
    return alpha_of(open_mask(next((place for place in places if place.is_file()), None), picture))


def mesh_groups(path: Path, options: argparse.Namespace) -> Iterator[Group]:
    """A folder of .glb files, at any depth, with index.json (`file`, `source`, `licence`, `procedural`) if there is one.

    An object is a mesh and a material: the mesh's own first, then drawn ones, until there are `--identities`.
    """
    return _identities(path, read_meshes(path), options)


def objaverse_groups(path: Path, options: argparse.Namespace) -> Iterator[Group]:
    """Objaverse 1.0 as its own downloader lays it out: [hf-objaverse-v1/]glbs/000-NNN/UID.glb and metadata/000-NNN.json.gz.

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
    """The licence by UID of a metadata file; none where it is absent."""
    if not path.is_file():
        return {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            table = json.load(file)
        names = {uid: entry["license"].upper() for uid, entry in table.items() if entry.get("license")}
    except (OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ImprintError(f"{path} is no metadata file of Objaverse ({error!r}); download it again") from error
    return {uid: "CC0-1.0" if name == "CC0" else f"CC-{name}-4.0" for uid, name in names.items()}


def _identities(root: Path, meshes: list[Mesh], options: argparse.Namespace) -> Iterator[Group]:
    if not meshes:
        raise ImprintError(f"{root} holds no .glb files; --input is the folder of the meshes")
    for identity in plan_identities(meshes, options.identities or len(meshes), options.seed):
        size = options.views + options.relit
        yield Group(f"{identity.index:07d}", size=size, data=(root, identity), key=identity.mesh.file)


def read_identity(group: Group, options: argparse.Namespace) -> Iterator[Item]:
    """The views of a mesh and material. Raises `Dropped` where the mesh cannot be read."""
    root, identity = group.data
    mesh: Mesh = identity.mesh
    try:
        views = render_identity(identity, load_parts(root / mesh.file), options)
    except ImprintError:  # no OpenGL: not this mesh's fault
        raise
    except Exception as error:  # trimesh's loaders let errors of any class through
        raise Dropped("broken mesh", root / mesh.file, repr(error)) from error
    name = f"{mesh.file} {identity.variant}"
    licence = options.licence if mesh.licence == "unknown" else mesh.licence
    for view in views:
        record = Record(name, name, view.number, f"{mesh.source} {mesh.file}", licence, (0, options.views), view.shadow)
        yield Item(record, view.picture, scene=view.scene)


SOURCES = {
    "mvimgnet": Source(mvimgnet_groups, read_mvimgnet, least=2),
    "objaverse": Source(objaverse_groups, read_identity, licensed=True, least=2),
    "meshes": Source(mesh_groups, read_identity, licensed=True, least=2),
}
