"""Command lines from dataclass fields: every field of a config is a flag with its help text and its
type.

Nested configs bring their prefix (`--sft-max-steps`, `--lora-rank`); sampling's knobs go by their
own names. Nothing heavy is imported here, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from minialign.errors import InputError

T = TypeVar("T")
PREFIXES = {"lora": "lora_", "sft": "sft_", "sampling": ""}


@dataclass(frozen=True)
class Flag:
    """One knob: its flag name, where it lives in the config, and what it takes."""

    name: str
    path: tuple[str, ...]
    type: Any
    help: str


def flags_of(config_class: type, prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[Flag]:
    """The knobs of a config dataclass, nested ones included."""
    types = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(types[field.name]):
            nested = typing.cast(type, types[field.name])
            yield from flags_of(nested, PREFIXES[field.name], (*path, field.name))
        else:
            yield Flag(
                prefix + field.name, (*path, field.name), types[field.name], field.metadata["help"]
            )


def add_flags(
    parser: argparse.ArgumentParser, config_class: type, title: str, default: Any = None
) -> None:
    """One argument a knob; those not given are absent from the namespace.

    `default` only informs the help text.
    """
    group = parser.add_argument_group(title)
    for flag in flags_of(config_class):
        shown = _shown(_get(default, flag.path)) if default is not None else ""
        options: dict[str, Any] = {
            "help": (flag.help + (f" [{shown}]" if shown else "")).replace("%", "%%"),
            "default": argparse.SUPPRESS,
        }
        if flag.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(flag.type) is typing.Literal:
            options["choices"] = typing.get_args(flag.type)
        else:
            options |= {"type": _converter(flag.type), "metavar": _metavar(flag.type)}
        if flag.type == tuple[str, ...]:
            options["action"] = "extend"  # given twice, it holds both
        short = ["-" + flag.name] if len(flag.name) == 1 else []
        group.add_argument(*short, "--" + flag.name.replace("_", "-"), **options)


def config_from_flags(base: T, given: dict[str, Any]) -> T:
    """`base` with the given flags (by name, texts or values) put in.

    Raises InputError for an unknown flag, or a value that the config refuses.
    """
    flags = {flag.name: flag for flag in flags_of(type(base))}
    changes: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, value in given.items():
        if name not in flags:
            raise InputError(f"{name}: there is no such knob")
        flag = flags[name]
        if isinstance(value, str):
            value = _converted(flag, value)
        if isinstance(value, list):
            value = tuple(value)
        changes.setdefault(flag.path[:-1], {})[flag.path[-1]] = value
    nested = {
        path[0]: _replaced(getattr(base, path[0]), values, PREFIXES[path[0]])
        for path, values in changes.items()
        if path
    }
    return dataclasses.replace(base, **nested, **changes.get((), {}))  # type: ignore[type-var]


def _converted(flag: Flag, text: str) -> Any:
    choices = typing.get_args(flag.type) if typing.get_origin(flag.type) is typing.Literal else ()
    try:
        value = _converter(flag.type)(text)
    except ValueError:
        raise InputError(f"{flag.name}: {text!r} is not a number") from None
    if choices and value not in choices:
        raise InputError(f"{flag.name}: {text!r} is not one of {', '.join(choices)}")
    return value


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
        if dataclasses.is_dataclass(types[name]):
            value = config_from_dict(typing.cast(type, types[name]), value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)


def _get(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else f"{value}"


def _converter(kind: Any) -> Callable[[str], Any]:
    if kind == tuple[str, ...]:
        return lambda text: tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        return lambda text: text.lower() in ("1", "true", "yes")
    return (
        str
        if typing.get_origin(kind) is typing.Literal
        else typing.cast(Callable[[str], Any], kind)
    )


def _metavar(kind: Any) -> str:
    names = {int: "N", float: "X", tuple[str, ...]: "A,B,.."}
    return names.get(kind, "TEXT")


class OneLineParser(argparse.ArgumentParser):
    """An error is one line, status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows all flags)\n")


def run_main(program: str, main: Callable[[], None]) -> NoReturn:
    """Runs a command: InputError is one line and status 2, Ctrl-C status 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that it lacks is no reason to fail
    try:
        main()
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{program}: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe went away
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)
