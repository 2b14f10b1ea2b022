"""Chat templates: the program, in jinja, that a checkpoint brings to lay out a conversation.

It is rendered as transformers renders it, in a sandbox, and with bounds: a template is a stranger's
program, and could else run forever or fill the memory.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minialign.data.records import Messages
from minialign.errors import InputError

SECONDS = 5.0  # that a rendering may take; usual ones take a thousandth
MOST = 100_000_000  # characters, items or bits that it may make
LONGEST_SOURCE = 1_000_000  # characters of a template; the longest in use have 20,000
WIDTH = re.compile(r"\d{6,}")  # in a format string


class ChatTemplate:
    """A template of a tokenizer with these control tokens. It is compiled once, when first used.

    Models that may think before they answer are asked not to (`enable_thinking` is false): what is
    learned is how to answer.
    """

    def __init__(self, source: str, bos: str | None, eos: str) -> None:
        self.source, self.bos, self.eos = source, bos, eos

    def render(
        self,
        messages: Messages,
        begin_answer: bool = True,
        today: datetime.datetime | None = None,
    ) -> str:
        """The conversation as text, at its end what begins an answer; `today` is else the clock's.

        Raises InputError if the template refuses, fails, or does not come to an end.
        """
        try:
            environment, template = self._compiled
            environment.start()
            return str(
                template.render(
                    messages=messages,
                    # templates may ask whether these are none, as transformers sets them
                    tools=None,
                    documents=None,
                    add_generation_prompt=begin_answer,
                    enable_thinking=False,
                    strftime_now=(today or datetime.datetime.now()).strftime,
                    bos_token=self.bos or "",
                    eos_token=self.eos,
                )
            )
        except Exception as error:  # a template is a program: it may fail in any way
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"the model's chat template refuses these messages: {reason}"
            ) from None

    @cached_property
    def _compiled(self) -> tuple[_Bounded, Any]:
        if len(self.source) > LONGEST_SOURCE:
            raise TemplateError(f"it has more than {LONGEST_SOURCE:,} characters")
        environment = _Bounded(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        return environment, environment.from_string(environment.bounded(self.source))


class Generation(Extension):
    """`{% generation %}`: some templates mark the assistant's words by it. It does nothing here."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox, in which every loop, call and operation is charged for what it may make."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self._written, optimized=False, **options)
        self.deadline, self.left, self.literals = 0.0, 0, 0
        self.filters = {name: self._charged(name, f) for name, f in self.filters.items()}
        self.filters |= {"tojson": _to_json, "timed": self._timed, "joined": self._joined}
        self.globals["raise_exception"] = _raise_template_error

    def start(self) -> None:
        self.deadline, self.left = time.monotonic() + SECONDS, MOST

    def charge(self, size: int) -> None:
        """Raises TemplateError where one operation, or all so far, make too much or take long."""
        self.left -= size
        if self.left < 0:
            raise TemplateError(f"it makes more than {MOST:,} characters")
        if time.monotonic() > self.deadline:
            raise TemplateError(f"it has not come to an end in {SECONDS:.0f} seconds")

    def bounded(self, source: str) -> nodes.Template:
        """The program with every loop and every `~` charged."""
        tree = self.parse(source)
        self.literals = _literals(tree)
        for loop in tree.find_all(nodes.For):
            cost = nodes.Const(1 + _literals(loop))
            loop.iter = nodes.Filter(loop.iter, "timed", [cost], [], None, None)
        for parent in [tree, *tree.find_all(nodes.Node)]:
            for field, value in list(parent.iter_fields()):
                if isinstance(value, nodes.Concat):
                    setattr(parent, field, _measured(value))
                if isinstance(value, list):
                    value[:] = [_measured(v) if isinstance(v, nodes.Concat) else v for v in value]
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and numbers:
            self.charge(left.bit_length() * max(right, 0))
        elif operator == "*" and numbers:
            self.charge((left.bit_length() + right.bit_length()) * 1000)
        elif operator == "%":
            self._check_format(left)
        else:
            self.charge(_product([left, right]) if operator == "*" else _size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", "")
        if getattr(method, "__name__", "").startswith("format"):
            __self._check_format(owner)
        __self.charge(__self.literals + _product([owner, *args, *kwargs.values()]))
        return super().call(__context, __obj, *args, **kwargs)

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def charged(*args: Any, **kwargs: Any) -> Any:
            if name == "format":
                self._check_format(args[0])
            self.charge(_product([*args, *kwargs.values()]))
            return function(*args, **kwargs)

        # jinja marks filters that want the context or the environment by attributes
        charged.__dict__.update(getattr(function, "__dict__", {}))
        return charged

    def _timed(self, items: Iterable[Any], cost: int) -> Iterable[Any]:
        made = (_SizedTimed if isinstance(items, Sized) else _Timed)(items)
        made.charge = lambda: self.charge(cost)
        return made

    def _joined(self, parts: list[Any]) -> str:
        self.charge(sum(map(_size, parts)))
        return "".join(map(str, parts))

    def _written(self, value: Any) -> Any:
        self.charge(_size(value) if isinstance(value, str) else 1)
        return value

    def _check_format(self, layout: Any) -> None:
        self.charge(_size(layout))
        if isinstance(layout, str) and WIDTH.search(layout):
            raise TemplateError("it formats to a width of millions")


class _Timed:
    """What a loop runs over, charged for each item."""

    charge: Callable[[], None]

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            self.charge()
            yield item


class _SizedTimed(_Timed):
    """Its length stays known, for `loop.length`."""

    def __len__(self) -> int:
        assert isinstance(self.items, Sized)
        return len(self.items)


def _literals(tree: nodes.Node) -> int:
    """The characters that it writes as they stand."""
    return sum(len(data.data) for data in tree.find_all(nodes.TemplateData))


def _measured(concat: nodes.Concat) -> nodes.Filter:
    parts = nodes.List([_measured(n) if isinstance(n, nodes.Concat) else n for n in concat.nodes])
    return nodes.Filter(parts, "joined", [], [], None, None)


def _size(value: Any) -> int:
    """How large it is; of a number, how large what it multiplies becomes."""
    if isinstance(value, str | bytes | list | tuple | dict | range):
        return len(value)
    return abs(value) if isinstance(value, int) else 1


def _product(values: Iterable[Any]) -> int:
    """No operation makes more than this of these."""
    total = 1
    for value in values:
        total = min(total * max(1, _size(value)), 2 * MOST)
    return total


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)
