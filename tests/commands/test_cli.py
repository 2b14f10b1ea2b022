"""Flags from dataclass fields, and the plan that they lead to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.workplaces import write_workplace

from minialign.commands.cli import OneLineParser, add_flags
from minialign.commands.job import Job, prepare_job
from minialign.commands.plan import Speed, describe
from minialign.commands.sample import SampleOptions
from minialign.commands.train import parse as parse_train
from minialign.data.knobs import config_from_dict, config_from_flags, flags_of
from minialign.data.records import Example
from minialign.errors import InputError
from minialign.evaluation.knobs import EvaluateOptions
from minialign.methods import ditto, sft
from minialign.methods.knobs import LAPTOP, PAPER, RECIPES, DittoConfig
from minialign.methods.lessons import Lessons, Work
from minialign.policy.adapters import apply_lora, trainable_parameters
from minialign.training.knobs import TrainOptions
from minialign.weights.load import load_for

CONFIGS = [TrainOptions, DittoConfig, SampleOptions, EvaluateOptions]

# One value for each knob that is not its default, as it is typed.
TYPED = {
    **{"lora_rank": "3", "lora_alpha": "7.5", "lora_dropout": "0.25"},
    "lora_target_modules": "q_proj, down_proj",
    **{"sft_max_steps": "8", "sft_batch_size": "2", "sft_learning_rate": "1e-2"},
    **{"sft_warmup_ratio": "0.5", "sft_stop_loss": "0.75", "sft_stop_ratio": "0.5"},
    "sft_train_on_prompt": "",
    **{"max_new_tokens": "77", "temperature": "0.5", "top_p": "0.9", "top_k": "11"},
    **{"max_rows": "5", "cache_gb": "1.5", "rollout_dtype": "int8"},
    **{"max_steps": "12", "resample_every": "3", "samples_per_prompt": "4"},
    **{"pairs_per_step": "6", "expert_fraction": "0.5", "replay_fraction": "0.25"},
    **{"inter_model_fraction": "0.25", "beta": "0.2", "learning_rate": "0.02"},
    "update_reference": "",
    "anchors": "0.3",
    **{"warmup_ratio": "0.75", "label_smoothing": "0.125", "nll_weight": "2"},
    **{"max_grad_norm": "3", "weight_decay": "0.0625", "max_length": "99"},
}


def parse(config_class: type, arguments: list[str], default: Any = None) -> dict[str, Any]:
    parser = OneLineParser("test.py", "A test.", arguments)
    add_flags(parser, config_class, "knobs", default)
    return parser.parse(arguments)


def fields_of(config_class: type) -> list[tuple[str, ...]]:
    """The path of every field, nested ones included, found without the code under test."""
    paths: list[tuple[str, ...]] = []
    for field in dataclasses.fields(config_class):
        value = getattr(config_class(), field.name)
        nested = fields_of(type(value)) if dataclasses.is_dataclass(value) else [()]
        paths += [(field.name, *rest) for rest in nested]
    return paths


# ---- every field is a flag ----


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_field_is_a_flag_with_a_help_text(config_class: type) -> None:
    flags = list(flags_of(config_class))
    assert [flag.path for flag in flags] == fields_of(config_class)
    assert len({flag.name for flag in flags}) == len(flags)
    parser = OneLineParser("test.py", "A test.", ["--help-all"])
    add_flags(parser, config_class, "knobs", config_class())
    actions = {action.dest: action for action in parser._actions}
    for flag in flags:
        assert len(flag.help) > 5, flag.name
        assert (actions[flag.name].help or "").startswith(flag.help.replace("%", "%%"))
        assert "--" + flag.name.replace("_", "-") in actions[flag.name].option_strings
    parser.format_help()  # and no help text breaks argparse's own formatting


def test_flags_of_the_options_and_of_the_knobs_never_collide() -> None:
    options, knobs = ({flag.name for flag in flags_of(c)} for c in (TrainOptions, DittoConfig))
    assert not options & knobs


def test_help_shows_the_default_of_the_recipe() -> None:
    parser = OneLineParser("test.py", "A test.", ["--help-all"])
    add_flags(parser, DittoConfig, "knobs", LAPTOP)
    text = " ".join(parser.format_help().split())
    assert f"peak learning rate, cosine decay (DITTO 3e-5) [{LAPTOP.sft.learning_rate}]" in text
    assert "[q_proj,k_proj,v_proj,o_proj]" in text
    assert "[]" not in text


# ---- from flags to a config ----


def test_every_typed_flag_reaches_its_own_field() -> None:
    assert set(TYPED) == {flag.name for flag in flags_of(DittoConfig)}
    arguments = []
    for name, text in TYPED.items():
        arguments += ["--" + name.replace("_", "-"), *([text] if text else [])]
    config = config_from_flags(PAPER, parse(DittoConfig, arguments))
    for flag in flags_of(DittoConfig):
        value, default = config, PAPER
        for part in flag.path:
            value, default = getattr(value, part), getattr(default, part)
        expected = type(default)(TYPED[flag.name]) if flag.type in (int, float, str) else value
        assert value == expected and value != default, flag.name
    assert config.lora.target_modules == ("q_proj", "down_proj")
    assert config.sft.train_on_prompt is True


def test_flags_that_are_not_given_change_nothing() -> None:
    assert parse(DittoConfig, []) == {}
    for recipe in RECIPES.values():
        assert config_from_flags(recipe, {}) == recipe
    changed = config_from_flags(LAPTOP, parse(DittoConfig, ["--lora-rank", "3"]))
    lora = dataclasses.replace(LAPTOP.lora, rank=3)
    assert changed == dataclasses.replace(LAPTOP, lora=lora)


def test_a_switch_can_be_turned_on_and_off() -> None:
    assert parse(TrainOptions, ["--overwrite"]) == {"overwrite": True}
    assert parse(TrainOptions, ["--no-overwrite"]) == {"overwrite": False}
    on = config_from_flags(PAPER, {"sft_train_on_prompt": True})
    assert config_from_flags(on, parse(DittoConfig, ["--no-sft-train-on-prompt"])) == PAPER


def test_texts_are_converted_as_on_the_command_line() -> None:
    changes = {"sft_train_on_prompt": "yes", "lora_target_modules": "q_proj", "beta": "1"}
    config = config_from_flags(PAPER, changes)
    assert config.sft.train_on_prompt is True and config.lora.target_modules == ("q_proj",)
    assert config.beta == 1.0 and isinstance(config.beta, float)


@pytest.mark.parametrize(
    ("base", "given", "said"),
    [
        (
            PAPER,
            {"learning_rat": 1.0},
            "learning_rat: there is no such knob: did you mean learning_rate?",
        ),
        (PAPER, {"beta": "strong"}, "beta: 'strong' is not a number"),
        (PAPER, {"max_steps": "1.5"}, "max_steps: '1.5' is not a number"),
        (
            TrainOptions(),
            {"recipe": "rlhf"},
            "recipe: 'rlhf' is not one of auto, paper, laptop",
        ),
        (PAPER, {"sft_batch_size": 0}, "sft_batch_size must be at least 1, not 0"),
        (PAPER, {"lora_rank": 0}, "lora_rank must be at least 1, not 0"),
        (PAPER, {"top_k": -1}, "top_k must not be negative, not -1"),
        (PAPER, {"replay_fraction": 0.3}, "the three fractions must add up to 1, not 1.1"),
    ],
)
def test_a_wrong_knob_is_named(base: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        config_from_flags(base, given)
    assert str(error.value) == said


# ---- to JSON and back ----


@pytest.mark.parametrize(
    "config",
    [
        *RECIPES.values(),
        config_from_flags(PAPER, {k: v or True for k, v in TYPED.items()}),
        TrainOptions(demos="a.jsonl", seed=4, overwrite=True, method="sft"),
        SampleOptions(prompt="Grüße", n=3),
        EvaluateOptions(show=0),
    ],
)
def test_a_config_survives_json(config: Any) -> None:
    text = json.dumps(dataclasses.asdict(config))
    assert config_from_dict(type(config), json.loads(text)) == config


def test_a_record_with_an_unknown_knob_is_refused() -> None:
    raw = json.loads(json.dumps(dataclasses.asdict(PAPER)))
    raw["sft"]["epochs"] = 3
    with pytest.raises(InputError, match="epochs: there is no such knob"):
        config_from_dict(DittoConfig, raw)


# ---- recipes ----


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid_and_can_be_chosen(recipe: str) -> None:
    config = RECIPES[recipe]
    assert dataclasses.replace(config) == config  # runs the checks again
    assert config.rounds * config.resample_every >= config.max_steps
    assert parse(TrainOptions, ["--recipe", recipe]) == {"recipe": recipe}


def test_the_papers_recipe_has_the_papers_values() -> None:
    """Table 5 of arXiv 2406.00888."""
    mix = {"expert": 0.7, "replay": 0.2, "inter_model": 0.1}
    assert (PAPER.mix, PAPER.beta, PAPER.learning_rate) == (mix, 0.05, 1e-6)
    assert (PAPER.max_steps, PAPER.resample_every, PAPER.samples_per_prompt) == (40, 10, 10)
    assert (PAPER.pairs_per_step, PAPER.lora.rank, PAPER.lora.alpha) == (24, 16, 32)
    assert (PAPER.sft.learning_rate, PAPER.sft.batch_size, PAPER.sft.stop_loss) == (3e-5, 4, 1.0)
    assert PAPER.sampling.temperature == 1.0 and PAPER.rounds == 4


# ---- the plan ----


def test_work_is_counted_by_hand() -> None:
    """Three texts of 10, 20 and 30 tokens, so 20 on average.

    SFT: 7 steps of 2 texts. Sampling: 5 steps with a new round every 2 are 3 rounds of
    3 x 4 answers of 8 tokens. A step compares at most 3 demonstrations with 6 answers.
    """
    train = [Example((1,) * 4, (1,) * rest) for rest in (6, 16, 26)]
    flags = {"sft_max_steps": 7, "sft_batch_size": 2, "max_new_tokens": 8, "max_steps": 5}
    flags |= {"resample_every": 2, "samples_per_prompt": 4, "pairs_per_step": 6}
    config = config_from_flags(PAPER, flags)
    whole, part = (method.work(Lessons(train, []), config, 100) for method in (ditto, sft))
    compared = 5 * (3 * 20 + 6 * 8)
    assert (whole.read, whole.written, whole.samples) == (280 + compared, 3 * 3 * 4 * 8, 3 * 4)
    assert whole.referred == min(whole.written, compared)
    assert (part.read, part.written, part.referred) == (7 * 2 * 20, 0, 0)


def test_a_batch_is_never_larger_than_the_demonstrations() -> None:
    config = config_from_flags(PAPER, {"sft_max_steps": 5, "sft_batch_size": 50})
    lessons = Lessons([Example((1,), (1, 1))], [])
    assert sft.work(lessons, config, 100).read == 5 * 3


def test_seconds_are_tokens_over_speed() -> None:
    speed = Speed(training=100.0, sampling=10.0)
    # SFT, writing, the policy's reading, and the reference's of what was written, forward only
    assert speed.seconds(Work(500, 60, 0, [], written=60)) == pytest.approx(2 + 3 + 0.2 + 6)
    assert speed.seconds(Work(300, 300, 0, [], written=900)) == pytest.approx(3 + 1 + 90)
    # An answer before and one after, which are written alone.
    speed = Speed(training=100.0, sampling=10.0, single=5.0)
    assert speed.seconds(Work(300, 0, 0, []), 20) == pytest.approx(3 + 2 * 20 / 5)


def test_the_plan_counts_the_answers_before_and_after(job: Job) -> None:
    assert job.preview_tokens == job.work.sampling.max_new_tokens
    model = load_for("toy", job.checkpoint, job.tokenizer, job.dtype, job.device)
    apply_lora(model, job.knobs.lora, "sft")
    slow = Speed(training=1e9, sampling=1e9, single=2 * job.preview_tokens / 88)
    assert "at most 88 seconds" in describe(model, job, slow)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    write_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    options, knobs = parse_train(
        "--demos demos.jsonl --model toy --seed 3 --lora-rank 4 --max-length 45".split()
    )
    return prepare_job(options, knobs)


def test_sft_refuses_knobs_that_only_ditto_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = "--demos demos.jsonl --model toy --sft-max-steps 3 --lora-rank 4".split()
    given += "--max-length 60 --weight-decay .1".split()
    assert prepare_job(*parse_train([*given, "--method", "sft"])).warnings == []
    given += ["--learning-rate", "1e-4"]
    assert prepare_job(*parse_train([*given, "--method", "ditto"])).warnings == []
    with pytest.raises(InputError, match="--method sft makes no use of --learning-rate: leave"):
        prepare_job(*parse_train([*given, "--method", "sft"]))


def plan(job: Job, seconds_per_token: float = 1.0) -> str:
    model = load_for("toy", job.checkpoint, job.tokenizer, job.dtype, job.device)
    apply_lora(model, job.knobs.lora, "sft")
    return describe(model, job, Speed(1 / seconds_per_token, 1 / seconds_per_token))


def test_the_plan_names_what_is_trained_on_what_and_its_price(job: Job) -> None:
    text = plan(job)
    work, compared = job.work, job.work.read - sft.work(job.lessons, job.knobs, 1024).read
    for part in (
        "model  toy: ",
        "float32 on cpu",
        "recipe  laptop, method ditto, seed 3",
        "LoRA rank 4 on q_proj, k_proj, v_proj, o_proj",
        f"3 demonstrations, {sum(map(len, job.lessons.train))} tokens: demos.jsonl",
        "2 held-out demonstrations: demos_test.jsonl",
        f"{work.read - compared:,} tokens of SFT, at most {work.written:,} written",
        f"{compared:,} compared",
        f"at most {Speed(1.0, 1.0).seconds(work) / 3600:.1f} hours",
        "GB of memory",
        "writes  runs/demos/",
        "warning  demos.jsonl, line 3: cut to its first",
    ):
        assert part in text, part


def test_the_plan_counts_parameters_in_millions(job: Job) -> None:
    model = load_for("toy", job.checkpoint, job.tokenizer, job.dtype, job.device)
    apply_lora(model, dataclasses.replace(job.knobs.lora, rank=4000), "sft")
    # q, o: 32 x 32; k, v: 32 to 16; two layers
    trainable = 2 * 4000 * (2 * (32 + 32) + 2 * (32 + 16))
    assert trainable == sum(p.numel() for p in trainable_parameters(model)) == 1_792_000
    assert "trained  1.8 M parameters" in describe(model, job, Speed(1.0, 1.0))


@pytest.mark.parametrize(
    ("seconds_per_token", "shown"), [(1e-4, "seconds"), (0.05, "minutes"), (2, "hours")]
)
def test_the_plan_speaks_of_time_as_people_do(
    job: Job, seconds_per_token: float, shown: str
) -> None:
    (needs,) = [line for line in plan(job, seconds_per_token).split("\n") if "needs" in line]
    assert shown in needs


def test_measuring_the_speed_leaves_the_model_as_it_was(job: Job) -> None:
    model = load_for("toy", job.checkpoint, job.tokenizer, job.dtype, job.device)
    apply_lora(model, job.knobs.lora, "sft")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    stop_ids, training = model.stop_ids, model.training
    speed = Speed.measured(model, job.work)
    assert speed.training > 0 and speed.sampling > 0
    assert (model.stop_ids, model.training) == (stop_ids, training)
    for name, parameter in model.named_parameters():
        assert parameter.equal(before[name]) and parameter.grad is None, name
