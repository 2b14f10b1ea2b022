"""Teach a language model one person's way of writing.

python train.py --method ditto --demos emails.jsonl
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.cli import OneLineParser, add_flags, config_from_flags, run_main
from minialign.config import LAPTOP, DittoConfig, TrainOptions

if TYPE_CHECKING:
    from minialign.job import Job
    from minialign.model import CausalLM
    from minialign.run import Run


def parse(arguments: list[str]) -> tuple[TrainOptions, dict[str, Any]]:
    """The options, and the knobs that were given."""
    parser = OneLineParser("train.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    add_flags(parser, TrainOptions, "options [default]", TrainOptions())
    add_flags(
        parser, DittoConfig, "knobs [laptop recipe]; --recipe paper has the sources' values", LAPTOP
    )
    given = vars(parser.parse_args(arguments))
    names = TrainOptions.__dataclass_fields__
    options = config_from_flags(TrainOptions(), {k: v for k, v in given.items() if k in names})
    return options, {k: v for k, v in given.items() if k not in names}


def main() -> None:
    options, knobs = parse(sys.argv[1:])
    from minialign.job import inspect, prepare  # heavy imports come after parsing

    job = prepare(options, knobs)
    if options.inspect:
        print(inspect(job))
        return
    train(job)


def train(job: Job) -> None:
    import torch

    from minialign.evaluation.report import write_report
    from minialign.lora import active_adapter, apply_lora, save_adapter
    from minialign.methods.ditto import train_ditto
    from minialign.methods.sft import ADAPTER as SFT
    from minialign.methods.sft import train_sft
    from minialign.methods.spin import train_spin
    from minialign.plan import Speed, describe
    from minialign.run import Interrupted
    from minialign.weights import load_for

    model = load_for(job.options.model, job.checkpoint, job.tokenizer, job.dtype, job.device)
    model.revision = job.options.revision or None
    model.set_activation_checkpointing(job.options.activation_checkpointing)
    apply_lora(model, job.config.lora, SFT, torch.Generator().manual_seed(job.options.seed))
    print("timing a few steps ...", file=sys.stderr, flush=True)  # all refusals come before this
    print(describe(model, job, Speed.measured(model, job)), flush=True)
    before = answer(model, job, None)
    run = open_run(job)
    began = time.perf_counter()
    try:
        with run.catch_interrupts():
            methods = {"sft": train_sft, "ditto": train_ditto, "spin": train_spin}
            methods[job.options.method](model, job.train, job.config, run, job.held_out)
    except Interrupted:
        again = f"python train.py --resume {shlex.quote(str(job.out))}"
        print(f"saved; go on with: {again}", file=sys.stderr)
        sys.exit(130)
    if active_adapter(model) != SFT:
        save_adapter(model, job.out / "adapter-sft", SFT)
    save_adapter(model, job.out / "adapter", active_adapter(model))
    after = answer(model, job, active_adapter(model))
    run.write_preview(job.prompt[-1]["content"], before, after)
    run.finish()
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.seconds.items())
    print(f"done in {time.perf_counter() - began:.0f} s ({spent})\n")
    show(job, before, after, write_report(job.out))


def open_run(job: Job) -> Run:
    from minialign.run import Run

    options = job.options
    knobs = {"seed": options.seed, "micro_batch_tokens": options.micro_batch_tokens}
    if options.resume:
        run = Run.resume(job.out, **knobs)
    else:
        record = {"command": f"python {shlex.join(sys.argv)}", **job.record()}
        run = Run.create(job.out, record, overwrite=options.overwrite, **knobs)
    run.tokenizer = job.tokenizer
    return run


def answer(model: CausalLM, job: Job, adapter: str | None) -> str:
    """What the model says to the preview prompt, a little below temperature 1, as a person asks."""
    from minialign.lora import reference_policy
    from minialign.sampler import generate

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


def show(job: Job, before: str, after: str, report: Path) -> None:
    asked = job.prompt[-1]["content"]
    for title, text in (("prompt", asked), ("before", before), ("after", after)):
        print(f"--- {title} ---\n{text}\n")
    print(f"all of it on one page: {report}")
    out, prompt = shlex.quote(str(job.out)), shlex.quote(asked)
    print(f"next: python sample.py --adapter {out} --prompt {prompt} -n 3")
    if job.held_out:
        print(f"      python evaluate.py {out}")


if __name__ == "__main__":
    run_main("train.py", main)
