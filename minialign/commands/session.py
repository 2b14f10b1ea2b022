"""A training run, from a job to a run folder.

prepare    flags, files and knobs: all that can be refused is, before a model loads
load       the frozen base model with a fresh adapter, and the plan
train      the method's own file
save       the adapters
show       before and after, and what to do next
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.data.knobs import require
from minialign.errors import InputError
from minialign.training.knobs import TrainOptions

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from minialign.commands.job import Job
    from minialign.commands.plan import Speed
    from minialign.model.transformer import CausalLM
    from minialign.policy.sample import Completion
    from minialign.training.run import Run


@dataclass
class Base:
    """A frozen model for several runs, one after the other; the first one loads and times it."""

    model: CausalLM | None = None
    speed: Speed | None = None


def run_job(job: Job, again: str = "", base: Base | None = None) -> None:
    """What train.py shows. `again` is the command that goes on after Ctrl-C, if not --resume."""
    if job.options.inspect:
        from minialign.commands.inspect import inspect

        print(inspect(job))
        return
    from minialign.training import ranks
    from minialign.training.run import end_at_once, stoppers_call

    with stoppers_call(end_at_once):
        session = load(job, base)
    session.again = again or session.again
    train(session)
    if not ranks.is_first():
        return
    save(session)
    show(session)


# ---- prepare ----


def prepare(options: TrainOptions, given: dict[str, Any]) -> Job:
    """Everything that can be refused is, here. A sentence of feedback, or a mailbox, becomes data
    first.
    """
    from minialign.commands.bounds import check_memory
    from minialign.commands.continued import with_more
    from minialign.commands.import_mail import imported, is_to_import
    from minialign.commands.job import check_method, prepare_job

    if options.continue_ and not options.resume:
        options = with_more(options, given)
    elif options.demos and not options.resume and is_to_import(Path(options.demos)):
        # Before the minutes that a large mailbox may take.
        check_method(options, given)
        demos, out = imported(options.demos, options.out)
        options = dataclasses.replace(options, demos=demos, out=out)
        return dataclasses.replace(prepare_job(options, given), asks=sys.stdin.isatty())
    if options.feedback and not options.resume:
        options = with_data(options, given)
    job = prepare_job(options, given)
    check_memory(job)
    return job


def with_data(options: TrainOptions, given: dict[str, Any]) -> TrainOptions:
    """Makes the data folder of a sentence; one that is there and complete is taken as it is."""
    from minialign.commands.feedback import FeedbackOptions, make_data
    from minialign.commands.job import check_method, with_model
    from minialign.feedback.knobs import PipelineConfig
    from minialign.training.folder import check_free
    from minialign.weights.devices import pick_device

    require(not options.data, "give --feedback or --data, not both")
    require(not options.demos, "give --demos or --feedback, not both")
    require(not options.votes, "give --votes or --feedback, not both")
    # Before the hour that the data may take.
    check_method(options, given)
    # Whoever is trained writes the answers.
    options = with_model(options, pick_device(options.device))
    wanted = FeedbackOptions(
        feedback=options.feedback,
        model=options.model,
        revision=options.revision,
        device=options.device,
        dtype=options.dtype,
        base_dtype=options.base_dtype,
    )
    out = options.out or str(Path("runs") / wanted.folder.name)
    # A sweep's folder holds its runs.
    if not options.sweep:
        check_free(Path(out), options.overwrite)
    folder = make_data(wanted, PipelineConfig(seed=options.seed))
    return dataclasses.replace(options, feedback="", data=str(folder), out=out)


# ---- load, train, save, show ----


@dataclass
class Session:
    """A job with its model and its run folder."""

    job: Job
    model: CausalLM
    run: Run
    lock: BaseFileLock
    before: Completion
    again: str


def load(job: Job, base: Base | None = None) -> Session:
    """The base model with the adapter to train; says what will happen, and opens the folder."""
    from minialign.commands.bounds import check_time
    from minialign.commands.plan import Speed, describe
    from minialign.training import ranks

    base = base or Base()
    model = base.model = _bare(base.model) if base.model else _loaded(job)
    _add_adapter(model, job)
    # All refusals come before this.
    if base.speed is None:
        print("timing a few steps ...", file=sys.stderr, flush=True)
        base.speed = Speed.measured(model, job.work)
    speed = base.speed
    check_time(job, speed)
    print(describe(model, job, speed), flush=True)
    if job.asks and ranks.is_first() and input("train? [Y/n] ").strip().lower() in ("n", "no"):
        raise InputError(f"nothing was trained: edit {job.options.demos} and call again")
    before = answer(model, job, None)
    again = f"{ranks.launcher()} train.py --resume {shlex.quote(str(job.out))}"
    return Session(job, model, *open_run(job), before, again)


def _loaded(job: Job) -> CausalLM:
    from minialign.weights.load import load_for

    how = job.dtype, job.device, job.base_dtype
    model = load_for(job.options.model, job.checkpoint, job.tokenizer, *how)
    model.revision = job.options.revision or None
    model.set_activation_checkpointing(job.options.activation_checkpointing)
    return model


def _bare(model: CausalLM) -> CausalLM:
    """A model as it was loaded: without the adapters of an earlier run."""
    from minialign.policy.adapters import adapter_names, remove_adapter
    from minialign.training.memory import release_memory

    for name in adapter_names(model):
        remove_adapter(model, name)
    release_memory()
    return model


def _add_adapter(model: CausalLM, job: Job) -> None:
    """A fresh one under the first stage's name, or the one that --init-adapter names."""
    import torch

    from minialign.policy.adapters import apply_lora, train_only
    from minialign.policy.peft import load_adapter
    from minialign.training.folder import adapter_folder

    name = job.card.stages[0].name
    # A run that is resumed finds its adapter in its state.
    if job.options.init_adapter and not job.options.resume:
        load_adapter(model, adapter_folder(job.options.init_adapter), name)
        train_only(model, name)
        return
    generator = torch.Generator().manual_seed(job.options.seed)
    apply_lora(model, job.knobs.lora, name, generator)


def open_run(job: Job) -> tuple[Run, BaseFileLock]:
    """The run in its folder, and the lock that keeps other processes out of it.

    Of a run's own processes the first one opens it, and only then the others, which do not write.
    """
    from filelock import FileLock

    from minialign.training import ranks
    from minialign.training.guard import Guard
    from minialign.training.silent import Silent

    options = job.options
    how: dict[str, Any] = {
        name: getattr(options, name) for name in ("seed", "micro_batch_tokens", "save_every")
    }
    limits = (options.keep, options.stop_on_collapse, options.time_budget)
    how["guard"] = Guard(*limits, job.held_out_demonstrations)
    with ranks.in_turn():
        if ranks.is_first():
            return _open_run(job, how)
        run = Silent.resume(job.out, **how) if options.resume else Silent(job.out, **how)
        run.tokenizer = job.tokenizer
        # One that nobody holds.
        return run, FileLock(os.devnull)


def _open_run(job: Job, how: dict[str, Any]) -> tuple[Run, BaseFileLock]:
    from minialign.training import ranks
    from minialign.training.folder import lock_folder
    from minialign.training.run import Run

    options = job.options
    # A new folder appears with all that is needed to go on, and cannot be locked before.
    lock = lock_folder(job.out) if job.out.exists() else None
    try:
        if options.resume:
            _check_same(job)
            run = Run.resume(job.out, **how)
        else:
            command = f"{ranks.launcher()} {shlex.join(sys.argv)}"
            record = {"command": command, **job.record()}
            run = Run.create(job.out, record, overwrite=options.overwrite, **how)
    except BaseException as error:
        if lock:
            lock.release()
        if isinstance(error, OSError | UnicodeError):
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{job.out}: {reason}: nothing was begun") from None
        raise
    run.tokenizer = job.tokenizer
    return run, lock or lock_folder(job.out)


def _check_same(job: Job) -> None:
    """Raises InputError where another process ended or replaced the run while the model loaded."""
    from minialign.training.folder import read_run_record
    from minialign.training.state import check_unfinished

    check_unfinished(job.out)
    if read_run_record(job.out) != job.resumed:
        raise InputError(f"{job.out}: another run was begun here meanwhile: --resume that one")


@contextmanager
def protected(session: Session, *, training: bool = False) -> Iterator[None]:
    """Whatever ends a run early, the last state stays, and one line says how to go on from it."""
    from minialign.training import ranks
    from minialign.training.run import Interrupted

    run, go_on = session.run, f"go on with: {session.again}"
    try:
        with run.catch_signals(training=training):
            try:
                yield
            except Interrupted:
                print(f"saved; {go_on}", file=sys.stderr)
                sys.exit(128 + run.signal)
            except KeyboardInterrupt:
                print(f"\nstopped; {run.saved}; {go_on}", file=sys.stderr)
                sys.exit(128 + run.signal)
            except ranks.Lost as error:
                raise InputError(f"{run.folder}: {error}; {run.saved}; {go_on}") from None
            except BrokenPipeError:
                raise
            except Exception as error:
                if reason := _lacking(error):
                    ranks.speak()
                    raise InputError(
                        f"{run.folder}: {reason}; {run.saved}; make room, then {go_on}"
                    ) from None
                raise
    except BaseException:
        session.lock.release()
        raise


def _lacking(error: Exception) -> str:
    """What the machine does not have enough of; empty where that is not the matter."""
    import torch
    from safetensors import SafetensorError

    text = " ".join(str(error).split())[:200]
    is_allocation = isinstance(error, RuntimeError) and "alloc" in text
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or is_allocation:
        return "out of memory"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or text}"
    return text if isinstance(error, SafetensorError) else ""


def train(session: Session) -> None:
    """The method's own file does it. A run that was trained already is only put back."""
    job, run, model = session.job, session.run, session.model
    with protected(session, training=True):
        if not run.restore_result(model):
            if job.options.continue_ and run.is_new:
                finished = Path(job.options.continue_)
                job.method.take_over(model, job.lessons, job.knobs, run, finished)
            job.method.train(model, job.lessons, job.knobs, run)
            run.end_training(model)


def save(session: Session) -> None:
    """The result, and what each earlier stage ended with."""
    from minialign.policy.adapters import active_adapter
    from minialign.training.folder import STAGE_ADAPTER

    job, model = session.job, session.model
    with protected(session):
        for stage in job.card.stages[:-1]:
            _save_whole(model, job.out / f"{STAGE_ADAPTER}{stage.name}", stage.name)
        _save_whole(model, job.out / "adapter", active_adapter(model))


def _save_whole(model: CausalLM, folder: Path, name: str | None) -> None:
    """An adapter's files, one by one; the one by which an adapter is known comes last."""
    from minialign.data.files import PARTIAL, sync
    from minialign.policy.peft import save_adapter

    partial = folder.with_name(folder.name + PARTIAL)
    save_adapter(model, partial, name)
    folder.mkdir(exist_ok=True)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "adapter_config.json"):
        sync(file)
        os.replace(file, folder / file.name)
    partial.rmdir()
    sync(folder)


def show(session: Session) -> None:
    """One prompt before and after, the report, and what to do next."""
    with protected(session):
        _show(session)
    session.lock.release()


def _show(session: Session) -> None:
    from minialign.commands.sources import evaluation_command
    from minialign.evaluation.report.card import write_card
    from minialign.evaluation.report.page import write_report
    from minialign.policy.adapters import active_adapter
    from minialign.training.collapse import NOTE

    job, run = session.job, session.run
    after = answer(session.model, job, active_adapter(session.model))
    asked, answers = job.prompt[-1]["content"], {"before": session.before, "after": after}
    cut = [name for name, found in answers.items() if found.finish_reason == "length"]
    run.write_preview(asked, session.before.text, after.text, cut)
    run.log_end()
    report = write_report(job.out)
    run.finish()
    write_card(job.out, job.out / "adapter")
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.seconds.items())
    notes = "".join(f"; {line['stage']}: {line[NOTE]}" for line in run.lines if NOTE in line)
    print(f"done in {run.elapsed:.0f} s ({spent}){notes}\n")
    print(f"--- prompt ---\n{asked}\n")
    for name, found in answers.items():
        title = f"{name}, cut off after {job.preview_tokens} tokens" if name in cut else name
        print(f"--- {title} ---\n{found.text}\n")
    print(f"all of it on one page: {report}")
    out, prompt = shlex.quote(str(job.out)), shlex.quote(asked)
    print(f"next: python sample.py --adapter {out} --prompt {prompt} -n 3")
    if evaluation := evaluation_command(job.out, job.source):
        print(f"      {evaluation}")


def answer(model: CausalLM, job: Job, adapter: str | None) -> Completion:
    """What the model says to the preview prompt, a little below temperature 1, as a person asks."""
    from minialign.policy.reference import reference_policy
    from minialign.policy.sample import generate

    with reference_policy(model, adapter):
        (group,) = generate(
            model,
            job.tokenizer,
            [job.prompt],
            max_new_tokens=job.preview_tokens,
            temperature=0.7,
            seed=job.options.seed,
        )
    return group[0]
