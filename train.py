"""Teach a language model one person's way of writing, or one sentence of feedback.

python train.py --method ditto --demos emails.jsonl
python train.py --method c3po --data examples/c3po/cheers
python train.py --method dpo --data pairs.jsonl
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.commands.cli import OneLineParser, add_flags, run_main
from minialign.data.knobs import config_from_flags
from minialign.methods.cards import FEEDBACK_METHODS
from minialign.methods.knobs import C3PO_RECIPES, RECIPES
from minialign.training.knobs import TrainOptions

if TYPE_CHECKING:
    from minialign.commands.feedback_job import FeedbackJob
    from minialign.commands.job import Job
    from minialign.model.transformer import CausalLM
    from minialign.training.run import Run


def parse(arguments: list[str]) -> tuple[TrainOptions, dict[str, Any]]:
    """The options, and the knobs that were given: which there are depends on the method."""
    parser = OneLineParser("train.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    add_flags(parser, TrainOptions, "options [default]", TrainOptions())
    recipes = C3PO_RECIPES if learns_from_feedback(arguments) else RECIPES
    title = "knobs [laptop recipe]; --recipe paper has the sources' values"
    add_flags(parser, type(recipes["laptop"]), title, recipes["laptop"])
    if recipes is RECIPES:
        parser.epilog = "C3PO has knobs of its own: train.py --method c3po --help"
    given = vars(parser.parse_args(arguments))
    if not given.get("resume") and (given.get("data") or given.get("feedback")):
        given.setdefault("method", "c3po")
    names = TrainOptions.__dataclass_fields__
    options = config_from_flags(TrainOptions(), {k: v for k, v in given.items() if k in names})
    return options, {k: v for k, v in given.items() if k not in names}


def learns_from_feedback(arguments: list[str]) -> bool:
    """Told before the flags are parsed, and of a run that is to go on by its record."""
    peek = OneLineParser("train.py", add_help=False, allow_abbrev=False)
    for name in ("--method", "--data", "--feedback", "--resume"):
        peek.add_argument(name, default="")
    seen, _ = peek.parse_known_args(arguments)
    if seen.resume:
        from minialign.training.folder import read_run_record

        return bool(read_run_record(seen.resume)["options"].get("data"))
    return bool(seen.data or seen.feedback) or seen.method in set(FEEDBACK_METHODS) - {"sft"}


def main() -> None:
    arguments = sys.argv[1:]
    options, knobs = parse(arguments)
    from_feedback = learns_from_feedback(arguments)
    if options.feedback and not options.resume:
        from minialign.commands.feedback_job import check_flags

        check_flags(options, knobs)  # refuses what is wrong before the work
        options = with_data(options)
    if options.sweep and not options.resume:
        sweep(options, knobs, from_feedback)
        return
    job = prepared(options, knobs, from_feedback)
    if options.inspect:
        from minialign.commands.feedback_job import inspect_pair
        from minialign.commands.job import Job, inspect

        print(inspect(job) if isinstance(job, Job) else inspect_pair(job))
        return
    run_job(job)


def prepared(
    options: TrainOptions, knobs: dict[str, Any], from_feedback: bool
) -> Job | FeedbackJob:
    """Everything that can be refused is, here."""
    if from_feedback:
        from minialign.commands.feedback_job import prepare_feedback

        return prepare_feedback(options, knobs)
    from minialign.commands.job import prepare

    return prepare(options, knobs)


def run_job(job: Job | FeedbackJob, again: str = "") -> None:
    """Trains. After Ctrl-C it says how to go on: `again`, or by resuming the run."""
    from minialign.commands.job import Job
    from minialign.training.run import Interrupted

    try:
        if isinstance(job, Job):
            train(job)
        else:
            train_from_feedback(job)
    except Interrupted:
        again = again or f"python train.py --resume {shlex.quote(str(job.out))}"
        print(f"saved; go on with: {again}", file=sys.stderr)
        sys.exit(130)


def sweep(options: TrainOptions, knobs: dict[str, Any], from_feedback: bool) -> None:
    """All runs are checked before the first one is trained; one page compares them in the end."""
    from minialign.commands.sweep import (
        can_go_on,
        check_same,
        folder_name,
        grid,
        is_finished,
        summary,
    )
    from minialign.data.knobs import require
    from minialign.evaluation.report.page import write_comparison
    from minialign.methods.cards import is_read_by_sft

    require(bool(options.out), "--sweep needs --out: the folder that its runs lie in")
    require(not options.inspect, "--inspect shows a single run's tokens: leave out --sweep")
    folders, jobs = [], []
    for point in grid(options.sweep):
        for name in point:
            require(name not in knobs, f"--sweep {name}: leave out --{name.replace('_', '-')}")
            require(
                from_feedback or options.method != "sft" or is_read_by_sft(name),
                f"--sweep {name}: --method sft makes no use of it (its own: sft_...)",
            )
        folder = Path(options.out) / folder_name(point)
        folders.append(folder)
        own = dataclasses.replace(options, sweep=(), out=str(folder))
        if (folder / "config.json").exists() and not options.overwrite:
            # inspect: prepared beside what is there
            wanted = dataclasses.replace(own, inspect=True)
            check_same(folder, prepared(wanted, knobs | point, from_feedback))
            if is_finished(folder):
                continue
            if can_go_on(folder):
                jobs.append(prepared(TrainOptions(resume=str(folder)), {}, from_feedback))
                continue
            own = dataclasses.replace(own, overwrite=True)  # stopped before it saved anything
        jobs.append(prepared(own, knobs | point, from_feedback))
    for job in jobs:
        if job.options.overwrite and job.out.exists():  # checked: nothing but a run is in there
            shutil.rmtree(job.out)
    # after an interruption what is finished stays, also where the sweep began with --overwrite
    same = shlex.join(part for part in sys.argv if part != "--overwrite")
    for number, job in enumerate(jobs):
        print(f"=== run {number + 1} of {len(jobs)}: {job.out.name} ===", flush=True)
        run_job(job, again=f"python {same}")
    print(f"\n{summary(folders)}\n")
    print(f"on one page: {write_comparison(folders, Path(options.out) / 'comparison.html')}")


def with_data(options: TrainOptions) -> TrainOptions:
    """Makes the data folder of a sentence; one that is there and complete is taken as it is."""
    from minialign.commands.feedback import FeedbackOptions, make_data
    from minialign.data.knobs import require
    from minialign.feedback.knobs import PipelineConfig
    from minialign.training.folder import check_free

    require(not options.data, "give --feedback or --data, not both")
    wanted = FeedbackOptions(
        feedback=options.feedback,
        model=options.model,
        revision=options.revision,
        device=options.device,
        dtype=options.dtype,
    )
    out = options.out or str(Path("runs") / wanted.folder.name)
    if not options.sweep:  # whose folder holds its runs
        check_free(Path(out), options.overwrite)  # before the hour that the data may take
    folder = make_data(wanted, PipelineConfig(seed=options.seed))
    return dataclasses.replace(options, feedback="", data=str(folder), out=out)


def train(job: Job) -> None:
    """DITTO, SPIN or SFT, from demonstrations."""
    import torch

    from minialign.commands.plan import Speed, describe
    from minialign.methods.anchors import Anchors
    from minialign.methods.ditto import train_ditto
    from minialign.methods.sft import ADAPTER as SFT
    from minialign.methods.sft import train_sft
    from minialign.methods.spin import train_spin
    from minialign.policy.adapters import active_adapter, apply_lora
    from minialign.policy.peft import save_adapter

    model = load_model(job)
    apply_lora(model, job.config.lora, SFT, torch.Generator().manual_seed(job.options.seed))
    print("timing a few steps ...", file=sys.stderr, flush=True)  # all refusals come before this
    print(describe(model, job, Speed.measured(model, job)), flush=True)
    before = answer(model, job, None)
    methods = {"sft": train_sft, "ditto": train_ditto, "spin": train_spin}
    run = open_run(job)
    with run.catch_interrupts():
        anchors = Anchors.written(model, job.anchor_prompts, job.config.anchors, run)
        methods[job.options.method](
            model, job.train, job.config, run, job.held_out, anchors=anchors
        )
    if active_adapter(model) != SFT:
        save_adapter(model, job.out / "adapter-sft", SFT)
    finish(model, job, run, before)


def train_from_feedback(job: FeedbackJob) -> None:
    """C3PO, or one of its baselines, from a folder of feedback or from preference pairs."""
    import torch

    from minialign.commands.plan import describe_feedback
    from minialign.methods.c3po import ADAPTER, train_c3po
    from minialign.policy.adapters import apply_lora, train_only
    from minialign.policy.peft import load_adapter
    from minialign.training.folder import adapter_folder

    model = load_model(job)
    seed = torch.Generator().manual_seed(job.options.seed)
    if job.options.init_adapter and not job.options.resume:  # its state holds the adapter
        load_adapter(model, adapter_folder(job.options.init_adapter), ADAPTER)
        train_only(model, ADAPTER)
    else:
        apply_lora(model, job.config.lora, ADAPTER, seed)
    print("timing a few steps ...", file=sys.stderr, flush=True)
    print(describe_feedback(model, job), flush=True)
    before = answer(model, job, None)
    run = open_run(job)
    with run.catch_interrupts():
        train_c3po(model, job.train, job.config, run, job.held_out)
    finish(model, job, run, before)


def load_model(job: Job | FeedbackJob) -> CausalLM:
    from minialign.weights.load import load_for

    model = load_for(job.options.model, job.checkpoint, job.tokenizer, job.dtype, job.device)
    model.revision = job.options.revision or None
    model.set_activation_checkpointing(job.options.activation_checkpointing)
    return model


def finish(model: CausalLM, job: Job | FeedbackJob, run: Run, before: str) -> None:
    """Saves the result and shows what came of it."""
    from minialign.evaluation.report.page import write_report
    from minialign.policy.adapters import active_adapter
    from minialign.policy.peft import save_adapter

    save_adapter(model, job.out / "adapter", active_adapter(model))
    after = answer(model, job, active_adapter(model))
    run.write_preview(job.prompt[-1]["content"], before, after)
    run.finish()
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.seconds.items())
    print(f"done in {run.elapsed:.0f} s ({spent})\n")
    show(job, before, after, write_report(job.out))


def open_run(job: Job | FeedbackJob) -> Run:
    from minialign.training.run import Run

    options = job.options
    knobs = {"seed": options.seed, "micro_batch_tokens": options.micro_batch_tokens}
    if options.resume:
        run = Run.resume(job.out, **knobs)
    else:
        record = {"command": f"python {shlex.join(sys.argv)}", **job.record()}
        run = Run.create(job.out, record, overwrite=options.overwrite, **knobs)
    run.tokenizer = job.tokenizer
    return run


def answer(model: CausalLM, job: Job | FeedbackJob, adapter: str | None) -> str:
    """What the model says to the preview prompt, a little below temperature 1, as a person asks."""
    from minialign.policy.reference import reference_policy
    from minialign.policy.sample import generate

    room = job.longest + job.longest // 2
    with reference_policy(model, adapter):
        (group,) = generate(
            model,
            job.tokenizer,
            [job.prompt],
            max_new_tokens=room,
            temperature=0.7,
            seed=job.options.seed,
        )
    return group[0].text


def show(job: Job | FeedbackJob, before: str, after: str, report: Path) -> None:
    from minialign.commands.feedback_job import flag_for_test
    from minialign.commands.job import Job

    asked = job.prompt[-1]["content"]
    for title, text in (("prompt", asked), ("before", before), ("after", after)):
        print(f"--- {title} ---\n{text}\n")
    print(f"all of it on one page: {report}")
    out, prompt = shlex.quote(str(job.out)), shlex.quote(asked)
    print(f"next: python sample.py --adapter {out} --prompt {prompt} -n 3")
    if job.held_out if isinstance(job, Job) else job.data.feedback:  # pairs are scored already
        test = "" if isinstance(job, Job) else flag_for_test(job.options.data)
        print(f"      python evaluate.py {out}{test}")


if __name__ == "__main__":
    run_main("train.py", main)
