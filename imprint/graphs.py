"""A function of tensors as a CUDA graph: one call launches all of its kernels, instead of Python one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .errors import ImprintError

MOST = 4
"""The number of graphs kept, one per shape; they share memory, since only one runs at a time."""
_WARM_UP = 2  # calls before recording, in which libraries choose and set up their kernels


class Graphs:
    """Calls `function` through a graph for each combination of tensor shapes, recorded at its first use.

    A graph fixes all arguments that are not tensors, and the addresses of the modules' tensors: call `renew` if these
    may have changed other than in place, such as by moving a module or loading a LoRA. The function must return
    tensors, and must neither synchronise nor draw random numbers.
    """

    def __init__(self, function: Callable[..., Sequence[torch.Tensor]]):
        self.function = function
        self.kept: dict[tuple, _Graph] = {}
        self.pool: Any = None
        self.modules: list[torch.nn.Module] = []
        self.state: list[Any] = []

    def __call__(self, *arguments: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        """The function's results, as copies that no later call overwrites.

        Raises `ImprintError` if the function cannot be recorded.
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
        """Discard all graphs if the modules' tensors have moved, or a LoRA's weight has changed."""
        if self.kept and _state(self.modules) != self.state:
            self.kept.clear()

    def _record(self, key: tuple, arguments: tuple, named: dict[str, Any], tensors: list[torch.Tensor]) -> None:
        modules = [each for each in (*arguments, *named.values()) if isinstance(each, torch.nn.Module)]
        if self.modules != modules:
            self.kept.clear()
        if not self.kept:  # memory of discarded graphs is released with its pool
            self.pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode(False):  # otherwise they could only be written to in that mode
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
        self.modules, self.state = modules, _state(modules)  # now that offloading has brought them to the device
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
    """The addresses of the modules' tensors, and the weights of their (peft) LoRA layers."""
    found: list[Any] = []
    for module in modules:
        found += [(each.data_ptr(), each.dtype) for each in (*module.parameters(), *module.buffers())]
        for layer in module.modules() if getattr(module, "peft_config", None) else ():
            if hasattr(layer, "active_adapters") and hasattr(layer, "scaling"):
                said = dict(layer.scaling), tuple(layer.active_adapters), tuple(layer.merged_adapters)
                found.append((*said, layer.disable_adapters))
    return found
