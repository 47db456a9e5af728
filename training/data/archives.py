"""Data sets in their zips: one tree of folders over all of them, read without unpacking anything.

`Zipped` does what the readers of data sets ask of a `pathlib.Path`. An encrypted zip is refused. What travels to
another process is the folder or file alone, with where its bytes lie.
"""

from __future__ import annotations

import fnmatch
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeAlias

from imprint.errors import ImprintError

Entry: TypeAlias = "tuple[str, int, int, int, int]"
"""A file: its zip, where its header begins there, bytes packed, method, and checksum."""
Node: TypeAlias = "dict[str, Node | Entry]"
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ENCRYPTED = 1  # of a member's flags
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, and lengths of the name and of what follows it


def open_folder(path: Path) -> Path | Zipped:
    """A data set's folder: itself; or what is in all its zips, of a zip, and of a folder that holds zips, or folders of
    zips, and neither pictures nor other folders.

    Raises `ImprintError` where there is no such folder, and for a zip that cannot be read.
    """
    if path.is_file() and path.suffix.lower() == ".zip":
        return _tree(path, [path])
    if not path.is_dir():
        raise ImprintError(f"{path}: no such folder or .zip; --input is the data set's own folder")
    entries = sorted(path.iterdir())
    folders = [entry for entry in entries if entry.is_dir()]
    zips = [entry for entry in entries if entry.suffix.lower() == ".zip"]
    zips += [file for folder in folders for file in sorted(folder.glob("*.zip"))]
    if not zips:
        return path
    holding, within = {file.parent for file in zips}, [entry for folder in folders for entry in folder.iterdir()]
    for entry in (*entries, *within):
        if entry.suffix.lower() in PICTURES or (entry.is_dir() and entry not in holding):
            print(
                f"note: {len(zips)} zips in {path} are not read, since {entry} lies beside them; to read them, put "
                "them into a folder of their own",
                file=sys.stderr,
            )
            return path
    return _tree(path, zips)


def _tree(place: Path, zips: Iterable[Path]) -> Zipped:
    root: Node = {}
    for archive in zips:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
        except (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise ImprintError(f"{archive} cannot be read as a zip ({error}); download it again") from error
        for member in members:
            if not member.is_dir():
                _add(root, str(archive), member)
    return Zipped(str(place), root, "")


def _add(root: Node, archive: str, member: zipfile.ZipInfo) -> None:
    if member.flag_bits & ENCRYPTED:
        raise ImprintError(f"{archive} is encrypted; unpack it with its password, and give the folder")
    if member.compress_type not in (STORED, DEFLATED):
        raise ImprintError(f"{archive} compresses {member.filename} by a method that is not supported; unpack it")
    parts = [part for part in member.filename.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImprintError(f"{archive} names {member.filename}, which is outside its folder; it is not a data set")
    if not parts or "__MACOSX" in parts:
        return
    node, name = root, parts.pop()
    for folder in parts:
        node = node.setdefault(folder, {})
        if not isinstance(node, dict):
            raise ImprintError(
                f"{archive} has {member.filename}, where another zip has a file {folder}; give them separately"
            )
    before = node.get(name)
    if isinstance(before, dict):
        raise ImprintError(f"{archive} has the file {member.filename}, a folder of another zip; give them separately")
    differs = before is not None and before[0] != archive and before[-1] != member.CRC
    if differs and PurePosixPath(name).suffix.lower() in PICTURES:
        raise ImprintError(
            f"{archive} and {before[0]} hold different pictures named {member.filename}; give them separately"
        )
    node[name] = archive, member.header_offset, member.compress_size, member.compress_type, member.CRC


@dataclass(frozen=True)
class Zipped:
    """A file or folder in zips, with a part of `pathlib.Path`'s methods."""

    place: str
    """What holds the zips."""
    root: Node = field(compare=False, repr=False)
    inside: str
    """Its name below the root, with slashes; "" of the root itself."""

    def __reduce__(self) -> tuple:
        node = self._node()
        for part in reversed(self.parts):
            node = {part: node} if node is not None else {}
        return Zipped, (self.place, node, self.inside)

    def __str__(self) -> str:
        node = self._node()
        place = node[0] if isinstance(node, tuple) else self.place
        return f"{place}/{self.inside}" if self.inside else place

    def __lt__(self, other: Zipped) -> bool:
        return self.parts < other.parts

    def __truediv__(self, name: str | PurePath) -> Zipped:
        return self._at(PurePosixPath(self.inside) / name)

    @property
    def parts(self) -> tuple[str, ...]:
        return PurePosixPath(self.inside).parts

    @property
    def name(self) -> str:
        return PurePosixPath(self.inside).name or Path(self.place).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Zipped:
        return self._at(PurePosixPath(self.inside).parent)

    @property
    def parents(self) -> list[Zipped]:
        return [self._at(parent) for parent in PurePosixPath(self.inside).parents]

    def with_name(self, name: str) -> Zipped:
        return self._at(PurePosixPath(self.inside).with_name(name))

    def with_suffix(self, suffix: str) -> Zipped:
        return self._at(PurePosixPath(self.inside).with_suffix(suffix))

    def relative_to(self, other: Zipped) -> PurePosixPath:
        return PurePosixPath(self.inside).relative_to(other.inside)

    def resolve(self) -> Zipped:
        return self

    def is_dir(self) -> bool:
        return isinstance(self._node(), dict)

    def is_file(self) -> bool:
        return isinstance(self._node(), tuple)

    def iterdir(self) -> Iterator[Zipped]:
        """Raises NotADirectoryError for a file, and for nothing."""
        node = self._node()
        if not isinstance(node, dict):
            raise NotADirectoryError(str(self))
        return (self / name for name in node)

    def glob(self, pattern: str) -> Iterator[Zipped]:
        first, _, rest = pattern.partition("/")
        for child in self.iterdir() if self.is_dir() else ():
            if fnmatch.fnmatchcase(child.name, first):
                yield from child.glob(rest) if rest else (child,)

    def rglob(self, pattern: str) -> Iterator[Zipped]:
        for child in self.iterdir() if self.is_dir() else ():
            if fnmatch.fnmatchcase(child.name, pattern):
                yield child
            yield from child.rglob(pattern)

    def read_bytes(self) -> bytes:
        """Raises OSError for a file that is absent, cut off or damaged."""
        node = self._node()
        if not isinstance(node, tuple):
            raise FileNotFoundError(str(self))
        archive, offset, packed, method, check = node
        with open(archive, "rb") as file:
            file.seek(offset)
            header = file.read(LOCAL_HEADER.size)
            signature, *lengths = LOCAL_HEADER.unpack(header) if len(header) == LOCAL_HEADER.size else (b"", 0, 0)
            file.seek(sum(lengths), 1)
            data = file.read(packed)
        try:
            data = zlib.decompress(data, -zlib.MAX_WBITS) if method == DEFLATED else data
        except zlib.error as error:
            raise OSError(f"{self} is damaged ({error})") from error
        if signature != b"PK\3\4" or zlib.crc32(data) != check:
            raise OSError(f"{self} is damaged: its checksum does not match")
        return data

    def read_text(self, encoding: str) -> str:
        return self.read_bytes().decode(encoding)

    def _at(self, inside: PurePosixPath) -> Zipped:
        return Zipped(self.place, self.root, "" if str(inside) == "." else str(inside))

    def _node(self) -> Node | Entry | None:
        node: Node | Entry | None = self.root
        for part in self.parts:
            node = node.get(part) if isinstance(node, dict) else None
        return node


Place: TypeAlias = Path | Zipped
"""A file or folder of a data set."""
