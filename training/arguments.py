"""Command lines made from settings, which are dataclasses of required fields, and reading settings from files.

The scripts' options are many and also a file's, so they are derived; those of the command `imprint` are written out in
`imprint.options`.

A field's type determines how its option is parsed, the text below it is the option's help, and `option` holds the rest.
A field that is itself a dataclass is a group of options. Later sources override earlier ones: defaults, the preset,
`--config FILE` (YAML, or a run's options.json), flags.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from imprint.errors import LARGEST_NUMBER, ImprintError, from_extra, require_number
from imprint.files import same_file
from imprint.options import with_negative_points

T = TypeVar("T")
REQUIRED = object()
LARGEST = 2**53
"""The largest seed or count: up to this, JSON numbers are exact."""


def option(
    default: Any = REQUIRED,
    *,
    choices: Any = None,
    metavar: str | None = None,
    group: str | None = None,
    parse: Callable[[str], Any] | None = None,
    bare: Any = None,
    old: str | None = None,
    positional: bool = False,
) -> Any:
    """A field of settings.

    default: of the command line; the dataclass itself has none. parse: text -> value, by default the field's type.
    bare: the value of the flag when it is given without one. old: a former name of the flag, which still works, with a
    warning.
    """
    return dataclasses.field(
        metadata=dict(
            default=default,
            choices=choices,
            metavar=metavar,
            group=group,
            parse=parse,
            bare=bare,
            old=old,
            positional=positional,
        )
    )


def found(default: Any, compare: bool = True) -> Any:
    """A field that is not an option: what a script derives from the options, or `Origin`."""
    return dataclasses.field(default=default, metadata={"found": True}, compare=compare)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Which settings were given explicitly; the rest are presets or defaults."""

    config: str | None = None
    """the file of --config"""
    from_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    from_flags: dict[str, Any] = dataclasses.field(default_factory=dict)
    """these override the file"""

    def described(self) -> dict[str, Any]:
        """As stored in a run's options.json."""
        return {"config_file": self.config, "from_config": self.from_config, "from_flags": self.from_flags}


def warn_renamed(old: str, new: str) -> None:
    print(f"warning: {old} is now called {new}; the old name will be removed in the next release", file=sys.stderr)


def require_other(output: Path, *inputs: Path | None) -> None:
    """Raise `ImprintError` if the output is one of the inputs, which it would overwrite, also through a link."""
    for path in inputs:
        if path is not None and same_file(output, path):
            raise ImprintError(f"{output} is also an input, and would be overwritten; give another --output")


def flag(name: str) -> str:
    """The name of a field's option."""
    return f"--{name.replace('_', '-')}"


def require(settings: Any, names: str, least: float = 1, most: float = LARGEST_NUMBER) -> None:
    """Raise `ImprintError` if one of the named numbers, unless None, is not from `least` to `most`."""
    for name in names.split():
        if (value := getattr(settings, name)) is not None:
            require_number(flag(name), value, least, most, whole=isinstance(value, int))


def require_usable(values: dict[str, Any]) -> None:
    """Raise `ImprintError` for numbers that are NaN, infinite or whole and beyond `LARGEST`, and for negative seeds."""
    for name, value in values.items():
        if isinstance(value, tuple):
            for each in value:
                require_usable({name: each})
        elif isinstance(value, int | float) and not isinstance(value, bool):
            whole = isinstance(value, int)
            least, most = 0 if name == "seed" else -LARGEST_NUMBER, LARGEST if whole else LARGEST_NUMBER
            require_number(flag(name), value, least, most, whole)


# --- what a dataclass asks for ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Field:
    """One option: its name, its parsed type, its help and the arguments of `option`."""

    name: str
    parse: Callable[[str], Any]
    several: bool
    optional: bool
    help: str
    metadata: dict[str, Any]

    def read(self, value: Any, source: str) -> Any:
        """Convert a value from a file to the field's type. Raises `ImprintError` for a value of another type."""
        if value is None and self.optional:
            return None
        try:
            if self.several:
                if isinstance(value, dict):  # `still: 0.4` for `still:0.4`
                    value = [f"{name}:{each}" for name, each in value.items()]
                elif not isinstance(value, list | tuple):  # one alone, as on the command line
                    value = [value]
                return tuple(self._one(each) for each in value)
            return self._one(value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise ImprintError(f"{source}: {self.name} is {value!r} ({error})") from error

    def _one(self, value: Any) -> Any:
        if self.parse is bool:
            if not isinstance(value, bool):
                raise TypeError("true or false was expected")
        elif isinstance(value, list):
            value = tuple(tuple(each) if isinstance(each, list) else each for each in value)
        elif isinstance(value, int | float) and not isinstance(self.parse, type):  # a word that YAML reads as a number
            value = self.parse(str(value))
        elif self.parse is float and isinstance(value, int | float) and not isinstance(value, bool):
            value = float(value)
        elif isinstance(value, str):
            value = self.parse(value)
        elif not isinstance(value, self.parse if isinstance(self.parse, type) else object) or isinstance(value, bool):
            raise TypeError(f"{getattr(self.parse, '__name__', 'another kind')} was expected")
        choices = self.metadata.get("choices")
        if choices is not None and value not in choices:
            raise ValueError(f"one of {', '.join(map(str, choices))} was expected")
        return value


@functools.cache
def fields_of(kind: type) -> dict[str, Field | type]:
    """The fields of a dataclass by name; for a group, its dataclass."""
    hints, texts, options = get_type_hints(kind), _texts(kind), {}
    for field in dataclasses.fields(kind):
        if field.metadata.get("found"):
            continue
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            options[field.name] = hint
            continue
        optional = get_origin(hint) in (Union, types.UnionType)
        if optional:
            (hint,) = (part for part in get_args(hint) if part is not type(None))
        several = get_origin(hint) is tuple
        inner = get_args(hint)[0] if several else hint
        metadata = dict(field.metadata)
        if field.default is not dataclasses.MISSING:
            metadata.setdefault("default", field.default)
        metadata.setdefault("default", REQUIRED)
        parse = metadata.get("parse") or inner
        options[field.name] = Field(field.name, parse, several, optional, texts.get(field.name, ""), metadata)
    return options


def _texts(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    texts = {}
    for field, below in zip(definition.body, definition.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            texts[field.target.id] = " ".join(below.value.value.split())
    return texts


def flat(kind: type) -> Iterator[Field]:
    """All fields, with groups expanded in place."""
    for field in fields_of(kind).values():
        if isinstance(field, Field):
            yield field
        else:
            yield from flat(field)


def defaults(kind: type) -> dict[str, Any]:
    return {field.name: field.metadata["default"] for field in flat(kind) if field.metadata["default"] is not REQUIRED}


def of(kind: type[T], **values: Any) -> T:
    """The dataclass with its defaults and changes."""
    return kind(**(defaults(kind) | values))


def build(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass, its groups built from the same flat values."""
    given = {
        name: values[name] if isinstance(field, Field) else build(field, values)
        for name, field in fields_of(kind).items()
    }
    return kind(**given)


def flattened(settings: Any) -> dict[str, Any]:
    """The inverse of `build`, as JSON values."""
    values: dict[str, Any] = {}
    for name, field in fields_of(type(settings)).items():
        value = getattr(settings, name)
        values |= {name: _plain(value)} if isinstance(field, Field) else flattened(value)
    return values


def _plain(value: Any) -> Any:
    """A field's value as a JSON value."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


# --- command lines ---------------------------------------------------------------------------------------------------


class Renamed(argparse.Action):
    """A former name of an option."""

    def __init__(self, *args: Any, new: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.new = new

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        warn_renamed(option_string, self.new)
        setattr(namespace, self.dest, tuple(values) if isinstance(values, list) else values)


def add_options(parser: Any, kind: type, choices: dict[str, Container[str]] | None = None) -> None:
    """Add an option for each field; options not given stay absent. choices: for fields that cannot name them."""
    groups: dict[str, Any] = {}
    for field in fields_of(kind).values():
        if not isinstance(field, Field):
            add_options(parser.add_argument_group(field.__doc__.strip().partition("\n")[0].rstrip(".").lower()), field)
            continue
        title = field.metadata.get("group")
        target = parser if title is None else groups.get(title) or parser.add_argument_group(title)
        if title is not None:
            groups[title] = target
        _add(target, field, (choices or {}).get(field.name))


def _add(parser: Any, field: Field, choices: Container[str] | None) -> None:
    metadata, default = field.metadata, field.metadata["default"]
    how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": field.help.replace("%", "%%")}
    if field.parse is bool:
        how["action"] = argparse.BooleanOptionalAction
    else:
        how |= {"type": field.parse, "choices": choices or metadata.get("choices"), "metavar": metadata.get("metavar")}
        if field.several:
            how["nargs"] = "+"
        elif metadata.get("bare") is not None:
            how |= {"nargs": "?", "const": metadata["bare"]}
        if default not in (REQUIRED, None, ()):
            how["help"] += f" (default: {default})".replace("%", "%%")
    if metadata.get("positional"):
        parser.add_argument(field.name, **(how | {"nargs": "*" if field.several else "?", "default": None}))
        return
    parser.add_argument(flag(field.name), dest=field.name, **how)
    if old := metadata.get("old"):
        how["help"] = argparse.SUPPRESS
        parser.add_argument(old, dest=field.name, action=Renamed, new=flag(field.name), **how)


def read_table(path: Path, expected: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises `ImprintError`, with what was expected, for anything else."""
    yaml = from_extra("yaml", "train", str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ImprintError(f"{path} cannot be read ({error}); {expected}") from error
    if not isinstance(table, dict):
        raise ImprintError(f"{path} holds {type(table).__name__}, where 'option: value' lines were expected")
    return table


def read_file(path: Path, kind: type, renamed: dict[str, str], ignored: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The values of a YAML or JSON file by field. Raises `ImprintError` for unknown fields and wrong types.

    renamed: former names of fields. ignored: keys of a run's options.json that are not options.
    """
    table = read_table(path, "--config is a YAML file of options, or an options.json")
    known = {field.name: field for field in flat(kind)}
    values = {}
    for key, value in table.items():
        name = str(key).replace("-", "_")
        name = renamed.get(name, name)
        if name in ignored and path.suffix == ".json":
            continue
        if name not in known:
            raise ImprintError(f"{path} has '{key}', which is not an option; options are {', '.join(known)}")
        values[name] = known[name].read(value, str(path))
    return values


def parse(
    kind: type[T],
    argv: list[str] | None,
    description: str | None,
    preset: Callable[[dict[str, Any]], dict[str, Any]] = lambda given: {},
    renamed: dict[str, str] | None = None,
    ignored: frozenset[str] = frozenset(),
    old_config: tuple[str, Container[str]] | None = None,
    choices: dict[str, Container[str]] | None = None,
    **parser_options: Any,
) -> T:
    """The settings given by a command line; exits with code 2 and a message for invalid ones.

    preset: defaults that depend on the options given. old_config: the option that `--config` was formerly the name of,
    and its values. Numbers must be finite and seeds 0 or more. kind.check(), if defined, raises `ImprintError` for
    values that contradict each other.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **parser_options
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="options as YAML, or a run's options.json; flags override it"
    )
    add_options(parser, kind, choices)
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(parser.parse_args(with_negative_points(argv))).items()
        if value not in (None, []) or name == "config"
    }
    file = given.pop("config")
    if old_config and str(file) in old_config[1]:
        warn_renamed(f"--config {file}", f"--{old_config[0]} {file}")
        given, file = {old_config[0]: str(file)} | given, None
    try:
        of_file = read_file(file, kind, renamed or {}, ignored) if file is not None else {}
        parts = ({name: _plain(value) for name, value in part.items()} for part in (of_file, given))
        origin = Origin(file and str(file), *parts)
        given = of_file | given
        require_usable(given)
        values = defaults(kind) | preset(given) | given
        if absent := [field for field in flat(kind) if field.name not in values]:
            names = (field.name if field.metadata.get("positional") else flag(field.name) for field in absent)
            parser.error(f"the following arguments are required: {', '.join(names)}")
        settings = build(kind, values)
        if hasattr(settings, "origin"):
            settings = dataclasses.replace(settings, origin=origin)
        if hasattr(settings, "check"):
            settings.check()
    except ImprintError as error:
        parser.error(str(error))
    return settings
