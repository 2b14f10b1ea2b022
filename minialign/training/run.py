"""The run folder: a person's record of what happened, and enough to go on from.

    config.json     every knob resolved, versions, device, seed
    metrics.jsonl   a line a step
    samples.jsonl   a line a sampled completion
    preview.json    an unseen prompt's answer before and after
    report.html     all of it, to look at
    adapter/        the result, in PEFT's format; adapter-STAGE/ is what an earlier stage ended with
    state/          what --resume needs, one file, replaced as a whole; removed once all is written
    .lock           who is at work

Randomness is a function of (seed, what for, step) and has no state of its own, so a resumed run
continues bit for bit with no generator to restore.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from minialign.data.files import replace_text
from minialign.errors import InputError
from minialign.model.transformer import CausalLM
from minialign.training import ranks
from minialign.training.collapse import NOTE, UNSEEN, WARNINGS
from minialign.training.folder import (
    METRICS,
    begin,
    check_free,
    clear_rest,
    clear_results,
    state_file,
)
from minialign.training.guard import Guard
from minialign.training.memory import peak_bytes, release_memory
from minialign.training.state import RESULT, Parts, SavedState, write_state
from minialign.weights.tokenizer import Tokenizer

RELEASE_EVERY = 10  # steps; each time costs a few tenths of a second
# What asks a run to stop: Ctrl-C, `kill` and a machine that shuts down, a terminal that is closed.
STOPPERS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupted(Exception):
    """The person asked to stop; the model stands at the start of a step, and that is saved."""


@contextmanager
def stoppers_call(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """What asks to stop calls `handler`; what the shell told to ignore (nohup) stays ignored."""
    heard = [number for number in STOPPERS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def end_at_once(signum: int, frame: object) -> None:
    """Raises KeyboardInterrupt, and nothing disturbs the end."""
    for number in STOPPERS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


class Run:
    """Writes one run folder, shows progress, and keeps what is needed to go on.

    Nothing is written before `Run.create` or `Run.resume` is called.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        seed: int = 0,
        micro_batch_tokens: int = 1024,
        save_every: float = 60.0,
        guard: Guard | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.seed = seed
        self.micro_batch_tokens = micro_batch_tokens
        self.save_every = save_every  # seconds
        self.guard = guard or Guard()
        # for what a method writes or reads as text
        self.tokenizer: Tokenizer | None = None
        self.interrupted = False
        self.signal: int = signal.SIGINT  # the one that asked to stop
        self.saved = "nothing was saved yet"
        self.seconds: dict[str, float] = {}  # by phase, the whole run
        self.peak_bytes: dict[str, int] = {}  # by phase, where it raised the process's peak
        self._phases: dict[str, float] = {}  # by phase, since the last metrics line
        self._metrics = ""  # what metrics.jsonl holds
        self._earlier = 0.0  # seconds that the run took in other processes
        self._resumed: SavedState | None = None
        self._save: Callable[[], None] | None = None
        self._began = self._saved_at = time.monotonic()
        self._bar: tqdm | None = None

    @classmethod
    def create(
        cls, folder: str | Path, config: dict[str, Any], *, overwrite: bool = False, **options: Any
    ) -> Run:
        """A new run; `config` is written to config.json.

        Raises InputError if the folder holds something else.
        """
        run = cls(folder, **options)
        check_free(run.folder, overwrite, locked=True)
        begin(run.folder, config)
        return run

    @classmethod
    def resume(cls, folder: str | Path, **options: Any) -> Run:
        """Goes on with an interrupted run; without a state it begins again.

        Raises InputError where the state is not whole.
        """
        run = cls(folder, **options)
        if not state_file(run.folder).exists():
            clear_results(run.folder)
            clear_rest(run.folder)
            return run
        run._resumed = state = SavedState(state_file(run.folder))
        run.seconds, run._earlier = dict(state.facts["seconds"]), state.facts["elapsed"]
        run._metrics, run.saved = state.metrics, _kept(state.facts["stage"], state.facts["step"])
        replace_text(run.folder / METRICS, run._metrics)
        for line in run.lines:
            run.guard.see_again(line)
        return run

    @property
    def is_new(self) -> bool:
        """Whether nothing was done yet, in this process or before it."""
        return self._resumed is None

    def begin_at(self, stage: str, step: int, parts: Parts, metrics: str) -> None:
        """Makes this a run that was interrupted at `step`; `metrics` are its lines so far."""
        self._metrics = metrics
        self._save_state(stage, step, parts)
        self._resumed = SavedState(state_file(self.folder))
        replace_text(self.folder / METRICS, metrics)

    # ---- randomness ----

    def derive_seed(self, purpose: str, number: int) -> int:
        digest = hashlib.sha256(f"{self.seed}/{purpose}/{number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    # ---- progress ----

    def steps(self, stage: str, first: int, total: int, parts: Parts) -> Iterator[int]:
        """Counts steps with a bar; saves now and then, and when the person asks to stop."""
        if first > total:
            raise InputError(f"{self.folder}: the state is of step {first} of {total}: start anew")
        self._bar = _bar(total=total, initial=first, desc=stage.upper(), unit="step")
        self.guard.begin(parts.model, stage, first, total, self.elapsed)
        try:
            for step in range(first, total):
                if over := self.guard.why_over(step, self.elapsed):
                    self.note(stage, f"ended after step {step} of {total}: {over}")
                    break
                self._save = partial(self._save_state, stage, step, parts)
                # At its start a stage has all that the one before it came to.
                if step == 0 or time.monotonic() - self._saved_at > self.save_every:
                    self.save()
                self.interrupted = ranks.anybody(self.interrupted)
                self._stop_if_asked()
                if (step - first) % RELEASE_EVERY == 0:
                    release_memory()
                yield step
                self._bar.update()
        finally:
            self._bar.close()
            self._bar = None

    @property
    def is_last(self) -> bool:
        """Whether the step that was just taken, and is not logged yet, is its stage's last."""
        return self.guard.is_last(self.elapsed)

    def sampling_progress(
        self, round_number: int, completions: int
    ) -> Callable[[int, int, int], None]:
        """A sampler callback: a bar of written tokens, and an end when the person asks to stop.

        Round 0 is what the base model answers before the training.
        """
        name = f"round {round_number}" if round_number else "anchors"
        bar = _bar(desc=f"  {name}: writing {completions} answers", unit="token", leave=False)

        def on_token(prompt: int, sample: int, token: int) -> None:
            bar.update()
            if self.interrupted:
                bar.close()
            self._stop_if_asked()

        return on_token

    def say(self, stage: str, text: str, unseen: float | None) -> None:
        """A line for the person, above the progress bar; `unseen` is the held-out loss, if any."""
        held_out = "" if unseen is None else f"; unseen texts {unseen:.2f} nats per token"
        tqdm.write(f"{stage:>12}  {text}{held_out}", file=sys.stdout)
        sys.stdout.flush()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charges the time within to a phase, and the memory if it held the most so far."""
        began, before = time.perf_counter(), peak_bytes()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            for book in (self.seconds, self._phases):
                book[name] = book.get(name, 0.0) + spent
            if peak_bytes() > before:
                self.peak_bytes[name] = peak_bytes()

    def log(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the bar's figures."""
        metrics = metrics | self.guard.measured(metrics, self.micro_batch_tokens)
        seconds = {name: round(value, 3) for name, value in self._phases.items()}
        self._write_metrics({"stage": stage, "step": step, **metrics, "seconds": seconds})
        self.guard.offer(metrics.get(UNSEEN))
        if self._bar is not None:
            shown = {"loss": f"{metrics['loss']:.3f}"}
            if "rewards/margins" in metrics:
                shown["margin"] = f"{metrics['rewards/margins']:.2f}"
            speed = metrics["tokens"] / max(1e-9, self._phases.get("train", 0.0))
            self._bar.set_postfix({**shown, "tokens/s": f"{speed:.0f}"}, refresh=False)
        self._phases.clear()

    def log_summary(self, stage: str, metrics: dict[str, Any]) -> None:
        """A line that belongs to a stage as a whole."""
        self._write_metrics({"stage": stage, **metrics})
        if metrics.get(UNSEEN) is not None:
            self.guard.offer(metrics[UNSEEN])

    def note(self, stage: str, text: str, figures: dict[str, float] | None = None) -> None:
        """How a stage ended, for the person and for the record."""
        self.log_summary(stage, {NOTE: text, **(figures or {})})
        self.say(stage, text, None)

    def _write_metrics(self, line: dict[str, Any]) -> None:
        warnings = self.guard.see(line)
        text = json.dumps({**line, WARNINGS: warnings} if warnings else line) + "\n"
        self._metrics += text
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(text)
        for warning in warnings:
            self.say("warning", warning, None)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds."""
        return [json.loads(line) for line in self._metrics.splitlines()]

    def write_lines(self, name: str, records: list[dict[str, Any]]) -> None:
        """A JSON Lines file of the folder anew, as a whole."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        replace_text(self.folder / name, text)

    @property
    def elapsed(self) -> float:
        """Seconds that the run took, in this process and in those before it."""
        return self._earlier + time.monotonic() - self._began

    def write_preview(self, prompt: str, before: str, after: str, cut: Sequence[str] = ()) -> None:
        """`cut` names those of the two answers that the limit cut off."""
        content = {"prompt": prompt, "before": before, "after": after, "cut": list(cut)}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        replace_text(self.folder / "preview.json", text)

    # ---- stopping and going on ----

    @contextmanager
    def catch_signals(self, *, training: bool = False) -> Iterator[None]:
        """What asks to stop raises KeyboardInterrupt; in a training only the second time.

        There, the first one ends the step, saves and raises Interrupted.
        """

        def ask_to_stop(signum: int, frame: object) -> None:
            self.signal = signum
            if self.interrupted or not training:
                end_at_once(signum, frame)
            self.interrupted = True
            # A process that dies is no wish of the person: what is said of it comes later.
            if signum == signal.SIGTERM and ranks.count() > 1:
                return
            print(
                "\nfinishing this step, then saving (Ctrl-C again: stop at once)", file=sys.stderr
            )

        with stoppers_call(ask_to_stop):
            yield

    def end_training(self, model: CausalLM) -> None:
        """From here on `--resume` trains no more: it writes the result, and what follows from it.

        Raises Interrupted if the person asked to stop.
        """
        if found := self.guard.put_back(model):
            self.note(*found)
        self._save = partial(self._save_state, RESULT, 0, Parts(model))
        self.save()
        self._stop_if_asked()

    def restore_result(self, model: CausalLM) -> bool:
        """Whether the training was over; then all adapters are put back."""
        if self._resumed is None or self._resumed.facts["stage"] != RESULT:
            return False
        self._resumed.restore_result(model)
        model.eval()
        return True

    def log_end(self) -> None:
        """The last line of metrics.jsonl, which is written anew in case that it was spoiled."""
        seconds = {name: round(value, 1) for name, value in self.seconds.items()}
        self.log_summary("done", {"seconds": seconds, "peak_bytes": self.peak_bytes})
        replace_text(self.folder / METRICS, self._metrics)

    def finish(self) -> None:
        """Everything is written: there is nothing left to go on with."""
        shutil.rmtree(state_file(self.folder).parent, ignore_errors=True)

    def _stop_if_asked(self) -> None:
        if self.interrupted:
            self.stop()

    def stop(self) -> NoReturn:
        """Saves the state at the start of the step, and raises Interrupted."""
        self.save()
        raise Interrupted

    def save(self) -> None:
        """Writes the state as it is now; a step that is under way begins with it."""
        if self._save is not None:
            with self.phase("save"):
                self._save()
        self._saved_at = time.monotonic()

    def _save_state(self, stage: str, step: int, parts: Parts) -> None:
        facts = {
            **{"stage": stage, "step": step, "elapsed": self.elapsed},
            **{"seconds": self.seconds, "phases": self._phases},
        }
        write_state(state_file(self.folder), parts, facts, self._metrics)
        self.saved = _kept(stage, step)

    def restore(self, stage: str, parts: Parts) -> int | None:
        """The step at which `stage` begins, everything put back; None if it is over."""
        parts.services["guard"] = self.guard
        state = self._resumed
        if state is None:
            return 0
        state.restore_adapters(parts.model)
        if stage != state.facts["stage"]:  # the one that was cut short is still to come
            return None
        state.restore(parts)
        # A step's line says that a round was written in it, also where another process wrote it.
        self._phases = dict(state.facts["phases"])
        self._resumed = None
        return state.facts["step"]


def _kept(stage: str, step: int) -> str:
    """What a person who stops a run wants to know."""
    if stage == RESULT:
        return "what was trained is kept"
    return f"what came before step {step} of {stage} is kept"


def _bar(**options: Any) -> tqdm:
    """A progress bar on a terminal; silent in a pipe."""
    return tqdm(dynamic_ncols=True, disable=not sys.stderr.isatty(), **options)
