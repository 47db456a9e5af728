"""The model as diffusers knows it: its modules, loading, saving, LoRA and offloading."""

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


class Parts(StableDiffusionLoraLoaderMixin, DiffusionPipeline):
    """The model as diffusers knows it: its modules, loading, saving, LoRA and offloading."""

    model_cpu_offload_seq = "encoder->adapter->unet->vae->light"
    _optional_components: ClassVar[list[str]] = ["light", "control"]
    text_encoder = None  # the LoRA loader asks for it
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
    ) -> Self:
        """Load a checkpoint; without a path, the one that comes with the package. vae, errors: as in `load_model`."""
        config, modules = load_model(path, torch_dtype, vae)
        light = load_light().to(torch_dtype)
        return cls(**modules, scheduler=make_scheduler(config.noise), model_config=config, light=light)

    def save_checkpoint(self, path: str | os.PathLike) -> None:
        """Write all parts in their present precision; see `imprint.checkpoint`."""
        modules = {part: getattr(self, part) for part in ALL_PARTS if getattr(self, part) is not None}
        save_checkpoint(path, Checkpoint(self.model_config, module_tensors(modules)))

    def compile(self, mode: str | None = None, backend: str = "inductor") -> None:
        """Make a sampling step one, at its next use; again for another resolution, number of results or of views.

        mode: "graph", the default on a GPU, records its kernels as a CUDA graph, in the time of a few steps, and draws
        the same, but in half precision for rounding: the UNet is then brought to channels_last. The modes of
        torch.compile, of which "reduce-overhead" is made for a GPU and "default" is the default elsewhere, make fewer
        kernels of them, which takes a minute, or seconds where PyTorch's cache on the disk knows them, and pictures
        then differ by rounding. backend: of torch.compile. To be called again once the UNet computes otherwise
        (attention processors, FreeU); LoRA files are noticed. Raises `ImprintError` for a graph without a GPU; so does
        the next drawing where PyTorch lacks what it compiles with.
        """
        device = self._execution_device.type
        if mode is None and backend == "inductor" and device == "cuda":
            mode = "graph"
        if mode == "graph":
            if device != "cuda":
                raise ImprintError(f"CUDA graphs need a CUDA device, and this pipeline is on {device}; leave mode out")
            if self.unet.dtype != torch.float32:  # cuDNN computes half precision in this order, or reorders twice
                torch.nn.Module.to(self.unet, memory_format=torch.channels_last)
            self._compiled = Graphs(evaluated)
            return
        from torch._dynamo.exc import BackendCompilerFailed  # half a second, which only compiling needs

        try:
            step = torch.compile(evaluated, mode=mode, backend=backend, dynamic=False)
        except RuntimeError as error:
            raise ImprintError(
                f"PyTorch cannot compile the model in the mode {mode!r} ({error}); give one of its modes, or none"
            ) from error

        def compiled(*arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
            torch.compiler.cudagraph_mark_step_begin()
            # Copies, since the next replay of a graph writes over what this one gives, and some schedulers keep it.
            try:
                return tuple(each.clone() for each in step(*arguments, **named))
            except BackendCompilerFailed as error:
                reason = str(error.inner_exception).partition("\n")[0] or type(error.inner_exception).__name__
                raise ImprintError(
                    f"PyTorch cannot compile the model here ({reason}); install what it asks for, or do without compile"
                ) from error

        self._compiled = compiled

    def _step(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        """`evaluated` for the steps of one drawing, as `compile` has made it."""
        if isinstance(self._compiled, Graphs):
            self._compiled.renew()
        return self._compiled or evaluated

    @classmethod
    def load_lora_into_text_encoder(cls, *_args: Any, **_kwargs: Any) -> None:
        """There is none."""

    def save_pretrained(self, *_args: Any, **_kwargs: Any) -> None:
        """An Imprint model is one file, not a folder."""
        raise ImprintError("an Imprint model is saved as one file; call save_checkpoint('name.safetensors') instead")
