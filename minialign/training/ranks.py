"""Several processes, one run: `torchrun --nproc-per-node N train.py ...`.

Every process, a rank, holds the model and the same adapters, and takes the same steps. Work is
dealt by its place: what a prompt's answers are, and what a part of a step comes to, does not depend
on who does it. Gradients are added up once a step; beside them cross only the sampled tokens, and a
few numbers a text, which the log needs. The first rank alone writes and speaks.

Alone, everything here does nothing: one process is all of them.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from minialign.errors import InputError
from minialign.weights.devices import agree_on_speed, take_gpu

T = TypeVar("T")
# How long a process waits for one that has more to do; one that is dead is noticed at once.
PATIENCE = timedelta(days=1)


class Lost(InputError):
    """Another process of the run has ended, so that nothing can be added up any more."""


def join() -> None:
    """Takes part where torchrun started this process; all but the first are silent from now on."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return
    if os.environ["RANK"] != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    gpus, here = take_gpu(int(os.environ["LOCAL_RANK"])), int(os.environ["LOCAL_WORLD_SIZE"])
    try:
        # nccl wants a GPU for each process.
        backend = "cpu:gloo,cuda:nccl" if 0 < here <= gpus else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the processes do not find each other: {reason}") from None
    # By what is measured types are chosen, and all must choose the same.
    agree_on_speed(lambda seconds: _everybodys(seconds)[0])


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    return _number() == 0


def _number() -> int:
    return dist.get_rank() if count() > 1 else 0


def launcher() -> str:
    """How the command began that started this run."""
    return f"torchrun --nproc-per-node {count()}" if count() > 1 else "python"


def speak() -> None:
    """This process is heard again: it has come to an end of its own."""
    if not is_first():
        sys.stderr = sys.__stderr__


# ---- who does what ----


def own(items: Iterable[T]) -> Iterator[T]:
    """This process's share: every item whose turn it is."""
    return itertools.islice(items, _number(), None, count())


def whole(share: list[Any] | None) -> list[Any] | None:
    """Everybody's results of what `own` dealt, in order; None where somebody has None."""
    shares = _everybodys(share)
    if None in shares:
        return None
    total = sum(map(len, shares))
    return [shares[place % len(shares)][place // len(shares)] for place in range(total)]


def divided(
    work: Callable[[T], Sequence[Tensor]], parts: Iterable[T], seed: int | None = None
) -> list[Sequence[Tensor]]:
    """What `work` finds in each part of a step, in order; every process does its share.

    With a `seed` each part has random numbers (dropout's) of its own, whoever does it.
    """
    found = []
    for place, part in own(enumerate(parts)):
        if seed is not None:
            torch.manual_seed(seed + place)
        found.append(work(part))
    if count() == 1:
        return found
    results = whole([[tensor.tolist() for tensor in result] for result in found])
    return [[torch.tensor(numbers) for numbers in result] for result in results or []]


# ---- what crosses ----


def add_up(parameters: Sequence[Tensor]) -> None:
    """Sums everybody's gradients, in one message; where nobody has any there are none."""
    if count() == 1:
        return
    given = [p.grad for p in parameters]
    some = torch.tensor([any(grad is not None for grad in given)], device=parameters[0].device)
    flat = [
        (torch.zeros_like(p) if grad is None else grad).flatten()
        for p, grad in zip(parameters, given, strict=True)
    ]
    message = torch.cat([*flat, some.to(flat[0].dtype)])
    with _together():
        dist.all_reduce(message)
    if message[-1] > 0:
        sums = message[:-1].split([p.numel() for p in parameters])
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total.view_as(parameter)


def anybody(is_so: bool) -> bool:
    """Whether it is so in one of the processes; each of them learns the same."""
    return any(_everybodys(is_so))


def wait() -> None:
    """Goes on once everybody is here."""
    _everybodys(None)


@contextmanager
def in_turn() -> Iterator[None]:
    """One process after the other, the first one first."""
    for _ in range(_number()):
        wait()
    yield
    for _ in range(_number(), count()):
        wait()


def _everybodys(value: Any) -> list[Any]:
    """What each process brings, as JSON."""
    if count() == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    with _together():
        dist.all_gather(lengths, torch.tensor([len(text)]))
        longest = int(max(lengths))
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))))
    found = zip(texts, lengths, strict=True)
    return [json.loads(bytes(text[: int(length)].numpy())) for text, length in found]


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise Lost("another process of this run has ended") from None
