"""Job: runs a line of a jobs file, as read by `imprint batch`, in ComfyUI."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..imprint.errors import ImprintError
from ..imprint.images import as_picture, picture_profile
from ..imprint.job_keys import placing_arguments
from ..imprint.jobs import Job, JobObject
from ..imprint.light import relight
from ..imprint.lightnet import SHIPPED_LIGHT
from ..imprint.mask_reading import as_mask
from ..imprint.place import place_object
from ..imprint.views import ObjectViews
from . import models
from .loaders import file_of, light_model_input
from .tensors import to_bhwc

_EXAMPLE = (
    '{"background": "imprint_background.png",\n'
    ' "objects": [{"object": "imprint_object.png", "at": [150, 330], "height": 180},\n'
    '             {"object": "imprint_duck.webp", "at": [260, 370], "height": 110}]}'
)


class ImprintJob(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintJob",
            display_name="Imprint: Job",
            category="imprint/image",
            description="Makes the picture of a job in JSON, one line of the file that the command imprint batch "
            "takes: objects of the input folder, put into a background and lit.",
            search_aliases=["job", "json", "batch", "jobs file", "script", "imprint"],
            inputs=[
                io.String.Input(
                    "job",
                    default=_EXAMPLE,
                    multiline=True,
                    tooltip="JSON with background, object or objects (from back to front), and for each object at (x,y "
                    "where it stands) and height, or align (such as right,bottom) and inset, or mask (a box), or "
                    "placed; optionally object_mask, rotate, flip, light, shadow, softness, light_from. Files are read "
                    "from ComfyUI's input folder; out is not read here: connect Save Image.",
                ),
                light_model_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The finished picture. For Save Image.")],
        )

    @classmethod
    def fingerprint_inputs(cls, job: str, light_model: str) -> tuple:
        network = Path(file_of(light_model))
        try:
            files = [*_read(job).files, network]
        except ImprintError:  # reported when it runs
            files = [network]
        # ComfyUI converts it to JSON, which has no paths.
        return job, *((str(path), path.stat().st_mtime_ns) for path in files if path.is_file())

    @classmethod
    def execute(cls, job: str, light_model: str = SHIPPED_LIGHT.name) -> io.NodeOutput:
        read = _read(job)
        net = models.Light(file_of(light_model)).loaded()
        pictures = read.read()
        background = pictures[0]["background"]
        frame = as_picture(background, picture_profile(background))
        for number, (part, own) in enumerate(zip(read.objects, pictures), 1):
            try:
                _put(frame, part, own, net)
            except ImprintError as error:
                raise ImprintError(f"object {number} of {len(pictures)}: {error}") from error
        return io.NodeOutput(to_bhwc(frame))


def _put(frame: torch.Tensor, part: JobObject, pictures: dict, net: torch.nn.Module) -> None:
    """Write one object of a job, lit, into the frame (1, 3, H, W)."""
    where = placing_arguments(part.placing, pictures)
    strengths = {name: where.pop(name) for name in ("light", "shadow", "softness", "light_from") if name in where}
    views = ObjectViews.of(pictures["object_image"], pictures["object_mask"], picture_profile(pictures["background"]))
    hole = as_mask(pictures["mask"]) if "mask" in pictures else None
    if part.blend_mask or part.is_drawn(hole):
        raise ImprintError(
            "it would be drawn by the model (an outline, fit, change or a blend mask), but this node only places "
            "objects: give a box, at, align or placed, or use Draw Object or the command imprint batch"
        )
    put = place_object(views, tuple(frame.shape[2:]), None if hole is None else hole[0], **where)
    lit = relight(net, frame, put, **strengths)
    frame[(..., *lit.area)] = lit.composite()


def _read(job: str) -> Job:
    """Raises `ImprintError` for a job that cannot be read, and for files outside ComfyUI's input folder."""
    folder = Path(folder_paths.get_input_directory())
    out = Path(folder_paths.get_temp_directory()) / "imprint_job.png"
    read = Job.from_json(job.encode(errors="surrogatepass"), folder, 0, out=out)
    for path in read.files:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ImprintError(f"{path} lies outside ComfyUI's input folder; put it there and give its name")
    return read
