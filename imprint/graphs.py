"""A function of tensors as a CUDA graph: one call starts all of its kernels, which Python would start one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .errors import ImprintError

MOST = 4
"""Graphs that are kept, of as many shapes; they share their memory, since only one runs at a time."""
_WARM_UP = 2  # calls before one is recorded: libraries choose and set up their kernels in them


class Graphs:
    """Calls `function` by a graph for each shape of its tensors, recorded when a shape is first met.

    A graph holds what was no tensor as it was, and where the modules' tensors lay: `renew` has to be called after
    either may have changed otherwise than in place, as by moving a module or by loading a LoRA. What the function
    returns must be tensors, and it may wait for no device and draw no random numbers.
    """

    def __init__(self, function: Callable[..., Sequence[torch.Tensor]]):
        self.function = function
        self.kept: dict[tuple, _Graph] = {}
        self.pool: Any = None
        self.modules: list[torch.nn.Module] = []
        self.state: list[Any] = []

    def __call__(self, *arguments: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        """What the function gives for these; tensors of one's own, which no later call writes over.

        Raises `ImprintError` where it cannot be recorded.
        """
        given = [*arguments, *named.values()]
        tensors = [each for each in given if isinstance(each, torch.Tensor)]
        key = tuple(
            (each.shape, each.dtype, each.device) if isinstance(each, torch.Tensor) else each
            for each in (*given, *named)
        )
        if key not in self.kept:
            self._record(key, arguments, named, tensors)
        return self.kept[key](tensors)

    def renew(self) -> None:
        """Forget all graphs if the modules' tensors have moved, or a LoRA counts differently."""
        if self.kept and _state(self.modules) != self.state:
            self.kept.clear()

    def _record(self, key: tuple, arguments: tuple, named: dict[str, Any], tensors: list[torch.Tensor]) -> None:
        modules = [each for each in (*arguments, *named.values()) if isinstance(each, torch.nn.Module)]
        if self.modules != modules:
            self.kept.clear()
        if not self.kept:  # memory that no graph uses any more is given back with its pool
            self.pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode(False):  # or they could only be written to in it
            inputs = [each.clone() for each in tensors]
        own = iter(inputs)
        arguments = tuple(next(own) if isinstance(each, torch.Tensor) else each for each in arguments)
        named = {name: next(own) if isinstance(each, torch.Tensor) else each for name, each in named.items()}
        try:
            with torch.cuda.device_of(inputs[0]):
                made = _Graph(lambda: tuple(self.function(*arguments, **named)), inputs, self.pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ImprintError(
                f"a step of this model cannot be recorded as a CUDA graph ({reason}); do without compile, or give "
                "compile a mode of torch.compile"
            ) from error
        self.kept[key] = made
        self.modules, self.state = modules, _state(modules)  # now, when offloading has brought them to the device
        while len(self.kept) > MOST:
            del self.kept[next(iter(self.kept))]


class _Graph:
    """One recording, the tensors that it reads and those that it writes."""

    def __init__(self, work: Callable[[], tuple[torch.Tensor, ...]], inputs: list[torch.Tensor], pool: Any):
        self.inputs = inputs
        side, here = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                work()
        here.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.outputs = work()

    def __call__(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        for own, given in zip(self.inputs, tensors):
            own.copy_(given)
        self.graph.replay()
        return tuple(each.clone() for each in self.outputs)


def _state(modules: Sequence[torch.nn.Module]) -> list[Any]:
    """Where the modules' tensors lie, and how their LoRA layers, which are peft's, count."""
    found: list[Any] = []
    for module in modules:
        found += [(each.data_ptr(), each.dtype) for each in (*module.parameters(), *module.buffers())]
        for layer in module.modules() if getattr(module, "peft_config", None) else ():
            if hasattr(layer, "active_adapters") and hasattr(layer, "scaling"):
                said = dict(layer.scaling), tuple(layer.active_adapters), tuple(layer.merged_adapters)
                found.append((*said, layer.disable_adapters))
    return found
