"""What all commands share: flags on a parser, errors of one line, exit codes."""

from __future__ import annotations

import argparse
import io
import sys
import typing
from collections.abc import Callable
from typing import Any, NoReturn

from minialign.data.knobs import converter, flags_of, shown_value, value_at
from minialign.errors import InputError


def add_flags(
    parser: argparse.ArgumentParser, config_class: type, title: str, default: Any = None
) -> None:
    """One argument a knob; those not given are absent from the namespace.

    `default` only informs the help text.
    """
    group = parser.add_argument_group(title)
    for flag in flags_of(config_class):
        shown = shown_value(value_at(default, flag.path)) if default is not None else ""
        options: dict[str, Any] = {
            "help": (flag.help + (f" [{shown}]" if shown else "")).replace("%", "%%"),
            "default": argparse.SUPPRESS,
        }
        if flag.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(flag.type) is typing.Literal:
            options["choices"] = typing.get_args(flag.type)
        else:
            options |= {"type": converter(flag.type), "metavar": _metavar(flag.type)}
        if flag.type == tuple[str, ...]:
            options["action"] = "extend"  # given twice, it holds both
        short = ["-" + flag.name] if len(flag.name) == 1 else []
        group.add_argument(*short, "--" + flag.name.replace("_", "-"), **options)


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
