"""Knobs: dataclass fields with a help text, and flags from fields.

A knob's flag is its field's name; a nested config's knobs carry the prefix that its field names
(`--sft-max-steps`, `--lora-rank`). Nothing heavy is imported here, so `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from minialign.errors import InputError

T = TypeVar("T")


def knob(default: Any, help: str, subject: str = "") -> Any:
    """A dataclass field with a help text, which becomes the command line's.

    `subject` is the heading that it stands under, and with it those after it that name none.
    """
    return dataclasses.field(default=default, metadata={"help": help, "subject": subject})


def knobs(default: Any, prefix: str, subject: str = "") -> Any:
    """A field that holds knobs of its own; their flags begin with `prefix`."""
    return dataclasses.field(default=default, metadata={"prefix": prefix, "subject": subject})


def require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True)
class Flag:
    """One knob: its flag name, where it lives in the config, what it takes and what it is about."""

    name: str
    path: tuple[str, ...]
    type: Any
    help: str
    subject: str


def flags_of(
    config_class: type, prefix: str = "", path: tuple[str, ...] = (), subject: str = ""
) -> Iterator[Flag]:
    """The knobs of a config dataclass, nested ones included."""
    types = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind, place = types[field.name], (*path, field.name)
        subject = field.metadata["subject"] or subject
        if dataclasses.is_dataclass(kind):
            nested = typing.cast(type, kind)
            yield from flags_of(nested, field.metadata["prefix"], place, subject)
        else:
            # Python keeps some words for itself: the field `continue_` is the flag `continue`.
            name = prefix + field.name.rstrip("_")
            yield Flag(name, place, kind, field.metadata["help"], subject)


def config_from_flags(base: T, given: dict[str, Any]) -> T:
    """`base` with the given flags (by name, texts or values) put in.

    Raises InputError for an unknown flag, or a value that the config refuses.
    """
    flags = {flag.name: flag for flag in flags_of(type(base))}
    changes: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, value in given.items():
        if name not in flags:
            raise InputError(f"{name}: there is no such knob{nearest(name, flags, listed=False)}")
        flag = flags[name]
        if isinstance(value, str):
            value = _converted(flag, value)
        if isinstance(value, list):
            value = tuple(value)
        changes.setdefault(flag.path[:-1], {})[flag.path[-1]] = value
    prefixes = {
        f.name: f.metadata.get("prefix", "") for f in dataclasses.fields(typing.cast(Any, base))
    }
    nested = {
        path[0]: _replaced(getattr(base, path[0]), values, prefixes[path[0]])
        for path, values in changes.items()
        if path
    }
    return dataclasses.replace(base, **nested, **changes.get((), {}))  # type: ignore[type-var]


def _converted(flag: Flag, text: str) -> Any:
    choices = typing.get_args(flag.type) if typing.get_origin(flag.type) is typing.Literal else ()
    try:
        value = converter(flag.type)(text)
    except ValueError:
        raise InputError(f"{flag.name}: {text!r} is not a number") from None
    if choices and value not in choices:
        raise InputError(f"{flag.name}: {text!r} is not one of {', '.join(choices)}")
    return value


def typed_value(flag: Flag, value: Any) -> Any:
    """A value as JSON or TOML has it, in the type that the flag takes.

    Raises InputError, naming the flag, where it is of another type, or not one of its choices.
    """
    takes: dict[Any, tuple[type, ...]] = {
        bool: (bool,),
        int: (int,),
        float: (int, float),
        tuple[str, ...]: (str, list),
    }
    kinds = takes.get(flag.type, (str,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and flag.type is not bool):
        names = {bool: "true or false", int: "a whole number", float: "a number"}
        raise InputError(f"{flag.name}: {value!r} is not {names.get(flag.type, 'a text')}")
    if flag.type is bool:
        return value
    return _converted(flag, ",".join(map(str, value)) if isinstance(value, list) else str(value))


def _replaced(config: Any, values: dict[str, Any], prefix: str) -> Any:
    """A nested config's complaint begins with its own name for the knob: the prefix makes it the
    flag's.
    """
    try:
        return dataclasses.replace(config, **values)
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def config_from_dict(config_class: type[T], raw: dict[str, Any]) -> T:
    """The inverse of `dataclasses.asdict`, through JSON."""
    types = typing.get_type_hints(config_class)
    values = {}
    for name, value in raw.items():
        if name not in types:
            raise InputError(f"{name}: there is no such knob")
        if dataclasses.is_dataclass(types[name]) and isinstance(value, dict):
            value = config_from_dict(typing.cast(type, types[name]), value)
        values[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(values[name], types[name]):
            raise InputError(f"{name}: {str(value)[:40]!r} is no value of this knob")
    return config_class(**values)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value, as JSON may have brought it, is of a knob's type."""
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if kind in (int, float):
        numbers = (int, float) if kind is float else (int,)
        # In 64 bits; a bool is an int, and is meant as none.
        return type(value) in numbers and -(2**63) <= value < 2**63
    return isinstance(value, kind)


def value_at(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def shown_value(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else f"{value}"


def converter(kind: Any) -> Callable[[str], Any]:
    if kind == tuple[str, ...]:
        return lambda text: tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        return lambda text: text.lower() in ("1", "true", "yes")
    if kind in (int, float):
        return _number_of(kind)
    return (
        str
        if typing.get_origin(kind) is typing.Literal
        else typing.cast(Callable[[str], Any], kind)
    )


def _number_of(kind: Any) -> Callable[[str], Any]:
    """Reads numbers of 64 bits. Raises ValueError for all else: infinity is no knob's value."""

    def convert(text: str) -> Any:
        if not _fits(value := kind(text), kind):
            raise ValueError(f"{text} is beyond all bounds")
        return value

    # An error of the command line names the type by it.
    convert.__name__ = kind.__name__
    return convert


def flag_values(config_class: type, raw: dict[str, Any]) -> dict[str, Any]:
    """The values of `dataclasses.asdict(config)`, or what JSON made of it, by their flags' names.

    A flag that `raw` lacks is left out.
    """
    found = {}
    for flag in flags_of(config_class):
        inner: Any = raw
        for name in flag.path:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if inner is not None:
            found[flag.name] = inner
    return found


def nearest(name: str, names: Iterable[str], *, listed: bool = True) -> str:
    """Asks for the nearest of `names`; where none is near, lists them if `listed`."""
    names = list(names)
    if close := difflib.get_close_matches(name, names, n=1):
        return f": did you mean {close[0]}?"
    return f": choose one of {', '.join(names)}" if listed else ""
