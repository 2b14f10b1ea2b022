"""What a run is said to hold: by part, from shapes, as large as what it will really read."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
from helpers.workplaces import write_workplace

from minialign.commands.bounds import outline, replanned
from minialign.commands.job import Job, prepare_job
from minialign.commands.needs import WASTE, activation_bytes, memory_of
from minialign.commands.train import parse
from minialign.data.records import Example
from minialign.methods import ditto
from minialign.methods.knobs import PAPER
from minialign.methods.pool import ComparisonPool
from minialign.policy.knobs import SamplingConfig
from minialign.policy.packing import distinct_tokens, largest_part, micro_batches
from minialign.policy.sample import Completion, cache_bytes
from minialign.weights.load import load_for


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    write_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    return prepare_job(*parse("--demos demos.jsonl --model toy --lora-rank 4".split()))


def planned(job: Job, **changes: object) -> Job:
    """With options or knobs of these values."""
    known = vars(job.options)
    options = {name: value for name, value in changes.items() if name in known}
    knobs = {name: value for name, value in changes.items() if name not in known}
    return replanned(
        job,
        options=dataclasses.replace(job.options, **options),
        knobs=dataclasses.replace(job.knobs, **knobs),
    )


def test_the_outline_is_the_model_but_for_its_numbers(job: Job) -> None:
    for dtype in ("float32", "bfloat16"):
        job = prepare_job(*parse(f"--demos demos.jsonl --model toy --dtype {dtype}".split()))
        model = load_for("toy", job.checkpoint, job.tokenizer, job.dtype, job.device)
        drawn = outline(job)
        assert {p.device.type for p in drawn.parameters()} == {"meta"}
        assert drawn.stream_dtype == model.stream_dtype
        weights = sum(p.nbytes for p in model.parameters())
        assert memory_of(drawn, job).weights == weights


def test_the_parts_are_those_of_the_shapes(job: Job) -> None:
    memory = memory_of(outline(job), job)
    # q and o: 32 to 32; k and v: 32 to 16; two layers; A and B of rank 4, in float32
    adapter = 4 * 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16))
    assert memory.adapters == 2 * adapter and memory.moments == 3 * adapter
    # merged: q, k, v and o; packed: these, the MLP's three of 32 x 48, and the head
    attention, mlp = 2 * (2 * 32 * 32 + 2 * 32 * 16), 2 * 3 * 32 * 48
    assert memory.copies == 4 * attention + 4 * (attention + mlp + 320 * 32)
    without = memory.total - memory.activations
    rows = dataclasses.replace(memory, activations=0, cache=0, copies=0)
    assert without == rows.total


def test_a_step_grows_with_its_tokens_until_all_stand_in_one_part(job: Job) -> None:
    found = [planned(job, micro_batch_tokens=tokens) for tokens in (1, 200, 10**6, 10**7)]
    tokens = [one.work.largest for one in found]
    assert tokens[0] < tokens[1] < tokens[2] == tokens[3]
    model, lora = outline(job), dataclasses.replace(job.knobs.lora, dropout=0.0)
    for one in found[1:3]:
        kept = activation_bytes(model.config, lora, 4, one.work.largest, "cheap")
        assert memory_of(model, one).activations == round(WASTE * kept)


def test_the_cache_is_no_larger_than_cache_gb(job: Job) -> None:
    model = outline(job)

    def cache(cache_gb: float) -> int:
        sampling = SamplingConfig(100_000, max_rows=10**6, cache_gb=cache_gb)
        many = planned(job, sampling=sampling, samples_per_prompt=10**5)
        return memory_of(model, many).cache

    longest = max(len(text.prompt_ids) for text in job.lessons.train) + 100_000
    row = cache_bytes(model, longest)
    drawn = 4 * 4 * 320
    more = cache(3003.5 * row / 1e9) - cache(3000.5 * row / 1e9)
    assert more == pytest.approx(3 * (row + drawn), abs=2)


def test_each_checkpointing_mode_keeps_less(job: Job) -> None:
    found = [
        memory_of(outline(job), planned(job, activation_checkpointing=mode)).activations
        for mode in ("none", "cheap", "full")
    ]
    assert found[0] > found[1] > found[2]


@pytest.mark.usefixtures("job")
def test_dropout_is_counted_where_the_adapter_drops_out() -> None:
    found = []
    for dropout in ("0", "0.1"):
        flags = f"--demos demos.jsonl --model toy --method sft --lora-dropout {dropout}"
        asked = prepare_job(*parse(flags.split()))
        found.append(memory_of(outline(asked), asked).activations)
    assert found[0] < found[1]


# ---- tokens in flight ----


def example(number: int, prompt: int, completion: int) -> Example:
    return Example((number, *[1] * (prompt - 1)), (number, *[2] * (completion - 1)))


@pytest.mark.parametrize("budget", [100, 400, 1000, 5000])
@pytest.mark.parametrize("count", [1, 3, 8, 30])
def test_what_is_in_flight_is_what_steps_really_come_to(count: int, budget: int) -> None:
    demonstrations = [example(number, 20, 100) for number in range(count)]
    knobs = dataclasses.replace(PAPER, sampling=SamplingConfig(80))
    pool, names = ComparisonPool(demonstrations), iter(range(1000, 10**6))
    found = 0
    for _ in range(4):
        pool.add_round(
            [
                [Completion("", (next(names), *[3] * 79), 0.0, "length") for _ in range(10)]
                for _ in demonstrations
            ]
        )
        for step in range(4):
            pairs = pool.draw(24, knobs.mix, random.Random(step))
            part = largest_part(pairs, lambda pair: (pair.chosen, pair.rejected), budget)
            found = max(found, part)
    said = ditto.tokens_in_flight(demonstrations, knobs, budget)
    assert 0.9 * found <= said <= 1.25 * found


def test_the_largest_part_is_the_largest_of_the_parts() -> None:
    texts = [example(number, 5, 10 * number) for number in range(1, 6)]
    parts = micro_batches(texts, lambda text: (text,), 70)
    sizes = [distinct_tokens(part) for part in parts]
    assert largest_part(texts, lambda text: (text,), 70) == max(sizes) == 55
