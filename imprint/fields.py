"""Validation of a configuration's dataclasses, and their conversion from and to plain JSON values."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal

from .errors import ImprintError


def require(condition: bool, message: str) -> None:
    """Raise `ImprintError(message)` unless the condition holds."""
    if not condition:
        raise ImprintError(message)


def require_choice(part: Any, *names: str) -> None:
    """Raise `ImprintError` unless each named field of a dataclass holds one of its type's literals."""
    kinds = typing.get_type_hints(type(part))
    for name in names:
        value, choices = getattr(part, name), typing.get_args(kinds[name])
        listed = " or ".join(repr(choice) for choice in choices)
        require(value in choices, f"{type(part).__name__}.{name} is {value!r}; it must be {listed}")


def require_positive(part: Any, *may_be_zero: str) -> None:
    """Raise `ImprintError` unless all numbers in a dataclass are positive; the named fields may be 0."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                fits = number > 0 or (number == 0 and field.name in may_be_zero)
                require(fits, f"{type(part).__name__}.{field.name} is {value}; it must be above 0")


def require_at_most(part: Any, most: int, *names: str) -> None:
    """Raise `ImprintError` unless the named fields, or the numbers in them, are at most `most`."""
    for name in names:
        value = getattr(part, name)
        largest = max(value, default=0) if isinstance(value, tuple) else value
        require(largest <= most, f"{type(part).__name__}.{name} is {value}; it must be {most} at most")


def to_dict(part: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values, without fields that hold their default."""
    values = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if value != field.default:
            values[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return values


def from_dict(cls: type, values: Any, where: str) -> Any:
    """A dataclass from plain JSON values. Raises `ImprintError` unless names and types match; where: for messages."""
    require(isinstance(values, dict), f"{where} is {values!r}; it must be a JSON object")
    types = typing.get_type_hints(cls)
    names = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(cls)}
    missing = sorted(name for name, required in names.items() if required and name not in values)
    unknown = sorted(values.keys() - names.keys())
    require(
        not (missing or unknown),
        f"{where} lacks {missing or 'nothing'} and has unknown {unknown or 'nothing'}; "
        "it was written by another version of this code, or by other code",
    )
    return cls(**{name: _from_value(types[name], values[name], f"{where}.{name}") for name in values})


def _from_value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        require(isinstance(value, list) and value, f"{where} is {value!r}; it must be a list of whole numbers")
        return tuple(_from_value(int, item, where) for item in value)
    if origin is Literal:
        return value  # the dataclass itself checks the choices
    if kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        require(fits, f"{where} is {value!r}; it must be a finite number")
        return float(value)
    require(type(value) is kind, f"{where} is {value!r}; it must be of type {kind.__name__}")
    require(kind is not int or value >= 0, f"{where} is {value}; it must not be negative")
    return value
