"""The model as a diffusers pipeline: modules, loading, saving, LoRA and offloading."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.loaders import StableDiffusionLoraLoaderMixin

from .adapter import ContentAdapter
from .checkpoint import ALL_PARTS, SHIPPED, Checkpoint, save_checkpoint
from .config import ImprintConfig
from .encoder import IDEncoder
from .errors import ImprintError
from .graphs import Graphs
from .lightnet import LightNet, load_light
from .model import load_model, module_tensors
from .noise import make_scheduler
from .unet import evaluated

if TYPE_CHECKING:
    from typing_extensions import Self


class ModelPipeline(StableDiffusionLoraLoaderMixin, DiffusionPipeline):
    """The model as a diffusers pipeline: modules, loading, saving, LoRA and offloading."""

    model_cpu_offload_seq = "encoder->adapter->unet->vae->light"
    _optional_components: ClassVar[list[str]] = ["light", "control"]
    text_encoder = None  # required by the LoRA loader
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]
    _compiled: Callable[..., tuple[torch.Tensor, ...]] | None = None
    """`evaluated`, recorded or compiled."""

    def __init__(
        self,
        vae: torch.nn.Module,
        encoder: IDEncoder,
        adapter: ContentAdapter,
        unet: torch.nn.Module,
        scheduler: SchedulerMixin,
        model_config: ImprintConfig,
        light: LightNet | None = None,
        control: torch.nn.Module | None = None,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            encoder=encoder,
            adapter=adapter,
            unet=unet,
            scheduler=scheduler,
            model_config=model_config,
            light=light,
            control=control,
        )

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike = SHIPPED,
        torch_dtype: torch.dtype = torch.float32,
        vae: torch.nn.Module | None = None,
        light: LightNet | None = None,
    ) -> Self:
        """Load a checkpoint, by default the one that comes with the package.

        vae, errors: as in `load_model`. light: by default the network that comes with the package.
        """
        config, modules = load_model(path, torch_dtype, vae)
        light = light or load_light().to(torch_dtype)
        return cls(**modules, scheduler=make_scheduler(config.noise), model_config=config, light=light)

    def save_checkpoint(self, path: str | os.PathLike) -> None:
        """Write all parts in their current precision; see `imprint.checkpoint`.

        Raises `ImprintError` if the file cannot be written, and while a LoRA is loaded.
        """
        if getattr(self.unet, "peft_config", None):
            raise ImprintError(
                "a LoRA is loaded, whose tensors no checkpoint holds; call fuse_lora() to keep its effect, and then "
                "unload_lora_weights()"
            )
        modules = {part: getattr(self, part) for part in ALL_PARTS if getattr(self, part) is not None}
        save_checkpoint(path, Checkpoint(self.model_config, module_tensors(modules)))

    def compile(self, mode: str | None = None, backend: str = "inductor") -> None:
        """Record or compile a sampling step at its next use, and anew for other resolutions or numbers of pictures.

        mode: "graph", the default on a GPU, records its kernels as a CUDA graph, which takes as long as a few steps and
        draws the same, in half precision except for rounding, since the UNet is converted to channels_last. The other
        modes are torch.compile's ("reduce-overhead" is meant for a GPU, "default" is the default elsewhere): they fuse
        kernels, which takes a minute, or seconds with PyTorch's on-disk cache, and pictures differ by rounding.
        backend: of torch.compile. Call again if the UNet's computation changes (attention processors, FreeU); LoRA
        files are noticed. Raises `ImprintError` for a graph without a GPU; so does the next drawing if PyTorch lacks a
        compiler.
        """
        device = self._execution_device.type
        if mode is None and backend == "inductor" and device == "cuda":
            mode = "graph"
        if mode == "graph":
            if device != "cuda":
                raise ImprintError(f"CUDA graphs need a CUDA device, and this pipeline is on {device}; leave mode out")
            # cuDNN computes half precision in this order, and would otherwise reorder twice.
            if self.unet.dtype != torch.float32:
                torch.nn.Module.to(self.unet, memory_format=torch.channels_last)
            self._compiled = Graphs(evaluated)
            return
        from torch._dynamo.exc import BackendCompilerFailed  # takes half a second, and is needed only for compiling

        try:
            step = torch.compile(evaluated, mode=mode, backend=backend, dynamic=False)
        except RuntimeError as error:
            raise ImprintError(
                f"PyTorch cannot compile the model in the mode {mode!r} ({error}); give one of its modes, or none"
            ) from error

        def compiled(*arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
            torch.compiler.cudagraph_mark_step_begin()
            # Copies, since a graph's next replay overwrites its outputs, and some schedulers keep them.
            try:
                return tuple(each.clone() for each in step(*arguments, **named))
            except BackendCompilerFailed as error:
                reason = str(error.inner_exception).partition("\n")[0] or type(error.inner_exception).__name__
                raise ImprintError(
                    f"PyTorch cannot compile the model here ({reason}); install what it asks for, or do without compile"
                ) from error

        self._compiled = compiled

    def _step(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        """`evaluated` for the steps of one drawing, compiled if `compile` was called."""
        if isinstance(self._compiled, Graphs):
            self._compiled.renew()
        return self._compiled or evaluated

    @classmethod
    def load_lora_into_text_encoder(cls, *_args: Any, **_kwargs: Any) -> None:
        """Nothing to load: the model has no text encoder."""

    def save_pretrained(self, *_args: Any, **_kwargs: Any) -> None:
        """Not supported: an Imprint model is a file, not a folder."""
        raise ImprintError("an Imprint model is saved as one file; call save_checkpoint('name.safetensors') instead")
