"""A training run, from a job to a run folder.

prepare    flags, files and knobs: all that can be refused is, before a model loads
load       the frozen base model with a fresh adapter, and the plan
train      the method's own file
save       the adapters
show       before and after, and what to do next
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.data.knobs import require
from minialign.errors import InputError
from minialign.training.knobs import TrainOptions

if TYPE_CHECKING:
    from minialign.commands.job import Job
    from minialign.model.transformer import CausalLM
    from minialign.policy.sample import Completion
    from minialign.training.run import Run


def run_job(job: Job, again: str = "") -> None:
    """What train.py shows. `again` is the command that goes on after Ctrl-C."""
    if job.options.inspect:
        from minialign.commands.inspect import inspect

        print(inspect(job))
        return
    session = load(job)
    train(session, again)
    save(session)
    show(session)


# ---- prepare ----


def prepare(options: TrainOptions, given: dict[str, Any]) -> Job:
    """Everything that can be refused is, here. A sentence of feedback, or a mailbox, becomes data
    first.
    """
    from minialign.commands.import_mail import imported, is_to_import
    from minialign.commands.job import check_method, prepare_job

    if options.demos and not options.resume and is_to_import(Path(options.demos)):
        # Before the minutes that a large mailbox may take.
        check_method(options, given)
        demos, out = imported(options.demos, options.out)
        options = dataclasses.replace(options, demos=demos, out=out)
        return dataclasses.replace(prepare_job(options, given), asks=sys.stdin.isatty())
    if options.feedback and not options.resume:
        options = with_data(options, given)
    return prepare_job(options, given)


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
    before: Completion


def load(job: Job) -> Session:
    """The base model with the adapter to train; says what will happen, and opens the folder."""
    from minialign.commands.plan import Speed, describe
    from minialign.weights.load import load_for

    model = load_for(job.options.model, job.checkpoint, job.tokenizer, job.dtype, job.device)
    model.revision = job.options.revision or None
    model.set_activation_checkpointing(job.options.activation_checkpointing)
    _add_adapter(model, job)
    # All refusals come before this.
    print("timing a few steps ...", file=sys.stderr, flush=True)
    print(describe(model, job, Speed.measured(model, job.work)), flush=True)
    if job.asks and input("train? [Y/n] ").strip().lower() in ("n", "no"):
        raise InputError(f"nothing was trained: edit {job.options.demos} and call again")
    before = answer(model, job, None)
    return Session(job, model, open_run(job), before)


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


def open_run(job: Job) -> Run:
    from minialign.training.run import Run

    options = job.options
    how = {"seed": options.seed, "micro_batch_tokens": options.micro_batch_tokens}
    if options.resume:
        run = Run.resume(job.out, **how)
    else:
        record = {"command": f"python {shlex.join(sys.argv)}", **job.record()}
        run = Run.create(job.out, record, overwrite=options.overwrite, **how)
    run.tokenizer = job.tokenizer
    return run


def train(session: Session, again: str = "") -> None:
    """The method's own file does it. After Ctrl-C a line says how to go on."""
    from minialign.training.run import Interrupted

    job, run = session.job, session.run
    try:
        with run.catch_interrupts():
            job.method.train(session.model, job.lessons, job.knobs, run)
    except Interrupted:
        again = again or f"python train.py --resume {shlex.quote(str(job.out))}"
        print(f"saved; go on with: {again}", file=sys.stderr)
        sys.exit(130)


def save(session: Session) -> None:
    """The result, and what each earlier stage ended with."""
    from minialign.policy.adapters import active_adapter
    from minialign.policy.peft import save_adapter
    from minialign.training.folder import STAGE_ADAPTER

    job, model = session.job, session.model
    for stage in job.card.stages[:-1]:
        save_adapter(model, job.out / f"{STAGE_ADAPTER}{stage.name}", stage.name)
    save_adapter(model, job.out / "adapter", active_adapter(model))


def show(session: Session) -> None:
    """One prompt before and after, the report, and what to do next."""
    from minialign.commands.sources import evaluation_command
    from minialign.evaluation.report.page import write_report
    from minialign.policy.adapters import active_adapter

    job, run = session.job, session.run
    after = answer(session.model, job, active_adapter(session.model))
    asked, answers = job.prompt[-1]["content"], {"before": session.before, "after": after}
    cut = [name for name, found in answers.items() if found.finish_reason == "length"]
    run.write_preview(asked, session.before.text, after.text, cut)
    run.finish()
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.seconds.items())
    print(f"done in {run.elapsed:.0f} s ({spent})\n")
    print(f"--- prompt ---\n{asked}\n")
    for name, found in answers.items():
        title = f"{name}, cut off after {job.preview_tokens} tokens" if name in cut else name
        print(f"--- {title} ---\n{found.text}\n")
    print(f"all of it on one page: {write_report(job.out)}")
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
