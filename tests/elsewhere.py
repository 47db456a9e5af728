"""A fake device for any machine: like a GPU's, its tensors cannot be mixed with the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

DEVICE = torch.device("meta")  # a device that every torch knows; here its tensors have values


class _Elsewhere(torch.Tensor):
    """A tensor on the fake device, backed by a CPU tensor that does the work."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _call(function, args, kwargs or {})

    def __repr__(self) -> str:
        return f"_Elsewhere({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _call(function, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """Tensors of Python numbers, which torch makes without calling an operator: on `DEVICE` they have no value."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], _Elsewhere):
            args = args[0], tree_map_only(list, torch.tensor, args[1], is_leaf=_is_list), *args[2:]
        if function is torch.Tensor.new_tensor and isinstance(args[0], _Elsewhere):
            return _Elsewhere(args[0].inner.new_tensor(*args[1:], **kwargs))
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            return _Elsewhere(torch.tensor(*args, **kwargs | {"device": "cpu"}))
        return function(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Make `DEVICE` usable inside the block."""
    with _Numbers(), _Operators():
        yield


def put(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on `DEVICE`."""
    return _Elsewhere(tensor.clone())


def _call(function: Any, args: tuple, kwargs: dict) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    there = [isinstance(each, _Elsewhere) for each in tensors]
    copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    # CPU scalar tensors and indices are accepted on every device.
    strangers = [each for each, is_there in zip(tensors, there) if not is_there and each.ndim]
    if any(there) and strangers and not copies and "index" not in function.name():
        raise RuntimeError(f"{function}: tensors on {DEVICE} and on the CPU")
    device = kwargs.get("device")
    result_there = any(there) if device is None else torch.device(device).type == DEVICE.type
    if copies and function is torch.ops.aten.copy_.default:
        result_there = there[0]
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = function(*_inner(args), **_inner(kwargs))
    if "out" in kwargs or (function._schema.is_mutable and function.name().split(".")[0].endswith("_")):
        return args[0]
    return tree_map_only(torch.Tensor, _Elsewhere, result) if result_there else result


def _is_list(values: Any) -> bool:
    return isinstance(values, list)


def _inner(values: Any) -> Any:
    return tree_map(lambda each: each.inner if isinstance(each, _Elsewhere) else each, values)
