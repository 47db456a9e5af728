"""The checkpoint: one `.safetensors` file with everything that a composite needs.

Tensors are named `encoder.*` (the hub's names of DINOv2, DINOv3 and CLIP), `adapter.*`, `null_embedding`, `unet.*`,
`vae.*` and `control.*` (diffusers' names; the autoencoder is optional, and few models have a ControlNet). The metadata
holds the format's version, the configuration as JSON, and a SHA-256 of configuration and tensors, so that a damaged
file fails with a clear error. Nothing in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from .config import ImprintConfig
from .errors import ImprintError
from .files import replacing, require_file, require_no_lfs_pointer, save_or_keep

if TYPE_CHECKING:
    from safetensors import safe_open

FORMAT_VERSION = 1
PARTS = ("encoder", "adapter", "unet", "vae")
REQUIRED_PARTS = PARTS[:3]
ALL_PARTS = (*PARTS, "control")
"""Including the one that `ImprintConfig.background` may require."""
SHIPPED = Path(__file__).parent / "assets" / "imprint-tiny.safetensors"
"""The checkpoint that comes with the package."""

_NULL = "null_embedding"  # separate in the file, part of the adapter in memory
LORA_PREFIX = "lora_unet_"
"""With which kohya's names of a LoRA's tensors begin."""


@dataclass
class Checkpoint:
    """A configuration, and the tensors of each part by the names of `ALL_PARTS`."""

    config: ImprintConfig
    parts: dict[str, dict[str, torch.Tensor]]
    path: Path = field(default=Path("checkpoint"))
    names: Literal["diffusers", "ldm"] = "diffusers"
    """The naming of `unet`, `vae` and `control`: diffusers' in our files, latent diffusion's in third-party ones."""

    def check(
        self,
        part: str,
        expected: Mapping[str, torch.Size | tuple[int, ...]],
        cure: str = "the file is not whole or was made by other code; export or download it again",
    ) -> dict[str, torch.Tensor]:
        """The part's tensors. Raises `ImprintError` unless their names and shapes are exactly the expected ones."""
        tensors = self.parts.get(part, {})
        where = f"{self.path}: part '{part}'"
        missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
        if missing or surplus:
            first = f"'{missing[0]}' is missing" if missing else f"'{surplus[0]}' is not of the model"
            raise ImprintError(
                f"{where} has {len(tensors)} tensors where its configuration asks for {len(expected)} "
                f"({len(missing)} missing, {len(surplus)} surplus: {first}); {cure}"
            )
        for name, shape in expected.items():
            if tuple(tensors[name].shape) != tuple(shape):
                raise ImprintError(
                    f"{where} has '{name}' of shape {tuple(tensors[name].shape)} where its configuration asks for "
                    f"{tuple(shape)}; {cure}"
                )
        return tensors


def save_checkpoint(
    path: str | os.PathLike,
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = None,
    track: Callable[[list], Iterable] = iter,
) -> None:
    """Write to a temporary name in the same folder, then rename: the file is complete or absent.

    dtype: of the tensors in the file, by default their own. track: wraps the list of tensors as they are read, cast and
    hashed, for a progress bar. Raises `ImprintError` if it cannot be written.
    """
    sources = {
        _NULL if (part, name) == ("adapter", _NULL) else f"{part}.{name}": tensor.detach()
        for part, named in checkpoint.parts.items()
        for name, tensor in named.items()
    }
    tensors = {}

    def cast() -> Iterator[tuple[str, torch.Tensor]]:
        for key in track(sorted(sources)):
            source = sources[key]
            tensors[key] = source.to("cpu", dtype or source.dtype, copy=True).contiguous()
            yield key, tensors[key]

    config = checkpoint.config.to_json()
    metadata = {
        "format": "imprint",
        "format_version": str(FORMAT_VERSION),
        "config": config,
        "sha256": digest(config, cast()),
    }
    write_tensors(path, tensors, metadata)


def write_tensors(path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, complete or not at all. Raises `ImprintError` if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise ImprintError(f"{path} cannot be written ({error}); make room, or choose another folder") from error


def save_computed(checkpoint: Checkpoint, path: Path) -> None:
    """`save_checkpoint` for weights that took time to make: see `files.save_or_keep`."""
    save_or_keep(lambda path: save_checkpoint(path, checkpoint), path, ".safetensors", "the checkpoint")


def read_config(path: str | os.PathLike) -> ImprintConfig:
    """The configuration alone, without reading the tensors. Raises `ImprintError` as `load_checkpoint` does."""
    with open_safetensors(Path(path)) as file:
        return _config(Path(path), file)


def load_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises `ImprintError`, which names the file, the problem and the remedy, for a file that is missing, a
    pickle, truncated, damaged, not an Imprint checkpoint, of a newer format version, or whose parts do not fit
    together. Whoever builds the modules compares names and shapes of the tensors with them: see
    `Checkpoint.check`.
    """
    path = Path(path)
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        config = _config(path, file)
        tensors = tensors_in(file, path)
    check_digest(path, metadata, tensors)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = ("adapter", "", _NULL) if key == _NULL else key.partition(".")
        if part not in ALL_PARTS:
            raise ImprintError(
                f"{path}: tensor '{key}' is of no known part ({', '.join(ALL_PARTS)}); it was made by other code"
            )
        parts.setdefault(part, {})[name] = tensor
    for part in REQUIRED_PARTS:
        if part not in parts:
            raise ImprintError(
                f"{path}: part '{part}' is missing; export the checkpoint again with all of {REQUIRED_PARTS}"
            )
    if "control" in parts and config.background != "control":
        raise ImprintError(
            f"{path}: part 'control' is not of the model, whose configuration has background '{config.background}'; it "
            "was made by other code"
        )
    return Checkpoint(config, parts, path)


def open_safetensors(path: Path, wanted: str = "an Imprint checkpoint") -> safe_open:
    """The open file, as by safetensors' `safe_open`.

    wanted: what the file should be, for messages. Raises `ImprintError` for anything that is not a whole safetensors
    file.
    """
    from safetensors import safe_open

    require_file(path, f"{wanted} (.safetensors)")
    require_no_lfs_pointer(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ImprintError(
            f"{path} cannot be opened ({error.strerror}); make it readable or choose another file"
        ) from error
    # Eight bytes of the header's length, then JSON. A length may start with 0x80, as a pickle does.
    if start[8:] != b"{" and is_pickle(start):
        raise ImprintError(
            f"{path} is a pickle, which could run any code when opened; give a .safetensors file instead, or make one "
            "of a third-party model's released weights with `imprint convert`"
        )
    if start[8:] != b"{":
        raise ImprintError(
            f"{path} is not a safetensors file (or only its first bytes); give {wanted}, or download or export it again"
        )
    try:
        return safe_open(str(path), framework="pt")
    except Exception as error:  # the Rust library's own classes differ between versions
        raise ImprintError(f"{path} is truncated or damaged ({error}); copy or download it again") from error


def is_pickle(start: bytes) -> bool:
    """Whether a file that starts with these bytes, four or more, is a pickle, or a zip of one, as torch writes."""
    return start.startswith((b"PK\x03\x04", b"\x80"))


def tensors_in(file: safe_open, path: Path) -> dict[str, torch.Tensor]:
    """All tensors of an open file by name; path: the file's. Raises `ImprintError` if one cannot be read."""
    try:
        return {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # as in `open_safetensors`; also dtypes that this torch lacks
        raise ImprintError(f"{path} holds a tensor that cannot be read ({error}); copy or download it again") from error


def _config(path: Path, file: safe_open) -> ImprintConfig:
    metadata = file.metadata() or {}
    kind = metadata.get("format")
    if kind != "imprint":
        if any(name.startswith(LORA_PREFIX) for name in file.keys()):
            raise ImprintError(
                f"{path} is a LoRA; give the checkpoint that it was trained from, to which --lora, ComfyUI's LoRA "
                "loader or imprint.lora.merge_lora adds it"
            )
        found = f" of format '{kind}'" if kind else ""
        ours = (kind or "").startswith("imprint")
        other = "" if ours else ", or make one of a third-party model's released weights with `imprint convert`"
        raise ImprintError(f"{path} is a safetensors file{found} but not an Imprint checkpoint; give one{other}")
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise ImprintError(
            f"{path} has format version {version!r}, and this code reads version {FORMAT_VERSION}; "
            "update Imprint, or export the checkpoint again"
        )
    if "config" not in metadata:
        raise ImprintError(f"{path} has no configuration in its metadata; export the checkpoint again")
    try:
        return ImprintConfig.from_json(metadata["config"])
    except ImprintError as error:
        raise ImprintError(f"{path}: {error}") from error


def check_digest(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `ImprintError` unless a file's content matches its checksum."""
    if digest(metadata["config"], sorted(tensors.items())) != metadata.get("sha256"):
        raise ImprintError(
            f"{path}: its content does not match its checksum; the file is damaged, copy or download it again"
        )


def digest(config: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of the configuration and the tensors in the order of their names."""
    total = hashlib.sha256(config.encode())
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
