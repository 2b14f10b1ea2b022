"""Several processes, as torchrun starts them, forked from one that has loaded all."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minialign.commands import bounds, train  # noqa: F401
from minialign.commands.cli import run_main
from minialign.evaluation.report import page  # noqa: F401
from minialign.methods import c3po, ditto  # noqa: F401
from minialign.training import ranks

# Seconds; far more than anything here takes.
LIMIT = 60.0


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, negative for a signal, and what it said."""

    code: int
    said: str
    seconds: float


def together(count: int, work: Callable[[int], None], folder: Path) -> list[Ended]:
    """Calls `work(rank)` in `count` processes at once, with `folder` as their working folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    logs = [folder / f"log {rank}.txt" for rank in range(count)]
    children = [os.fork() or _child(rank, count, port, work, logs[rank]) for rank in range(count)]
    waiting, ends = dict(zip(children, logs, strict=True)), {}
    began = time.monotonic()
    while waiting:
        for child in list(waiting):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                text = waiting.pop(child).read_text(encoding="utf-8")
                code = os.waitstatus_to_exitcode(status)
                ends[child] = Ended(code, text, time.monotonic() - began)
        if time.monotonic() - began > LIMIT:
            for child in waiting:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [ends[child] for child in children]


def _child(rank: int, count: int, port: int, work: Callable[[int], None], log: Path) -> int:
    """Never returns."""
    code = 99
    try:
        os.chdir(log.parent)
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        sys.__stderr__ = sys.stderr
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        here |= {"LOCAL_WORLD_SIZE": str(count)}
        os.environ.update(address | here | {"TORCHELASTIC_RUN_ID": "test"})
        work(rank)
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def joined(work: Callable[[int], None]) -> Callable[[int], None]:
    """Work of processes that know each other."""

    def call(rank: int) -> None:
        ranks.join()
        work(rank)

    return call


def trained(
    count: int,
    arguments: Sequence[str],
    folder: Path,
    prepare: Callable[[int], None] = lambda rank: None,
) -> list[Ended]:
    """`torchrun --nproc-per-node COUNT train.py ...`; `prepare(rank)` may tamper with a process."""

    def work(rank: int) -> None:
        prepare(rank)
        sys.argv = ["train.py", *arguments]
        run_main("train.py", lambda: train.main([*arguments]))

    return together(count, work, folder)
