"""Mistakes that others made in preference learning, each named: this package must not make them.

`g` numbers: well known in preference learning at large, mostly as public issues of other projects.
All at toy size; the other test files look closer.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sources import nodes
from helpers.toys import (
    BOS,
    CHAT,
    EOS,
    TEXTS,
    byte_tokenizer,
    demonstrations,
    encoded,
    gradients,
    naive_score,
    small_config,
    small_model,
    small_training,
    spaced_tokenizer,
    with_adapter,
)
from torch.utils._python_dispatch import TorchDispatchMode

from minialign.data.records import Demonstration, Example, check_held_out
from minialign.errors import InputError
from minialign.evaluation.contestants import Contestant, write_answers
from minialign.fused import linear_logps
from minialign.losses import sft_loss
from minialign.methods import sft as sft_module
from minialign.methods.knobs import RECIPES, DittoConfig
from minialign.methods.pool import ComparisonPool
from minialign.policy.adapters import adapter_parameters, apply_lora, lora_layers, set_adapter
from minialign.policy.draw import draw_tokens
from minialign.policy.encode import encode_demonstration
from minialign.policy.knobs import LoRAConfig, SamplingConfig
from minialign.policy.measure import nats_per_token, reward_margins
from minialign.policy.merge import merge_adapter, merged_adapter
from minialign.policy.packing import micro_batches
from minialign.policy.reference import reference_policy
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.sample import Completion, sample
from minialign.policy.score import score
from minialign.training.run import Interrupted, Run
from minialign.weights.tokenizer import Tokenizer

A, B = (1, 5, 6), (1, 9)


@pytest.mark.parametrize("completion", ["c", "[Name]", "\n[x", "😀", "", " ab", "ends in space "])
def test_g1_prompt_and_completion_are_separate_segments(completion: str) -> None:
    """Joined, "..b]" + "[N.." would merge; the ids must be those that sampling goes on from."""
    template = "{{ messages[0]['content'] }}"
    tokenizer = byte_tokenizer(template)
    prompts = [tokenizer.encode_prompt(text) for text in ("say ab", "[x]", "line\n")]
    for prompt in prompts:
        ids = tokenizer.encode_completion(completion)
        assert ids[-1] == EOS and tokenizer.decode(ids) == completion
        assert tokenizer.decode([*prompt, *ids]) == tokenizer.decode(prompt) + completion
    merged = tokenizer.backend.encode("say ab" + "c").ids
    assert merged != prompts[0] + tokenizer.encode_completion("c")[:-1]
    (demonstration,) = demonstrations([("say ab", completion)])
    sequence, _ = encode_demonstration(demonstration, tokenizer, 64)
    assert list(sequence.prompt_ids) == prompts[0]
    assert list(sequence.completion_ids) == tokenizer.encode_completion(completion)


def test_g2_one_bos_and_one_end_token_even_if_the_text_spells_them() -> None:
    doubling = CHAT.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")
    for template in (CHAT, doubling):
        ids = byte_tokenizer(template, add_bos=True).encode_prompt("hi")
        assert ids[0] == BOS and ids.count(BOS) == 1
    ids = byte_tokenizer().encode_completion("a</s>b<s>")
    assert ids.count(EOS) == 1 and ids[-1] == EOS and BOS not in ids


def test_g3_no_trailing_space_before_the_completion() -> None:
    """The space belongs to the first word: a token of its own would be one that nobody writes."""
    for template in ("[INST] {{ messages[0]['content'] }} [/INST] ", "Dear: "):
        tokenizer = spaced_tokenizer(template)
        last = tokenizer.backend.id_to_token(tokenizer.encode_prompt("hi")[-1])
        assert last != "▁" and not last.endswith("▁")
        first = tokenizer.backend.id_to_token(tokenizer.encode_completion("Dear sir")[0])
        assert first == "▁Dear"


def test_g4_v02_style_spacing_holds_with_separate_segments() -> None:
    """`<s> [INST] hi [/INST] Dear</s>` as the official template writes it, encoded as a whole, has
    one space, inside the completion's first token, and none before the end token.
    """
    tokenizer = spaced_tokenizer("{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]")
    prompt = tokenizer.encode_prompt("hi")
    completion = tokenizer.encode_completion("Dear")
    names = [tokenizer.backend.id_to_token(i) for i in prompt + completion]
    assert names[0] == "<s>" and names[-2:] == ["▁Dear", "</s>"]
    assert "".join(names[1:-1]) == "▁[INST]▁hi▁[/INST]▁Dear"
    assert tokenizer.decode(completion) == "Dear"


def test_g5_training_teaches_to_stop_even_where_padding_is_the_end_token(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend.enable_padding(pad_id=EOS, pad_token="</s>", length=64)
    tokenizer.backend.enable_truncation(4)
    again = Tokenizer(tokenizer.backend, "</s>", "<s>", CHAT)  # takes both off
    assert again.encode_completion("hello") == byte_tokenizer().encode_completion("hello")
    config = small_config(**{"sft.max_steps": 25, "sft.learning_rate": 0.02})
    model = small_training(tmp_path / "r", config, TEXTS[:1], method=sft_module.train).model
    sequence = encoded(TEXTS[0][1])
    end = [sequence, Example(sequence.prompt_ids, sequence.completion_ids[:-1])]
    after, before = (score(m, end).tolist() for m in (model, small_model()))
    assert after[0] - after[1] > before[0] - before[1] + 1  # log p(end): e times likelier


def test_g6_a_score_does_not_depend_on_its_companions() -> None:
    model = with_adapter(small_model())
    sequence = Example(A, (7, 8, 9, 2))
    alone = score(model, [sequence]).item()
    others = [Example((1,) + tuple(range(30, 70)), (4, 5)), Example(A, (7,)), Example(B, (3, 3))]
    for companions in ([sequence, *others], [*others, sequence]):
        place = companions.index(sequence)
        assert score(model, companions)[place].item() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("total", [5, 6, 7, 8, 20])
def test_g7_cached_decoding_equals_the_full_pass_around_the_window(total: int) -> None:
    """Window 6: below, at, just above and far above it, in a batch of prompts of unequal length."""
    model = small_model(sliding_window=6)
    model.stop_ids = ()
    prompts = [[5, 6, 7], [9], [5, 6, 7, 8]]
    new = [total - len(prompt) for prompt in prompts]
    groups = sample(model, prompts, 2, SamplingConfig(max(new)), seed=0)
    seen_window = small_model(sliding_window=None)
    for prompt, count, group in zip(prompts, new, groups, strict=True):
        for completion in group:
            whole = Example(tuple(prompt), completion.ids)
            expected = naive_score(model, whole).item()
            assert completion.logprob == pytest.approx(expected, abs=1e-4)
            part = Example(tuple(prompt), completion.ids[:count])
            unlimited = naive_score(seen_window, part).item()
            # the last token is predicted from `total - 1` tokens, which fit up to total = 7
            same = naive_score(model, part).item() == pytest.approx(unlimited, abs=1e-4)
            assert same == (total <= 7)


def test_g8_log_probabilities_are_summed_with_the_end_token_and_not_averaged() -> None:
    model = small_model()
    sequence = Example(A, (7, 8, 2))
    ids = torch.tensor([A + (7, 8, 2)])
    logps = model.logits(ids)[0].log_softmax(-1)
    expected = logps[2, 7] + logps[3, 8] + logps[4, 2]
    torch.testing.assert_close(score(model, [sequence])[0], expected)
    assert sft_loss(expected[None], 3).item() == pytest.approx(-expected.item() / 3)


def test_g9_dropout_is_off_in_dpo(tmp_path: Path) -> None:
    config = small_config(**{"lora.dropout": 0.9})
    outcome = small_training(tmp_path / "r", config)
    first = outcome.steps("ditto")[0]
    assert first["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert first["rewards/margins"] == 0 and first["rewards/chosen"] == 0
    assert not outcome.model.training


def test_g10_log_softmax_is_float32_over_half_logits() -> None:
    """In bfloat16 the tail is off by tenths of a nat."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=generator).bfloat16()
    weight = torch.randn(3000, 16, generator=generator).bfloat16()
    targets = torch.randint(3000, (50,), generator=generator)
    rows = torch.arange(50)
    logits = hidden @ weight.T  # as rounded as the hardware rounds them
    right = logits.double().log_softmax(-1)[rows, targets]
    naive = logits.log_softmax(-1)[rows, targets]
    found = linear_logps(hidden, weight, targets)
    assert found.dtype == torch.float32
    assert (naive.double() - right).abs().max() > 0.02
    assert (found.double() - right).abs().max() < 1e-5


def test_g11_accumulated_micro_batches_are_the_whole_batch() -> None:
    """Short and long completions together, where a mean of means would differ."""
    model = with_adapter(small_model())
    batch = [Example(A, (7, 2)), Example(B, tuple(range(10, 30))), Example((1, 4), (3,))]
    total = sum(len(s.completion_ids) for s in batch)
    sft_loss(score(model, batch), total).backward()
    whole = gradients(model)
    parts = list(micro_batches(batch, lambda s: (s,), 1))
    assert len(parts) == 3
    for part in parts:
        sft_loss(score(model, part), total).backward()
    for own, right in zip(gradients(model), whole, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-4, atol=1e-6)


def test_g12_a_fresh_adapter_is_the_identity_and_scaled_by_alpha_over_rank() -> None:
    model = small_model()
    sequences = [Example(A, (7, 8, 2))]
    base = score(model, sequences)
    apply_lora(model, LoRAConfig(rank=4, alpha=8.0, dropout=0.0))
    assert torch.equal(score(model, sequences), base)
    with_adapter(model, scale=0.2)
    name, layer = next(iter(lora_layers(model).items()))
    product = layer.lora_B["default"] @ layer.lora_A["default"]
    torch.testing.assert_close(layer.delta("default"), 2 * product, msg=name)


def test_g12_the_head_carries_no_adapter_which_fused_losses_would_not_see() -> None:
    with pytest.raises(InputError, match="lm_head"):
        apply_lora(small_model(), LoRAConfig(target_modules=("q_proj", "lm_head")))


@pytest.mark.parametrize("tied", [False, True])
def test_g12_merging_changes_no_score_and_comes_off_bit_for_bit(tied: bool) -> None:
    model = with_adapter(small_model(tie_word_embeddings=tied), scale=0.3)
    sequences = [Example(A, (7, 8, 2)), Example(B, (3, 2))]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        apart = score(model, sequences)
        with merged_adapter(model):
            name = "model.layers.0.self_attn.q_proj"
            assert not torch.equal(lora_layers(model)[name].weight, before[f"{name}.weight"])
            torch.testing.assert_close(score(model, sequences), apart, rtol=0, atol=1e-4)
        set_adapter(model, None)
        assert (score(model, sequences) - apart).abs().max() > 0.1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_g12_adapters_are_float32_over_a_bfloat16_base() -> None:
    model = with_adapter(small_model().to(torch.bfloat16))
    assert {p.dtype for p in adapter_parameters(model, "default")} == {torch.float32}
    score(model, [Example(A, (7, 2))]).sum().backward()
    assert {g.dtype for g in gradients(model)} == {torch.float32}


def test_g13_merging_into_bfloat16_reports_how_many_weights_changed() -> None:
    """An update far below a weight's rounding vanishes; the person is told how much of it."""
    shares = []
    for scale in (1e-4, 0.02, 0.5):
        model = with_adapter(small_model().to(torch.bfloat16), scale=scale)
        layers = lora_layers(model).values()
        before = [layer.weight.clone() for layer in layers]
        shares.append(merge_adapter(model))
        changed = sum(int((a != m.weight).sum()) for a, m in zip(before, layers, strict=True))
        assert shares[-1] == changed / sum(a.numel() for a in before)
    assert shares[0] < 0.01 < 0.2 < shares[1] < 0.9 < shares[2] <= 1
    assert merge_adapter(with_adapter(small_model(), scale=1e-4)) > 0.5  # float32 keeps most


def test_g14_the_chosen_log_probability_is_logged_and_nll_weight_holds_it_up(
    tmp_path: Path,
) -> None:
    plain = {"max_steps": 12, "resample_every": 12, "learning_rate": 0.02}
    final = {}
    for weight in (0.0, 2.0):
        config = small_config(nll_weight=weight, **plain)
        steps = small_training(tmp_path / str(weight), config).steps("ditto")
        assert all(step["logps/chosen"] < 0 for step in steps)
        final[weight] = steps[-1]
    assert final[2.0]["logps/chosen"] > final[0.0]["logps/chosen"] + 1
    assert final[2.0]["nll/demonstrations"] < final[0.0]["nll/demonstrations"]


def test_g15_reference_scores_do_not_outlive_their_adapter() -> None:
    model = with_adapter(small_model(), "sft")
    reference = ReferenceScores(model, "sft")
    before = reference([Example(A, (7, 2))])
    with torch.no_grad():
        for parameter in adapter_parameters(model, "sft"):
            parameter.mul_(2)
    after = reference([Example(A, (7, 2))])
    assert torch.equal(after, score(model, [Example(A, (7, 2))]).detach())
    assert not torch.equal(after, before)


def test_g16_replay_goes_by_rounds_and_pairs_of_models_are_newer_over_older() -> None:
    pool = ComparisonPool([Example(A, (9, 2))])
    for number in range(3):
        written = [Completion("", (10 * number + s, 2), 0, "stop") for s in (0, 1)]
        pool.add_round([[*written, Completion("", (9, 2), 0, "stop")]])

    def drawn(kind: str) -> set[tuple[int, int]]:
        mix = {name: float(name == kind) for name in DittoConfig().mix}
        pairs = pool.draw(1000, mix, random.Random(0))
        return {(p.chosen.completion_ids[0], p.rejected.completion_ids[0]) for p in pairs}

    assert drawn("expert") == {(9, 20), (9, 21)}
    assert drawn("replay") == {(9, 0), (9, 1), (9, 10), (9, 11)}
    assert all(a != b for a, b in drawn("inter_model"))
    assert (20, 1) in drawn("inter_model") and (1, 20) not in drawn("inter_model")
    again = ComparisonPool(pool.demonstrations)
    again.load_state(pool.state())
    assert again.rounds == pool.rounds


def test_g17_resuming_restores_moments_schedule_dropout_pool_and_reference(tmp_path: Path) -> None:
    config = small_config(**{"lora.dropout": 0.5})
    whole = small_training(tmp_path / "whole", config)
    folder = tmp_path / "r"

    def stop_at(stage: str, step: int) -> Callable[[Run], None]:
        def prepare(run: Run) -> None:
            log = run.log

            def stopping(*line: Any) -> None:
                log(*line)
                run.interrupted |= line[:2] == (stage, step)

            run.log = stopping  # type: ignore[method-assign]

        return prepare

    for count, prepare in enumerate((stop_at("sft", 1), stop_at("ditto", 2))):
        torch.manual_seed(99 + count)
        random.seed(99 + count)
        with pytest.raises(Interrupted):
            small_training(folder, config, prepare=prepare, resume=count > 0)
    assert small_training(folder, config, resume=True).same_as(whole)


def test_g18_ditto_samples_from_the_policy_as_it_is() -> None:
    """No temperature and no filter in any recipe, and finished rows touch nobody else."""
    for recipe in RECIPES.values():
        knobs = recipe.sampling
        assert (knobs.temperature, knobs.top_p, knobs.top_k) == (1.0, 1.0, 0)
    model = small_model()
    model.stop_ids = tuple(range(2, 60))
    (together,) = sample(model, [list(A)], 12, SamplingConfig(10), seed=0)
    (one_by_one,) = sample(model, [list(A)], 12, SamplingConfig(10, max_rows=1), seed=0)
    assert len({len(c.ids) for c in together}) > 3
    assert [c.ids for c in together] == [c.ids for c in one_by_one]


def test_g18_sampling_uses_the_current_policy_and_its_logprobs_say_so(tmp_path: Path) -> None:
    """Round 0 is written by the reference, later rounds by what was trained since."""
    config = small_config(max_steps=6, learning_rate=0.02)
    samples = small_training(tmp_path / "r", config).samples
    gaps = {0: [0.0], 2: [0.0]}
    for s in samples:
        if s["reference_logp"] is not None and s["round"] in gaps:
            gaps[s["round"]].append(abs(s["logprob"] - s["reference_logp"]))
    assert max(gaps[0]) < 1e-3 and max(gaps[2]) > 0.1


def test_g19_texts_that_were_trained_on_are_refused_as_held_out() -> None:
    train = demonstrations(TEXTS)
    new = demonstrations([("say hi", "something else")])
    check_held_out(train, new)
    stolen = Demonstration(new[0].messages, TEXTS[1][1], "test.jsonl, line 4")
    with pytest.raises(InputError, match=r"test.jsonl, line 4: .*\(demos.jsonl, line 2\)"):
        check_held_out(train, [*new, stolen])


def test_g19_base_sft_and_ditto_are_measured_side_by_side(tmp_path: Path) -> None:
    model = small_training(tmp_path / "r", small_config(learning_rate=0.02)).model
    held_out = [encoded("something else"), encoded("so long")]
    contestants = {"base": None, "sft": "sft", "ditto": "ditto"}
    prompts = [[{"role": "user", "content": "say hi"}]] * 2
    answers = write_answers(
        model,
        byte_tokenizer(),
        [Contestant(name, adapter) for name, adapter in contestants.items()],
        prompts,
        2,
        SamplingConfig(6),
        seed=0,
        progress=lambda *_: lambda *_: None,
    )
    assert [len(group) for group in answers["ditto"]] == [2, 2]
    written = {
        rival: [
            [Example(text.prompt_ids, c.ids) for c in group]
            for text, group in zip(held_out, answers[rival], strict=True)
        ]
        for rival in ("base", "sft")
    }
    margins = reward_margins(model, contestants, held_out, written, beta=0.1, max_tokens=100)
    tokens = sum(len(s.completion_ids) for s in held_out)
    found = {}
    for name, adapter in contestants.items():
        with reference_policy(model, adapter):
            found[name] = nats_per_token(model, held_out, 100)
        set_adapter(model, adapter)
        nats = -score(model, held_out).sum().item() / tokens
        assert found[name] == pytest.approx(nats, rel=1e-5)
        assert set(margins[name]) == {"base", "sft"}  # against the answers of both rivals
    assert not any(margin.any() for margin in margins["base"].values())
    assert margins["ditto"]["sft"].any()
    assert len(set(found.values())) == 3


def test_g20_no_autocast_and_no_device_by_name_outside_device_selection() -> None:
    for name, node in nodes(ast.Attribute):
        assert node.attr != "autocast", name
        assert not (node.attr == "cuda" and not is_torch(node.value)), f"{name}: .cuda()"
        allowed = name in ("devices.py", "memory.py")  # which reads how much was held
        assert not (node.attr in ("cuda", "mps") and is_torch(node.value)) or allowed, name
    for name, node in nodes(ast.Call):
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        named = [
            v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)
        ]
        device = any(v.split(":")[0] in ("cuda", "mps") for v in named)
        assert not device or name == "devices.py", f"{name}, line {node.lineno}"
    for _, node in nodes(ast.Name):
        assert node.id != "autocast"


def is_torch(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "torch"


def test_g20_no_tensor_is_left_on_another_device_than_the_model_s() -> None:
    """On the meta device, which computes nothing, a tensor made elsewhere would be an error."""
    model = with_adapter(small_model(sliding_window=4)).to("meta")
    logps = linear_logps(
        torch.empty(5, 32, device="meta"),
        model.lm_head.weight,
        torch.empty(5, device="meta").long(),
    )
    assert logps.device.type == "meta"
    assert model.logits(torch.empty(2, 7, device="meta").long()).device.type == "meta"
    texts = [Example((1, 2), (3, 4)), Example((1, 2), (5,)), Example((6,), (7, 8, 9))]
    score(model, texts).sum().backward()
    uniforms = torch.empty(2, device="meta")
    drawn, _ = draw_tokens(torch.empty(2, 9, device="meta"), uniforms, SamplingConfig(top_p=0.9))
    assert drawn.device.type == "meta"


class NoFloat64(TorchDispatchMode):
    """Apple's GPU has no float64: making one is an error there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), func
        return out


def test_g20_nothing_is_computed_in_float64() -> None:
    model = with_adapter(small_model(sliding_window=4))
    with NoFloat64():
        sample(model, [(1, 2), (3,)], 2, SamplingConfig(max_new_tokens=3), seed=0)
        score(model, [Example((1, 2), (3, 4))]).sum().backward()
