"""DITTO from end to end at toy size: its first step, its knobs, and its record."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toys import (
    EOS,
    HELD_OUT,
    TEXTS,
    Outcome,
    byte_tokenizer,
    change,
    small_config,
    small_training,
)

from minialign.data.knobs import flags_of
from minialign.data.records import Example
from minialign.losses import PreferenceLoss
from minialign.methods import ditto
from minialign.methods import sft as sft_module
from minialign.methods.knobs import DittoConfig
from minialign.policy import sample as sampler
from minialign.policy.adapters import adapter_parameters
from minialign.policy.packing import Packed
from minialign.policy.sample import Completion

ONE_DEMONSTRATION = TEXTS[:1]
ONE_PROMPT = (("say hi", "hello"), ("say hi", "abc!"))
FIFTY = tuple((f"topic {i}", f"text {i}") for i in range(50))


# ---- the first step ----


@pytest.mark.parametrize("texts", [ONE_DEMONSTRATION, ONE_PROMPT, TEXTS], ids=len)
@pytest.mark.parametrize("micro_batch_tokens", [1, 70, 2048])
def test_the_first_loss_is_ln_2_and_every_margin_exactly_0(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: tuple[tuple[str, str], ...],
    micro_batch_tokens: int,
) -> None:
    """Policy and reference are one, dropout is off, and both are computed in one layout."""
    rewards: list[float] = []

    def spy(*args: torch.Tensor, **knobs: float) -> PreferenceLoss:
        found = real(*args, **knobs)
        rewards.extend((found.chosen_rewards - found.rejected_rewards).tolist())
        rewards.extend(found.chosen_rewards.tolist())
        return found

    real = ditto.dpo_loss
    monkeypatch.setattr(ditto, "dpo_loss", spy)
    config = small_config(**{"max_steps": 1, "lora.dropout": 0.5})
    outcome = small_training(tmp_path / "r", config, texts, micro_batch_tokens=micro_batch_tokens)
    (first,) = outcome.steps("ditto")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == first["rewards/chosen"] == first["rewards/rejected"] == 0
    assert len(rewards) >= 6 and set(rewards) == {0.0}


# ---- it learns ----


def test_dpo_separates_demonstrations_from_samples(tmp_path: Path) -> None:
    config = small_config(max_steps=30, resample_every=30, learning_rate=0.01)
    steps = small_training(tmp_path / "r", config).steps("ditto")
    assert steps[0]["loss"] > 0.69 and steps[-1]["loss"] < 0.1
    assert steps[-1]["rewards/accuracies"] == 1
    assert steps[-1]["rewards/chosen"] > 0 > steps[-1]["rewards/rejected"]


def test_the_reference_adapter_stays_what_sft_made_it_and_gets_no_gradient(
    tmp_path: Path, baseline: Outcome
) -> None:
    sft = small_training(tmp_path / "sft", method=sft_module.train, held_out=HELD_OUT)
    assert baseline.adapters["sft"] == sft.adapters["sft"]
    assert baseline.adapters["ditto"] != sft.adapters["sft"]
    for parameter in adapter_parameters(baseline.model, "sft"):
        assert parameter.grad is None and not parameter.requires_grad
    base = {k: v for k, v in sft.model.state_dict().items() if "lora" not in k}
    for name, tensor in baseline.model.state_dict().items():
        assert "lora" in name or torch.equal(tensor, base[name])  # merging left no trace


@pytest.mark.parametrize("texts", [ONE_DEMONSTRATION, ONE_PROMPT, FIFTY], ids=len)
def test_any_number_of_demonstrations_works(
    tmp_path: Path, texts: tuple[tuple[str, str], ...]
) -> None:
    config = small_config(max_steps=3, resample_every=2, pairs_per_step=24)
    outcome = small_training(tmp_path / "r", config, texts)
    first, _, third = outcome.steps("ditto")
    available = 3 * len(texts)
    assert first["pairs/expert"] == min(17, available)
    assert first["pairs/replay"] == first["pairs/inter_model"] == 0
    assert third["pairs/expert"] == min(17, available)
    assert third["pairs/replay"] == min(5, available) and third["pairs/inter_model"] == 2
    counts = [sum(s["demonstration"] == d for s in outcome.samples) for d in range(len(texts))]
    assert counts == len(texts) * [2 * 3]


def test_sft_may_be_left_out(tmp_path: Path) -> None:
    outcome = small_training(tmp_path / "r", small_config(**{"sft.max_steps": 0, "max_steps": 1}))
    assert outcome.steps("sft") == [] and len(outcome.steps("ditto")) == 1


# ---- the same again ----


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    tmp_path: Path, baseline: Outcome
) -> None:
    assert small_training(tmp_path / "again", held_out=HELD_OUT).same_as(baseline)
    other = small_training(tmp_path / "other", held_out=HELD_OUT, seed=1)
    assert other.adapters["sft"] != baseline.adapters["sft"]
    assert [s["ids"] for s in other.samples] != [s["ids"] for s in baseline.samples]
    folders = [baseline_file.read_bytes() for baseline_file in tmp_path.glob("*/samples.jsonl")]
    assert len(set(folders)) == 2


def test_each_round_and_each_seed_draws_with_numbers_of_its_own(tmp_path: Path) -> None:
    """Here the policy stays the base model, so that only the random numbers can tell them apart."""
    config = small_config(**{"sft.max_steps": 0, "max_steps": 4, "learning_rate": 1e-12})
    drawn = {}
    for seed in (0, 1):
        samples = small_training(tmp_path / str(seed), config, seed=seed).samples
        for number in (0, 1):
            drawn[seed, number] = tuple(tuple(s["ids"]) for s in samples if s["round"] == number)
    assert len(set(drawn.values())) == 4


def test_held_out_metrics_are_logged_once_after_sft_and_at_each_round_s_end(
    tmp_path: Path, baseline: Outcome
) -> None:
    summary = [m for m in baseline.metrics if m["stage"] == "sft" and "step" not in m]
    assert len(summary) == 1 and summary[0]["eval/nats_per_token"] > 0
    steps = baseline.steps("ditto")
    assert [m["step"] for m in steps if "eval/nats_per_token" in m] == [1, 3, 5]
    last = steps[-1]
    # beta (log pi - log pi_sft), the mean over texts, from the two logged losses per token
    tokens = sum(len(s.completion_ids) for s in HELD_OUT)
    gained = (summary[0]["eval/nats_per_token"] - last["eval/nats_per_token"]) * tokens
    assert last["eval/rewards"] == pytest.approx(0.1 * gained / len(HELD_OUT), abs=1e-4)
    without = small_training(tmp_path / "without")
    assert without.adapters == baseline.adapters  # looking changes nothing
    assert not any("eval/rewards" in m for m in without.metrics)


# ---- the knobs ----


SFT_KNOBS: dict[str, dict[str, Any]] = {
    "lora.rank": {"lora.rank": 5},
    "lora.alpha": {"lora.alpha": 16.0},
    "lora.dropout": {"lora.dropout": 0.5},
    "lora.target_modules": {"lora.target_modules": ("q_proj", "up_proj")},
    "sft.max_steps": {"sft.max_steps": 3},
    "sft.batch_size": {"sft.batch_size": 3},
    "sft.learning_rate": {"sft.learning_rate": 1e-3},
    "sft.warmup_ratio": {"sft.warmup_ratio": 0.0},
    "sft.stop_loss": {"sft.stop_loss": 100.0},
    "sft.stop_ratio": {"sft.stop_ratio": 0.999, "sft.stop_loss": 100.0},
    "sft.train_on_prompt": {"sft.train_on_prompt": True},
    "max_grad_norm": {"max_grad_norm": 0.01},
    "weight_decay": {"weight_decay": 1.0},
    "anchors": {"anchors": 3.0},
    "max_length": {"max_length": 22},
}
SAMPLING_KNOBS: dict[str, dict[str, Any]] = {
    "sampling.max_new_tokens": {"sampling.max_new_tokens": 4},
    "sampling.temperature": {"sampling.temperature": 0.5},
    "sampling.top_p": {"sampling.top_p": 0.5},
    "sampling.top_k": {"sampling.top_k": 3},
    "sampling.rollout_dtype": {"sampling.rollout_dtype": "int8"},
    "samples_per_prompt": {"samples_per_prompt": 4},
}
DPO_KNOBS: dict[str, dict[str, Any]] = {
    "max_steps": {"max_steps": 5},
    "resample_every": {"resample_every": 3},
    "pairs_per_step": {"pairs_per_step": 6},
    "expert_fraction": {"expert_fraction": 0.5, "replay_fraction": 0.4},
    "replay_fraction": {"replay_fraction": 0.0, "inter_model_fraction": 0.3},
    "inter_model_fraction": {"inter_model_fraction": 0.0, "expert_fraction": 0.8},
    "beta": {"beta": 0.5},
    "learning_rate": {"learning_rate": 1e-3},
    "warmup_ratio": {"warmup_ratio": 0.0},
    "label_smoothing": {"label_smoothing": 0.2},
    "update_reference": {"update_reference": True},
    "nll_weight": {"nll_weight": 0.5},
}
MEMORY_KNOBS: dict[str, dict[str, Any]] = {
    "sampling.max_rows": {"sampling.max_rows": 2},
    "sampling.cache_gb": {"sampling.cache_gb": 2e-5},  # two rows of this model
}
KNOBS = SFT_KNOBS | SAMPLING_KNOBS | DPO_KNOBS | MEMORY_KNOBS


def test_every_knob_stands_in_the_lists_above() -> None:
    assert set(KNOBS) == {".".join(flag.path) for flag in flags_of(DittoConfig)}
    before = small_config()
    for path, changes in KNOBS.items():
        assert path in changes and change(before, changes) != before


@pytest.mark.parametrize("path", SFT_KNOBS)
def test_every_knob_changes_something_in_sft(path: str, tmp_path: Path, baseline: Outcome) -> None:
    config = change(small_config(), SFT_KNOBS[path])
    found = small_training(tmp_path / "r", config, method=sft_module.train)
    assert found.adapters["sft"] != baseline.adapters["sft"]


@pytest.mark.parametrize("path", SAMPLING_KNOBS)
def test_every_knob_changes_something_in_the_samples(
    path: str, tmp_path: Path, baseline: Outcome
) -> None:
    config = change(small_config(), {"max_steps": 1} | SAMPLING_KNOBS[path])
    found = small_training(tmp_path / "r", config)
    assert found.adapters["sft"] == baseline.adapters["sft"]
    first_round = [s["ids"] for s in baseline.samples if s["round"] == 0]
    assert [s["ids"] for s in found.samples] != first_round


def test_rollouts_in_another_type_say_how_far_they_are_and_are_scored_in_the_policy_s_own(
    tmp_path: Path, baseline: Outcome
) -> None:
    config = change(small_config(), {"sampling.rollout_dtype": "int8"})
    steps = small_training(tmp_path / "r", config).steps("ditto")
    assert all(0 < abs(step[ditto.OFF_POLICY]) < 0.1 for step in steps)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert not any(ditto.OFF_POLICY in step for step in baseline.steps("ditto"))


@pytest.mark.parametrize("path", DPO_KNOBS)
def test_every_knob_changes_something_in_dpo(path: str, tmp_path: Path, baseline: Outcome) -> None:
    found = small_training(tmp_path / "r", change(small_config(), DPO_KNOBS[path]))
    assert found.adapters["sft"] == baseline.adapters["sft"]
    assert found.adapters["ditto"] != baseline.adapters["ditto"]


@pytest.mark.parametrize("path", ["max_grad_norm", "weight_decay", "anchors", "lora.dropout"])
def test_which_sft_knobs_reach_dpo(path: str, tmp_path: Path) -> None:
    """Clipping and weight decay do, dropout must not. Without SFT only DPO is left to change."""
    plain = {"sft.max_steps": 0}
    before = small_training(tmp_path / "a", small_config(**plain))
    after = small_training(tmp_path / "b", small_config(**plain | SFT_KNOBS[path]))
    assert (after.adapters["ditto"] != before.adapters["ditto"]) == (path != "lora.dropout")


@pytest.mark.parametrize("path", MEMORY_KNOBS)
def test_a_memory_knob_changes_rows_and_nothing_in_the_result(
    path: str, tmp_path: Path, baseline: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    count = sampler.cache_rows
    monkeypatch.setattr(sampler, "cache_rows", lambda *args: rows.append(count(*args)) or rows[-1])
    found = small_training(tmp_path / "r", small_config(**MEMORY_KNOBS[path]))
    assert rows and 1 <= min(rows) <= max(rows) < len(TEXTS) * small_config().samples_per_prompt
    assert found.adapters == baseline.adapters
    assert [s["ids"] for s in found.samples] == [s["ids"] for s in baseline.samples]


def test_micro_batch_tokens_changes_memory_and_nothing_in_the_result(tmp_path: Path) -> None:
    """Up to the order of sums; and without dropout, whose masks fall differently."""
    config = small_config(**{"lora.dropout": 0.0, "nll_weight": 0.3})
    whole = small_training(tmp_path / "a", config, micro_batch_tokens=10_000)
    for tokens in (1, 60):
        found = small_training(tmp_path / str(tokens), config, micro_batch_tokens=tokens)
        assert [s["ids"] for s in found.samples] == [s["ids"] for s in whole.samples]
        for name in ("sft", "ditto"):
            for own, other in zip(
                adapter_parameters(found.model, name),
                adapter_parameters(whole.model, name),
                strict=True,
            ):
                torch.testing.assert_close(own, other, rtol=0, atol=2e-4)
        for own, other in zip(found.metrics, whole.metrics, strict=True):
            assert own.keys() == other.keys()
            for key, value in own.items():
                same = value == other[key] or value == pytest.approx(other[key], rel=1e-3, abs=1e-4)
                assert same, key


@pytest.mark.parametrize("texts", [TEXTS, ONE_PROMPT], ids=["prompts", "one prompt"])
@pytest.mark.parametrize("tokens", [1, 60, 200])
def test_no_pass_reads_more_than_micro_batch_tokens_or_twice_for_one_prompt_or_one_pair(
    tokens: int,
    texts: tuple[tuple[str, str], ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training, the reference and the held-out texts alike."""
    passes: list[tuple[int, bool]] = []
    real = Packed.of

    def spy(sequences: list[Example]) -> Packed:
        packed = real(sequences)
        prompts = {s.prompt_ids for s in sequences}
        allowed = tokens * (1 + (len(prompts) == 1))
        passes.append((len(packed.ids), len(set(sequences)) <= 2 or len(packed.ids) <= allowed))
        return packed

    monkeypatch.setattr(Packed, "of", spy)
    held_out = [Example((1, 9 + i), (i, EOS)) for i in range(100)]
    small_training(tmp_path / "r", texts=texts, held_out=held_out, micro_batch_tokens=tokens)
    assert max(read for read, _ in passes) > min(tokens, 20)
    assert all(within for _, within in passes)


# ---- the record ----


def test_samples_file_tells_where_each_text_came_from(tmp_path: Path, baseline: Outcome) -> None:
    assert len(baseline.samples) == 3 * len(TEXTS) * 3
    places = [(s["round"], s["demonstration"]) for s in baseline.samples]
    assert places == sorted(places) and set(s["round"] for s in baseline.samples) == {0, 1, 2}
    for sample in baseline.samples:
        assert (sample["ids"][-1] == EOS) == (sample["finish_reason"] == "stop")
        if (
            sample["round"] == 0 and sample["reference_logp"] is not None
        ):  # written by the reference
            assert sample["reference_logp"] == pytest.approx(sample["logprob"], abs=1e-3)
    assert sum(s["reference_logp"] is not None for s in baseline.samples) > 20


def test_metrics_add_up(baseline: Outcome) -> None:
    for line in baseline.steps("ditto"):
        assert json.loads(json.dumps(line)) == line
        margin = line["rewards/chosen"] - line["rewards/rejected"]
        assert line["rewards/margins"] == pytest.approx(margin, abs=1e-6)
        assert line["pairs/expert"] == 7 and line["lr"] <= 3e-3 and line["grad_norm"] > 0
    rates = [line["lr"] for line in baseline.steps("ditto")]
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3, 3e-3, 3e-3])  # warm-up over 3 of 6


def test_a_round_that_only_repeats_the_demonstrations_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completions = [tuple(byte_tokenizer().encode_completion(text)) for _, text in TEXTS]

    def parrot(model: Any, prompts: Any, n: int, config: Any, *run: Any, **options: Any) -> list:
        return [n * [Completion("", ids, -1.0, "stop")] for ids in completions]

    monkeypatch.setattr(ditto, "rollouts", parrot)
    outcome = small_training(tmp_path / "r")
    assert [m["loss"] for m in outcome.steps("ditto")] == 6 * [0.0]
    assert outcome.adapters["ditto"] == outcome.adapters["sft"]


def test_config_is_never_mutated(tmp_path: Path) -> None:
    config = small_config()
    before = dataclasses.asdict(config)
    small_training(tmp_path / "r", config)
    assert dataclasses.asdict(config) == before
