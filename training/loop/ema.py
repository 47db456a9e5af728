"""The averaged weights, which are evaluated, sampled and exported."""

from __future__ import annotations

import copy

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

EVERY = 8
"""Steps between updates: each one reads and writes all weights, and the model moves little in between."""


class Average:
    """An exponential moving average of a model's trained parameters.

    It costs next to nothing: frozen parameters are shared with the model, an update is one call for all trained ones,
    it comes every `EVERY` steps, on a GPU it runs during the next forward pass, and under FSDP each process averages
    its own part without communication.
    """

    def __init__(self, model: torch.nn.Module, shared: bool = True, evaluates: bool = True):
        """model: before it is wrapped. shared: whether to share frozen parameters with the model, which is impossible
        under FSDP. evaluates: whether this process uses `module`; under FSDP the others need not hold it.
        """
        frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.module = copy.deepcopy(model, frozen if shared else None).requires_grad_(False).eval()
        """The model with averaged weights, for evaluation; under FSDP as of the last `gather`."""
        if not evaluates:
            self.module.to("meta")
        self.stream = torch.cuda.Stream() if next(model.parameters()).is_cuda else None
        parameters = dict(self.module.named_parameters())
        self.own = {name: parameters[name] for name in names}
        self.values, self.live = self.own, {}

    def follow(self, model: torch.nn.Module) -> None:
        """Start averaging this model, which may be wrapped by now, or sharded by FSDP."""
        parameters = dict(model.named_parameters())
        self.live = {name: parameters[name] for name in self.own}
        if any(isinstance(parameter, DTensor) for parameter in self.live.values()):
            self.values = {name: parameter.detach().clone() for name, parameter in self.live.items()}

    @torch.no_grad()
    def update(self, step: int, decay: float) -> None:
        """Move the averaged weights towards the model's, faster at first.

        With a fixed decay the initial random weights would still make up a tenth of the average after two thousand
        steps. decay: of a step. After the first hundred steps an update stands for `EVERY` of them.
        """
        steps = 1 if step < 100 else EVERY
        if step % steps:
            return
        weight = 1 - min(decay, (1 + step) / (10 + step)) ** steps
        values, live = ([_local(tensor) for tensor in named.values()] for named in (self.values, self.live))
        if self.stream is None:
            torch._foreach_lerp_(values, live, weight)
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            torch._foreach_lerp_(values, live, weight)

    def wait(self) -> None:
        """Must be called before the model's parameters change or the averaged ones are read."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)

    @torch.no_grad()
    def gather(self) -> None:
        """Bring `module` up to date; every process must call it."""
        self.wait()
        if self.values is not self.own:
            for name, tensor in self.values.items():  # one at a time: a GPU need not hold two whole averages
                self.own[name].copy_(whole(tensor))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The whole averaged weights by name, under FSDP in main memory. Every process must call it."""
        self.wait()
        if self.values is self.own:
            return dict(self.own)
        return {name: whole(tensor).cpu() for name, tensor in self.values.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.values.items():
            loaded = state[name].to(tensor.device)
            split = isinstance(tensor, DTensor)
            tensor.copy_(distribute_tensor(loaded, tensor.device_mesh, tensor.placements) if split else loaded)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor, gathered if FSDP has sharded it; then every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
