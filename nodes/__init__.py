"""The nodes: thin schemas over `imprint`, which does the arithmetic and knows nothing of ComfyUI."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from ..imprint.checkpoint import SHIPPED
from ..imprint.files import replacing
from ..imprint.lora import FEW_STEPS
from .conditioning import ImprintContentAdapter, ImprintIDEncoder
from .hint import ImprintShowHint
from .image import ImprintBackgroundBlend, ImprintRestoreDetail
from .job import ImprintJob
from .light import ImprintCastShadow, ImprintRelight
from .loaders import FOLDER, ImprintLoadCheckpoint
from .mask import ImprintMaskCoarsener
from .place import ImprintPlaceObject
from .sampling import ImprintCompositeSampler
from .templates import list_templates_in_order

SAMPLES = SHIPPED.parent / "samples"


class ImprintExtension(ComfyExtension):
    """The pack's twelve nodes."""

    async def on_load(self) -> None:
        copy_samples(Path(folder_paths.get_input_directory()))
        list_templates_in_order()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            ImprintPlaceObject,
            ImprintRelight,
            ImprintJob,
            ImprintLoadCheckpoint,
            ImprintIDEncoder,
            ImprintContentAdapter,
            ImprintMaskCoarsener,
            ImprintCompositeSampler,
            ImprintShowHint,
            ImprintRestoreDetail,
            ImprintCastShadow,
            ImprintBackgroundBlend,
        ]


def register_model_folders() -> None:
    """`models/imprint`, then the folder of the shipped checkpoint, and after `models/loras` the one of its LoRA; a
    user's file of the same name wins.
    """
    folder_paths.add_model_folder_path("loras", str(FEW_STEPS.parent))
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    folder_paths.add_model_folder_path(FOLDER, str(SHIPPED.parent))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    if not extensions:  # an empty set would list every file; pickles are listed to be refused with a reason
        folder_paths.folder_names_and_paths[FOLDER] = (paths, set(folder_paths.supported_pt_extensions))


def copy_samples(folder: Path) -> None:
    """Copy the sample workflows' pictures into ComfyUI's input folder, unless they exist there."""
    for sample in sorted(SAMPLES.iterdir()):
        target = folder / f"imprint_{sample.name}"
        try:
            if not os.path.lexists(target):
                with replacing(target) as temporary:
                    shutil.copyfile(sample, temporary)
        except OSError as error:
            logging.warning(
                "Imprint: the sample picture %s could not be copied (%s); the nodes work without it", target, error
            )
