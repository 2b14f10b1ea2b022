"""The run folder: a person's record of what happened, and enough to go on from.

    config.json     every knob resolved, versions, device, seed
    metrics.jsonl   a line a step
    samples.jsonl   a line a sampled completion
    preview.json    an unseen prompt's answer before and after
    report.html     all of it, to look at
    adapter/        the result, in PEFT's format; adapter-STAGE/ is what an earlier stage ended with
    state/          what --resume needs, one file, replaced as a whole

Randomness is a function of (seed, what for, step) and has no state of its own, so a resumed run
continues bit for bit with no generator to restore.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minialign.data.files import replace_whole
from minialign.training.folder import check_free, state_file
from minialign.training.memory import peak_bytes, release_memory
from minialign.training.state import Parts, SavedState, write_state
from minialign.weights.tokenizer import Tokenizer

SAVE_EVERY_SECONDS = 120.0
RELEASE_EVERY = 10  # steps; each time costs a few tenths of a second


class Interrupted(Exception):
    """The person pressed Ctrl-C; the model stands at the start of a step."""


class Run:
    """Writes one run folder, shows progress, and keeps what is needed to go on.

    Nothing is written before `Run.create` or `Run.resume` is called.
    """

    def __init__(
        self, folder: str | Path, *, seed: int = 0, micro_batch_tokens: int = 1024
    ) -> None:
        self.folder = Path(folder)
        self.seed = seed
        self.micro_batch_tokens = micro_batch_tokens
        # for what a method writes or reads as text
        self.tokenizer: Tokenizer | None = None
        self.interrupted = False
        self.seconds: dict[str, float] = {}  # by phase, the whole run
        self.peak_bytes: dict[str, int] = {}  # by phase, where it raised the process's peak
        self._phases: dict[str, float] = {}  # by phase, since the last metrics line
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
        check_free(run.folder, overwrite)
        if run.folder.exists():
            shutil.rmtree(run.folder)
        run.folder.mkdir(parents=True)
        (run.folder / "config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (run.folder / "metrics.jsonl").touch()
        return run

    @classmethod
    def resume(cls, folder: str | Path, **options: Any) -> Run:
        """Goes on with an interrupted run.

        Raises InputError if there is no whole state to go on from.
        """
        run = cls(folder, **options)
        run._resumed = SavedState(state_file(run.folder))
        metrics = run.folder / "metrics.jsonl"
        os.truncate(metrics, min(run._resumed.facts["metrics_bytes"], metrics.stat().st_size))
        return run

    # ---- randomness ----

    def derive_seed(self, purpose: str, number: int) -> int:
        digest = hashlib.sha256(f"{self.seed}/{purpose}/{number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def seed_step(self, purpose: str, step: int) -> None:
        """Seeds torch's global generator, from which dropout draws."""
        torch.manual_seed(self.derive_seed(purpose, step))

    # ---- progress ----

    def steps(self, stage: str, first: int, total: int, parts: Parts) -> Iterator[int]:
        """Counts steps with a bar; saves now and then, and when the person asks to stop."""
        self._bar = _bar(total=total, initial=first, desc=stage.upper(), unit="step")
        try:
            for step in range(first, total):
                self._save = partial(self._save_state, stage, step, parts)
                if time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS:
                    self.save()
                self._stop_if_asked()
                if (step - first) % RELEASE_EVERY == 0:
                    release_memory()
                yield step
                self._bar.update()
        finally:
            self._bar.close()
            self._bar = None

    def sampling_progress(
        self, round_number: int, completions: int
    ) -> Callable[[int, int, int], None]:
        """A sampler callback: a bar of written tokens, and an end when the person asks to stop."""
        bar = _bar(
            desc=f"  round {round_number}: writing {completions} answers", unit="token", leave=False
        )

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
        seconds = {name: round(value, 3) for name, value in self._phases.items()}
        self._write_metrics({"stage": stage, "step": step, **metrics, "seconds": seconds})
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

    def _write_metrics(self, line: dict[str, Any]) -> None:
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def write_lines(self, name: str, records: list[dict[str, Any]]) -> None:
        """A JSON Lines file of the folder anew, as a whole."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        replace_whole(self.folder / name, lambda path: path.write_text(text, encoding="utf-8"))

    @property
    def elapsed(self) -> float:
        """Seconds since the run was opened in this process."""
        return time.monotonic() - self._began

    def write_preview(self, prompt: str, before: str, after: str, cut: Sequence[str] = ()) -> None:
        """`cut` names those of the two answers that the limit cut off."""
        content = {"prompt": prompt, "before": before, "after": after, "cut": list(cut)}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        replace_whole(
            self.folder / "preview.json", lambda path: path.write_text(text, encoding="utf-8")
        )

    # ---- stopping and going on ----

    @contextmanager
    def catch_interrupts(self) -> Iterator[None]:
        """The first Ctrl-C ends the step, saves and raises Interrupted; a second one stops."""

        def ask_to_stop(signum: int, frame: object) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print(
                "\nfinishing this step, then saving (Ctrl-C again: stop at once)", file=sys.stderr
            )

        before = signal.signal(signal.SIGINT, ask_to_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def finish(self) -> None:
        """The run is complete: there is nothing left to go on with."""
        seconds = {name: round(value, 1) for name, value in self.seconds.items()}
        self.log_summary("done", {"seconds": seconds, "peak_bytes": self.peak_bytes})
        shutil.rmtree(self.folder / "state", ignore_errors=True)

    def _stop_if_asked(self) -> None:
        if self.interrupted:
            self.save()
            raise Interrupted

    def save(self) -> None:
        """Writes the state as it was at the start of the current step."""
        if self._save is not None:
            self._save()
        self._saved_at = time.monotonic()

    def _save_state(self, stage: str, step: int, parts: Parts) -> None:
        facts = {
            "stage": stage,
            "step": step,
            "metrics_bytes": (self.folder / "metrics.jsonl").stat().st_size,
            "seconds": self.seconds,
        }
        write_state(state_file(self.folder), parts, facts)

    def restore(self, stage: str, parts: Parts) -> int | None:
        """The step at which `stage` begins, everything put back; None if it is over."""
        state = self._resumed
        if state is None:
            return 0
        state.restore_adapters(parts.model)
        if stage != state.facts["stage"]:  # the one that was cut short is still to come
            return None
        state.restore(parts)
        self.seconds = state.facts["seconds"]
        self._resumed = None
        return state.facts["step"]


def _bar(**options: Any) -> tqdm:
    """A progress bar on a terminal; silent in a pipe."""
    return tqdm(dynamic_ncols=True, disable=not sys.stderr.isatty(), **options)
