"""Mistakes that others made in DITTO's code, each named: this package must not make them.

`d` numbers: found in DITTO's official code (SALT-NLP/demonstrated-feedback).
All at toy size; the other test files look closer.
"""

from __future__ import annotations

import ast
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sources import SOURCES, nodes
from helpers.toys import (
    BOS,
    CHAT,
    EOS,
    TEXTS,
    byte_tokenizer,
    demonstrations,
    encoded,
    gradients,
    small_config,
    small_model,
    small_training,
    with_adapter,
)

from minialign.data.records import Example, load_demonstrations
from minialign.errors import InputError
from minialign.losses import dpo_loss
from minialign.methods import ditto, sft
from minialign.methods import sft as sft_module
from minialign.methods.knobs import DittoConfig, SFTConfig
from minialign.methods.pool import ComparisonPool
from minialign.policy.adapters import active_adapter, adapter_parameters, copy_adapter
from minialign.policy.encode import encode_demonstration
from minialign.policy.knobs import SamplingConfig
from minialign.policy.packing import Packed
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.sample import Completion, generate, sample
from minialign.policy.score import score

A, B = (1, 5, 6), (1, 9)


def test_d1_two_demonstrations_share_a_prompt(tmp_path: Path) -> None:
    """A pool keyed by the prompt's text would keep the last one only."""
    pool = ComparisonPool([Example(A, (7, 2)), Example(A, (8, 2))])
    pool.add_round([[Completion("", (20 + i, s, 2), 0, "stop") for s in range(6)] for i in (0, 1)])
    pairs = pool.draw(12, DittoConfig().mix, random.Random(0))
    assert {pair.chosen.completion_ids for pair in pairs} == {(7, 2), (8, 2)}
    assert Counter(pair.demonstration for pair in pairs).keys() == {0, 1}
    texts = (("say hi", "abc"), ("say hi", "hello"))
    outcome = small_training(tmp_path / "r", small_config(max_steps=1), texts)
    assert outcome.steps("ditto")[0]["pairs/expert"] == 6  # 3 samples of each
    assert {s["demonstration"] for s in outcome.samples} == {0, 1}


def test_d2_every_number_of_the_mix_is_obeyed(tmp_path: Path) -> None:
    changes = {
        "samples_per_prompt": 5,
        "resample_every": 3,
        "pairs_per_step": 20,
        "expert_fraction": 0.25,
        "replay_fraction": 0.35,
        "inter_model_fraction": 0.4,
    }
    outcome = small_training(tmp_path / "r", small_config(**changes))
    rounds = Counter(s["round"] for s in outcome.samples)
    assert rounds == {0: 5 * len(TEXTS), 1: 5 * len(TEXTS)}  # 6 steps, one round every 3
    found = [tuple(m[f"pairs/{k}"] for k in small_config().mix) for m in outcome.steps("ditto")]
    assert found == 3 * [(5, 0, 0)] + 3 * [(5, 7, 8)]


def test_d3_the_end_token_is_a_trained_target() -> None:
    """Nothing is masked by id: padding does not exist, so no token can be taken for it."""
    sequence = encoded("hello")
    assert sequence.completion_ids[-1] == EOS
    assert Packed.of([sequence]).targets[-1] == EOS
    model = small_model()
    without = Example(sequence.prompt_ids, sequence.completion_ids[:-1])
    ids = torch.tensor([without.prompt_ids + without.completion_ids])
    last = model.logits(ids)[0, -1].log_softmax(-1)[EOS].item()
    both = score(model, [sequence, without]).tolist()
    assert last < -0.1
    assert both[0] - both[1] == pytest.approx(last, abs=1e-4)


@pytest.mark.parametrize("template", [CHAT, CHAT.replace("{{ bos_token }}", ""), None])
def test_d4_exactly_one_bos_and_the_same_prompt_ids_everywhere(template: str | None) -> None:
    tokenizer = byte_tokenizer(template, add_bos=True)
    (demonstration,) = demonstrations([("say hi", "hello")])
    sequence, _ = encode_demonstration(demonstration, tokenizer, 64)
    whole = sequence.prompt_ids + sequence.completion_ids
    assert whole[0] == BOS and whole.count(BOS) == 1
    model = small_model()
    fed: list[list[int]] = []
    model.register_forward_pre_hook(lambda module, args: fed.append(args[0].tolist()))
    generate(model, tokenizer, ["say hi"], max_new_tokens=1)
    score(model, [sequence])
    assert fed[0] == list(sequence.prompt_ids) == fed[1][: len(fed[0])]


def test_d5_a_long_demonstration_is_cut_with_a_warning_and_at_its_end_only() -> None:
    """Never at the front, where BOS and the prompt are; and what is cut off does not end."""
    tokenizer = byte_tokenizer()
    (demonstration,) = demonstrations([("say hi", "hello " * 20)])
    whole, none = encode_demonstration(demonstration, tokenizer, 1000)
    assert none is None
    cut, warning = encode_demonstration(demonstration, tokenizer, 40)
    assert warning is not None and "demos.jsonl, line 1: cut to its first" in warning
    assert cut.prompt_ids == whole.prompt_ids and len(cut) == 40
    assert cut.completion_ids == whole.completion_ids[: len(cut.completion_ids)]
    assert EOS not in cut.completion_ids
    with pytest.raises(InputError, match="line 1: the prompt has"):
        encode_demonstration(demonstration, tokenizer, len(whole.prompt_ids))


@pytest.mark.parametrize("text", ["hello", "hello ", " hello\n", "hello.  "])
def test_d6_chosen_and_rejected_end_alike(text: str, tmp_path: Path) -> None:
    """A text that the model writes as the person did is the same sequence, to the last token."""
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"prompt": "say hi", "completion": text}))
    chosen, _ = encode_demonstration(load_demonstrations(file)[0], byte_tokenizer(), 64)
    written = (*byte_tokenizer().backend.encode(text.strip()).ids, EOS)  # a row that stopped
    pool = ComparisonPool([chosen])
    pool.add_round([[Completion("", written, 0.0, "stop")]])
    assert pool.samples[0].sequence == chosen
    assert pool.draw(10, DittoConfig().mix, random.Random(0)) == []


def test_d7_ids_in_the_loss_are_the_ids_that_were_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where decoding and encoding again gives other ids."""
    scored: set[Example] = set()

    def spy(model: Any, sequences: list[Example]) -> torch.Tensor:
        scored.update(sequences)
        return score(model, sequences)

    monkeypatch.setattr(ditto, "score", spy)
    outcome = small_training(tmp_path / "r")
    sampled = {tuple(s["ids"]) for s in outcome.samples}
    tokenizer = byte_tokenizer()
    shown = {tuple(tokenizer.encode_completion(text)) for _, text in TEXTS}
    trained = {s.completion_ids for s in scored}
    assert trained <= sampled | shown and len(trained & sampled) > 10
    drifting = [ids for ids in trained & sampled if reencoded(ids) != ids]
    assert drifting  # so a round trip through text would have shown


def reencoded(ids: tuple[int, ...]) -> tuple[int, ...]:
    tokenizer = byte_tokenizer()
    again = tuple(tokenizer.encode_completion(tokenizer.decode(ids)))
    return again if ids[-1] == EOS else again[:-1]


def test_d8_a_cut_off_sample_is_told_by_its_finish_reason_and_has_no_end_token() -> None:
    """One that stops in the very last place has the same length, and ends."""
    model = small_model()
    model.stop_ids = tuple(range(2, 140))
    (group,) = sample(model, [list(A)], 40, SamplingConfig(3), seed=0)
    full = [c for c in group if len(c.ids) == 3]
    assert {c.finish_reason for c in full} == {"stop", "length"}
    for completion in full:
        assert (completion.ids[-1] in model.stop_ids) == (completion.finish_reason == "stop")


def test_d9_runs_in_one_process_share_nothing(tmp_path: Path) -> None:
    first = small_training(tmp_path / "a")
    small_training(tmp_path / "b", texts=TEXTS[:2], seed=7)
    random.seed(123)
    torch.manual_seed(123)
    assert small_training(tmp_path / "c").same_as(first)
    one, other = ComparisonPool([Example(A, (7,))]), ComparisonPool([Example(A, (7,))])
    one.add_round([[Completion("", (8,), 0.0, "length")]])
    assert other.rounds == [] and other.samples == []


def test_d10_one_demonstration_is_enough(tmp_path: Path) -> None:
    outcome = small_training(tmp_path / "r", texts=TEXTS[:1])
    assert len(outcome.steps("sft")) == 4 and len(outcome.steps("ditto")) == 6


def test_d11_the_prompt_is_trained_on_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[int] = []

    def spy(model: Any, sequences: list[Example]) -> torch.Tensor:
        targets.extend(Packed.of(sequences).targets)
        return score(model, sequences)

    monkeypatch.setattr(sft, "score", spy)
    assert SFTConfig().train_on_prompt is False
    prompt, completion = encoded("abc, dear.").prompt_ids, encoded("abc, dear.").completion_ids
    for asked, expected in ((False, completion), (True, prompt[1:] + completion)):
        config = small_config(**{"sft.train_on_prompt": asked, "sft.max_steps": 1})
        small_training(tmp_path / str(asked), config, TEXTS[:1], method=sft_module.train)
        assert tuple(targets) == expected
        targets.clear()


def test_d12_the_reference_pass_leaves_the_policy_s_gradients_alone() -> None:
    """The reference is computed between the policy's forward and backward pass, the worst place."""
    model = with_adapter(small_model(), "sft")
    copy_adapter(model, "sft", "ditto")
    with torch.no_grad():
        adapter_parameters(model, "ditto")[1].add_(0.1)
    chosen, rejected = [Example(A, (7, 2))], [Example(A, (8, 8, 2))]
    known = ReferenceScores(model, "sft")(chosen + rejected)

    def step(reference: Callable[[list[Example]], torch.Tensor]) -> list[torch.Tensor]:
        logps = score(model, chosen + rejected)
        fixed = reference(chosen + rejected)
        dpo_loss(logps[:1], logps[1:], fixed[:1], fixed[1:], beta=0.1).losses.sum().backward()
        return gradients(model, "ditto")

    alone = step(lambda sequences: known)
    beside = step(ReferenceScores(model, "sft"))
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert any(a.any() for a in alone)
    assert active_adapter(model) == "ditto"
    for parameter in adapter_parameters(model, "sft"):
        assert parameter.grad is None and not parameter.requires_grad


def test_d13_nothing_reads_pickles() -> None:
    unsafe = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for name, node in nodes(ast.Import):
        assert not {a.name.split(".")[0] for a in node.names} & unsafe, name
    for name, node in nodes(ast.ImportFrom):
        assert (node.module or "").split(".")[0] not in unsafe, name
        imported = {a.name for a in node.names}
        assert node.module != "torch" or not imported & {"load", "save"}, name
    for name, node in nodes(ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        assert not (owner in ("torch", "np", "numpy") and node.attr in ("load", "save")), name
    assert len(SOURCES) > 20
