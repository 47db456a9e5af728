"""Imprint: Load Checkpoint."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..imprint.checkpoint import SHIPPED
from ..imprint.lightnet import SHIPPED_LIGHT
from ..imprint.lora import FEW_STEPS
from . import models, sockets

FOLDER = "imprint"
"""The folder within ComfyUI's models folder."""


def file_of(name: str) -> str:
    """The path of a file in `models/imprint`, by its name in the widget."""
    return folder_paths.get_full_path_or_raise(FOLDER, name)


def state_of(name: str) -> tuple[str, int, int]:
    """A value for a node's fingerprint that changes with the file of that name."""
    path = file_of(name)
    state = os.stat(path)
    return path, state.st_mtime_ns, state.st_size


def listed_files(other: Path) -> list[str]:
    """The files in `models/imprint`, without the shipped files of other kinds."""
    others = {other.name, str(FEW_STEPS.relative_to(SHIPPED.parent))}
    return [name for name in folder_paths.get_filename_list(FOLDER) if name not in others]


def light_model_input() -> io.Combo.Input:
    """The widget for the light network's file."""
    return io.Combo.Input(
        "light_model",
        options=listed_files(SHIPPED),
        default=SHIPPED_LIGHT.name,
        advanced=True,
        tooltip="The light network's file, in ComfyUI's folder models/imprint. imprint-light.safetensors "
        "(default) comes with this pack.",
    )


class ImprintLoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintLoadCheckpoint",
            display_name="Imprint: Load Checkpoint",
            category="imprint/loaders",
            description="Loads all parts of an Imprint model from one file of models/imprint: a checkpoint of ours, "
            "or ObjectStitch's, Paint-by-Example's, ControlCom's or AnyDoor's as its authors released it.",
            search_aliases=[
                "load imprint checkpoint",
                "imprint",
                "object insertion",
                "object compositing",
                "load imprint model",
            ],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=listed_files(SHIPPED_LIGHT),
                    tooltip="The model's file, in ComfyUI's folder models/imprint. imprint-tiny.safetensors comes with "
                    "this pack: 256 px, for any computer. ObjectStitch, Paint-by-Example, ControlCom and AnyDoor "
                    "(512 px) are downloads: see this node's help page. A file that was just added appears when you "
                    "press R.",
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The UNet, for Draw Object. LoRA and model patches go between."
                ),
                io.ClipVision.Output(
                    display_name="clip_vision",
                    tooltip="The image encoder, DINOv2, DINOv3 or (in ObjectStitch, Paint-by-Example and ControlCom) "
                    "CLIP. For Encode Object.",
                ),
                sockets.Adapter.Output(
                    display_name="adapter",
                    tooltip="The content adapter, trained with this encoder and this UNet. For Condition on Object.",
                ),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The autoencoder, for Draw Object. Empty if the file holds none: then "
                    "connect Load VAE with a VAE of SD 1.5, or of SDXL for a model of its sizes.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str) -> tuple[str, int, int]:
        return state_of(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        model, clip_vision, adapter, vae = models.load(file_of(checkpoint))
        if vae is None:
            logging.warning("Imprint: %s holds no autoencoder; connect Load VAE where a VAE is needed", checkpoint)
        return io.NodeOutput(model, clip_vision, adapter, vae)
