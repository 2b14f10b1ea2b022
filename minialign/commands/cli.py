"""What all commands share: flags on a parser, errors of one line, exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from minialign.data.knobs import (
    Flag,
    converter,
    flags_of,
    nearest,
    shown_value,
    typed_value,
    value_at,
)
from minialign.errors import InputError

MOST_USED = "most used"
LONGEST_ERROR = 1500


class OneLineParser(argparse.ArgumentParser):
    """An error is one line, status 2, and names the nearest flag; help stands under subjects.

    `--help` shows the most used flags; `--help-all` shows these first, and then the others.
    """

    def __init__(self, program: str, description: str, arguments: Sequence[str] = ()) -> None:
        super().__init__(program, description=description, allow_abbrev=False, add_help=False)
        self.shows_all = "--help-all" in arguments
        self.flags: dict[str, Flag] = {}
        # The names of those that the command line gave, and not --config.
        self.typed: set[str] = set()
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        common = self.group(self._first)
        common.add_argument("-h", "--help", action="help", help="the most used flags")
        common.add_argument("--help-all", action="help", help="all flags, by subject")

    @property
    def _first(self) -> str:
        return MOST_USED if self.shows_all else "help"

    def add_config(self) -> None:
        """--config, which gives the other flags."""
        self.group(self._first).add_argument(
            "--config",
            default=argparse.SUPPRESS,
            metavar="FILE",
            help="flags from a file, JSON or TOML, by their names; the command line wins",
        )

    def group(self, subject: str) -> argparse._ArgumentGroup:
        """The heading of a subject; it is shown once a flag stands under it."""
        if subject not in self._groups:
            self._groups[subject] = self.add_argument_group(subject)
        return self._groups[subject]

    def format_help(self) -> str:
        """The flags stand under their subjects, and not in the first line too."""
        forms = {"?": "[{}]", "+": "{} ..."}
        files = [
            forms.get(str(action.nargs), "{}").format(action.metavar or action.dest)
            for action in self._get_positional_actions()
        ]
        self.usage = " ".join(["%(prog)s", *files, "[--flag value ...]"])
        return super().format_help()

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The flags that were given, by name. A flag that is not there ends the program.

        Those of --config FILE are among them; the command line wins.
        """
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0])
            name = flag.split("=")[0]
            known = [option for option in self._option_string_actions if option.startswith("--")]
            self.error(f"unrecognized arguments: {flag}{nearest(name, known, listed=False)}")
        given = vars(found)
        file = given.pop("config", "")
        self.typed = set(given)
        return self._from_file(file, given) | given if file else given

    def _from_file(self, file: str, given: dict[str, Any]) -> dict[str, Any]:
        """Raises InputError, naming the file, for a flag or a value that there is not."""
        from minialign.commands.config_file import flags_in

        values = flags_in(Path(file), given)
        for name in values:
            if name not in self.flags:
                near = nearest(name, self.flags, listed=False)
                raise InputError(f"--config {file}: {name}: there is no such flag{near}")
        try:
            return {name: typed_value(self.flags[name], value) for name, value in values.items()}
        except InputError as error:
            raise InputError(f"--config {file}: {error}") from None

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows the flags)\n")


def add_flags(
    parser: OneLineParser,
    config_class: type,
    title: str,
    default: Any = None,
    *,
    first: Sequence[str] = (),
    helps: dict[str, str] | None = None,
) -> None:
    """One argument a knob; those not given are absent from what is parsed.

    Those named in `first` are the most used, in that order; `--help` shows no others. A knob that
    has no subject stands under `title`. `default` stands in brackets behind the help text, and
    `helps` replaces a flag's.
    """
    if not parser.flags:
        parser.add_config()
    for flag in sorted(flags_of(config_class), key=lambda flag: _place(flag.name, first)):
        shown = shown_value(value_at(default, flag.path)) if default is not None else ""
        text = (helps or {}).get(flag.name, flag.help) + (f" [{shown}]" if shown else "")
        is_common = flag.name in first
        options: dict[str, Any] = {
            "help": text.replace("%", "%%") if is_common or parser.shows_all else argparse.SUPPRESS,
            "default": argparse.SUPPRESS,
        }
        if flag.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(flag.type) is typing.Literal:
            options["choices"] = typing.get_args(flag.type)
        else:
            options |= {"type": converter(flag.type), "metavar": _metavar(flag.type)}
        # Given twice, it holds both.
        if flag.type == tuple[str, ...]:
            options["action"] = "extend"
        short = ["-" + flag.name] if len(flag.name) == 1 else []
        subject = MOST_USED if is_common and parser.shows_all else flag.subject
        group = parser.group(subject or title)
        parser.flags[flag.name] = flag
        group.add_argument(*short, "--" + flag.name.replace("_", "-"), **options)


def _place(name: str, first: Sequence[str]) -> int:
    return first.index(name) if name in first else len(first)


def _metavar(kind: Any) -> str:
    names = {int: "N", float: "X", tuple[str, ...]: "A,B,.."}
    return names.get(kind, "TEXT")


def one_line(text: str) -> str:
    """What a file made part of an error may be long, or drive the terminal: neither is shown."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= LONGEST_ERROR else f"{text[:1000]} ... {text[-300:]}"


def join() -> None:
    """Takes part in a work that torchrun started in several processes; else does nothing."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from minialign.training import ranks

        ranks.join()


def run_main(program: str, main: Callable[[], None]) -> NoReturn:
    """Runs a command: InputError is one line and status 2, Ctrl-C status 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that it lacks is no reason to fail.
        sys.stdout.reconfigure(errors="replace")
    try:
        main()
    except InputError as error:
        print(f"{program}: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{program}: stopped", file=sys.stderr)
        sys.exit(130)
    # The reader of a pipe went away.
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)
