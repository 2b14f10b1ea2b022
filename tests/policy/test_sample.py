"""The sampler draws from the model's own distribution, whatever the batching, and stops in time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.toys import EOS, byte_tokenizer, small_model, with_adapter

from minialign.data.records import Example
from minialign.errors import InputError
from minialign.model import matmul
from minialign.model.attention import PackedAttention
from minialign.model.cache import KVCache
from minialign.model.transformer import CausalLM
from minialign.policy import sample as sampler
from minialign.policy.adapters import lora_layers
from minialign.policy.knobs import SamplingConfig
from minialign.policy.measure import rollout_gap
from minialign.policy.sample import Completion, cache_bytes, cache_rows, generate, sample
from minialign.policy.score import score

PROMPTS = [[5, 6, 7], [9], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [5, 6, 7]]
STOPS = tuple(range(2, 34))  # an eighth of the vocabulary: rows end at very different lengths
Groups = list[list[Completion]]


def stopping_model(**changes: Any) -> CausalLM:
    model = small_model(**changes)
    model.stop_ids = STOPS
    return model


def draw(model: CausalLM, n: int = 5, seed: int = 0, new: int = 12, **knobs: Any) -> Groups:
    return sample(model, PROMPTS, n, SamplingConfig(new, **knobs), seed=seed)


def ids_of(groups: Groups) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in group] for group in groups]


def pairs_of(groups: Groups) -> list[tuple[list[int], Completion]]:
    return [(p, c) for p, group in zip(PROMPTS, groups, strict=True) for c in group]


# ---- the distribution ----


@pytest.mark.parametrize("window", [None, 2, 4, 100])
@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.5, "top_k": 20, "top_p": 0.9}], ids=str)
def test_logprob_of_a_sample_is_its_score(window: int | None, knobs: dict[str, Any]) -> None:
    """Under the model as it is, whatever temperature or filter drew the tokens."""
    model = with_adapter(stopping_model(sliding_window=window))
    groups = draw(model, **knobs)
    assert len({len(c.ids) for group in groups for c in group}) > 4  # a ragged batch
    with torch.no_grad():
        expected = score(model, [Example(tuple(p), c.ids) for p, c in pairs_of(groups)])
    found = torch.tensor([c.logprob for _, c in pairs_of(groups)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("window", [None, 2, 4, 7])
def test_greedy_is_the_argmax_of_the_full_forward_pass(window: int | None) -> None:
    model = stopping_model(sliding_window=window)
    for prompt, completion in pairs_of(draw(model, n=1, temperature=0)):
        ids = torch.tensor([[*prompt, *completion.ids]])
        likeliest = model.logits(ids)[0].argmax(-1)
        assert completion.ids == tuple(likeliest[len(prompt) - 1 : -1].tolist())


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7])
def test_the_same_seed_gives_the_same_ids_for_every_max_rows(max_rows: int) -> None:
    model = stopping_model()
    together, apart = draw(model, max_rows=64), draw(model, max_rows=max_rows)
    assert ids_of(together) == ids_of(apart)
    for (_, a), (_, b) in zip(pairs_of(together), pairs_of(apart), strict=True):
        assert a.finish_reason == b.finish_reason and a.logprob == pytest.approx(
            b.logprob, abs=1e-4
        )


@pytest.mark.parametrize("max_rows", [1, 3, 64])
@pytest.mark.parametrize("window", [None, 4])
def test_looking_now_and_then_as_on_a_gpu_changes_nothing(
    max_rows: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows go on behind their ends meanwhile, and others wait for their places."""
    model = stopping_model(sliding_window=window)
    seen: list[list[tuple[int, int, int]]] = [[], []]
    found = []
    for place, steps in enumerate((1, 5)):
        monkeypatch.setattr(sampler, "_ahead", lambda _, steps=steps: steps)
        config = SamplingConfig(40, max_rows=max_rows)
        note = seen[place].append
        found.append(
            sample(model, PROMPTS, 5, config, seed=0, on_token=lambda *own, note=note: note(own))
        )
    assert ids_of(found[0]) == ids_of(found[1])
    assert sorted(seen[0]) == sorted(seen[1])
    for one, other in zip(pairs_of(found[0]), pairs_of(found[1]), strict=True):
        assert one[1].finish_reason == other[1].finish_reason
        assert one[1].logprob == pytest.approx(other[1].logprob, abs=1e-4)


def test_a_gpu_is_looked_at_now_and_then_and_a_processor_after_every_token() -> None:
    assert sampler._ahead(torch.device("cuda")) == sampler.AHEAD > 1
    assert sampler._ahead(torch.device("cpu")) == 1


def test_another_seed_prompt_or_sample_number_draws_differently() -> None:
    model = stopping_model()
    first, again, other = (ids_of(draw(model, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    drawn = first[0] + first[3]  # the same prompt twice: ten samples of one distribution
    assert len(set(drawn)) == 10


def test_samples_do_not_depend_on_how_many_there_are() -> None:
    model = stopping_model()
    many, few = ids_of(draw(model, n=5)), ids_of(draw(model, n=2))
    assert [group[:2] for group in many] == few
    assert all(group == [] for group in draw(model, n=0))


@pytest.mark.parametrize("knobs", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_each_sampling_knob_changes_what_is_drawn(knobs: dict[str, Any]) -> None:
    model = stopping_model()
    assert ids_of(draw(model)) != ids_of(draw(model, **knobs))


def test_a_stream_writes_the_same_wherever_its_prompt_stands(toy_model: CausalLM) -> None:
    prompts = [[1, 5, 6], [1, 7], [1, 9, 9, 4]]
    config = SamplingConfig(12)
    usual = sample(toy_model, prompts, 2, config, seed=3)
    assert sample(toy_model, prompts, 2, config, seed=3, streams=[0, 1, 2]) == usual
    alone = sample(toy_model, prompts[2:], 2, config, seed=3, streams=[2])
    assert [c.ids for c in alone[0]] == [c.ids for c in usual[2]]
    largest = sample(toy_model, prompts[2:], 2, config, seed=3, streams=[2**32 - 1])
    assert largest[0] != usual[2]


# ---- the cache's size ----


class Caches:
    """Notes every cache that the sampler makes, and the most rows that lived in one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[KVCache] = []
        most = [0]

        class Watched(KVCache):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                made.append(self)

            def step(self) -> Any:
                most[0] = max(most[0], len(self))
                return super().step()

        monkeypatch.setattr(sampler, "KVCache", Watched)
        self.made, self._most = made, most

    @property
    def most(self) -> int:
        return self._most[0]


def held_bytes(cache: KVCache) -> int:
    return cache.keys.nbytes + cache.values.nbytes


@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_is_what_a_row_really_holds(
    window: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = Caches(monkeypatch)
    model = stopping_model(sliding_window=window).to(dtype)
    draw(model, max_rows=7)
    longest = max(map(len, PROMPTS)) + 12
    assert [held_bytes(cache) for cache in caches.made] == [7 * cache_bytes(model, longest)]


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_cache_gb_limits_the_rows_and_not_the_result(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stopping_model()
    expected = draw(model)
    caches = Caches(monkeypatch)
    row = cache_bytes(model, max(map(len, PROMPTS)) + 12)
    found = draw(model, cache_gb=(rows + 0.5) * row / 1e9)
    assert ids_of(found) == ids_of(expected)
    assert caches.most == caches.made[0].capacity == rows
    assert held_bytes(caches.made[0]) <= (rows + 0.5) * row


def test_one_row_is_always_written_and_never_more_than_are_wanted() -> None:
    model, config = small_model(), SamplingConfig(max_rows=5)
    assert cache_rows(model, 50, 9, replace(config, cache_gb=1e-12)) == 1
    assert cache_rows(model, 50, 9, config) == 5
    assert cache_rows(model, 50, 3, config) == 3
    row = cache_bytes(model, 50)
    assert cache_rows(model, 50, 9, replace(config, cache_gb=4.5 * row / 1e9)) == 4
    assert cache_rows(model, 50, 9, replace(config, cache_gb=9.5 * row / 1e9)) == 5


def test_an_unbounded_cache_gb_leaves_the_decision_to_max_rows() -> None:
    config = SamplingConfig(max_rows=5, cache_gb=float("inf"))
    assert cache_rows(small_model(), 50, 9, config) == 5


@pytest.mark.parametrize("cache_gb", [0.0, -1.0, float("nan")])
def test_a_cache_of_no_size_is_refused(cache_gb: float) -> None:
    with pytest.raises(InputError, match="cache_gb must be positive"):
        SamplingConfig(cache_gb=cache_gb)


def test_a_window_makes_rows_cheaper_so_that_more_fit() -> None:
    full, windowed = small_model(), small_model(sliding_window=10)
    assert cache_bytes(full, 100) == 10 * cache_bytes(windowed, 100)
    assert cache_bytes(full, 10) == cache_bytes(windowed, 10)
    config = SamplingConfig(cache_gb=2.5 * cache_bytes(full, 100) / 1e9)
    assert [cache_rows(m, 100, 1000, config) for m in (full, windowed)] == [2, 25]


def test_thousands_of_samples_never_hold_more_than_max_rows_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """960 prompts of 4 completions: what the published recipe writes in a round."""
    caches = Caches(monkeypatch)
    model = small_model(num_hidden_layers=1)
    prompts = [[3 + i % 250, 3 + i // 250, 7] for i in range(960)]
    groups = sample(model, prompts, 4, SamplingConfig(2, max_rows=64), seed=0)
    assert [len(group) for group in groups] == 960 * [4]
    assert len(caches.made) == 1
    assert caches.most == caches.made[0].capacity == caches.made[0].keys.shape[1] == 64


# ---- packed weights ----


@pytest.mark.skipif(matmul.ONEDNN is None, reason="this build of PyTorch has no oneDNN")
def test_the_sampler_uses_packed_weights_and_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = stopping_model()
    packed: list[bool] = []
    product = matmul.ONEDNN

    def watched(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        packed.append(weight.is_mkldnn)
        return product(x, weight, *rest)

    monkeypatch.setattr(matmul, "ONEDNN", watched)
    draw(model)
    assert packed and all(packed)
    layers = [m for m in model.modules() if isinstance(m, matmul.Linear)]
    assert layers and all(layer.packed is None for layer in layers)


def test_without_onednn_the_same_seed_gives_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_adapter(stopping_model())
    expected = draw(model)
    monkeypatch.setattr(matmul, "ONEDNN", None)
    found = draw(model)
    assert ids_of(found) == ids_of(expected)
    for (_, a), (_, b) in zip(pairs_of(found), pairs_of(expected), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


# ---- endings ----


def test_a_stop_token_ends_a_row_and_is_kept_otherwise_the_length_does() -> None:
    groups = draw(stopping_model(), n=10)
    reasons = set()
    for _, completion in pairs_of(groups):
        reasons.add(completion.finish_reason)
        assert not any(token in STOPS for token in completion.ids[:-1])
        if completion.finish_reason == "stop":
            assert completion.ids[-1] in STOPS and len(completion.ids) <= 12
        else:
            assert completion.ids[-1] not in STOPS and len(completion.ids) == 12
    assert reasons == {"stop", "length"}


def test_a_stop_token_in_the_last_place_is_a_stop() -> None:
    model = small_model()
    model.stop_ids = tuple(range(model.config.vocab_size))
    assert {c.finish_reason for _, c in pairs_of(draw(model, new=1))} == {"stop"}
    model.stop_ids = ()
    assert {c.finish_reason for _, c in pairs_of(draw(model, new=1))} == {"length"}


@pytest.mark.parametrize("max_rows", [1, 3, 7, 64])
def test_every_token_is_computed_once_and_a_finished_row_costs_nothing(max_rows: int) -> None:
    """The last token of a completion predicts nothing that is drawn, so it is never fed."""
    model = stopping_model()
    prefill: list[int] = []
    decode: list[int] = []

    def count(module: CausalLM, args: tuple[Any, ...]) -> None:
        (prefill if isinstance(args[2], PackedAttention) else decode).append(len(args[0]))

    model.register_forward_pre_hook(count)
    groups = draw(model, n=5, max_rows=max_rows)
    assert sum(decode) == sum(len(c.ids) - 1 for _, c in pairs_of(groups))
    assert max(decode, default=0) <= max_rows
    assert sum(prefill) == 3 + 1 + 10  # each distinct prompt once, however few rows there are
    if max_rows == 64:  # all samples join at once
        assert prefill == [3 + 1 + 10]
        assert len(decode) == max(len(c.ids) for _, c in pairs_of(groups)) - 1


def test_on_token_sees_every_token_in_its_sample_s_order() -> None:
    seen: dict[tuple[int, int], list[int]] = {}
    groups = sample(
        stopping_model(),
        PROMPTS,
        3,
        SamplingConfig(12, max_rows=4),
        seed=0,
        on_token=lambda p, s, token: seen.setdefault((p, s), []).append(token),
    )
    expected = {(p, s): list(c.ids) for p, group in enumerate(groups) for s, c in enumerate(group)}
    assert seen == expected


@pytest.mark.parametrize("length", [128, 129, 500])
def test_a_prompt_that_fills_the_context_is_refused(length: int) -> None:
    with pytest.raises(InputError, match=f"the prompt has {length} tokens.*holds 128"):
        sample(small_model(), [[5], length * [5]], 1, SamplingConfig(4), seed=0)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="empty prompt"):
        sample(small_model(), [[5], []], 1, SamplingConfig(4), seed=0)


def test_a_completion_never_outgrows_the_context() -> None:
    """The limit is each prompt's own: the short one still gets its 20 tokens."""
    model = small_model()
    model.stop_ids = ()
    (long,), (short,) = sample(model, [126 * [5], [5]], 1, SamplingConfig(20), seed=0)
    assert len(long.ids) == 2 and long.finish_reason == "length"
    assert len(short.ids) == 20
    with torch.no_grad():
        expected = score(model, [Example(tuple(126 * [5]), long.ids)]).item()
    assert long.logprob == pytest.approx(expected, abs=1e-4)


# ---- around it ----


def test_sampling_uses_no_dropout_and_leaves_the_model_in_its_mode() -> None:
    model = with_adapter(stopping_model(), dropout=0.9)
    expected = ids_of(draw(model))
    model.train()
    assert ids_of(draw(model)) == expected
    assert model.training


def test_the_global_random_state_is_neither_used_nor_moved() -> None:
    model = stopping_model()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = ids_of(draw(model))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert ids_of(draw(model)) == first


def test_generate_encodes_decodes_and_samples() -> None:
    model, tokenizer = small_model(), byte_tokenizer()
    knobs = {"max_new_tokens": 8, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "seed": 3}
    groups = generate(
        model, tokenizer, ["say hi", [{"role": "user", "content": "bye"}]], n=2, **knobs
    )
    prompts = [tokenizer.encode_prompt("say hi"), tokenizer.encode_prompt("bye")]
    config = SamplingConfig(8, temperature=0.7, top_k=50, top_p=0.9)
    assert ids_of(groups) == ids_of(sample(model, prompts, 2, config, seed=3))
    for group in groups:
        for completion in group:
            assert completion.text == tokenizer.decode(completion.ids)
    model.lm_head.weight.data[EOS] *= 100  # certain to stop or never: the text shows no end token
    for (completion,) in generate(model, tokenizer, ["hi", "a", "b"], max_new_tokens=3):
        assert "</s>" not in completion.text


@pytest.mark.parametrize(("dtype", "merges"), [(torch.float32, True), (torch.bfloat16, False)])
def test_the_adapter_is_merged_while_writing_where_nothing_is_lost(
    dtype: torch.dtype, merges: bool
) -> None:
    model = with_adapter(small_model().to(dtype), scale=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: set[bool] = set()
    layers = list(lora_layers(model).values())

    def watch(*_: int) -> None:
        seen.update(layer.merged for layer in layers)

    sample(model, [[5, 6, 7]], 2, SamplingConfig(max_new_tokens=3), seed=0, on_token=watch)
    assert seen == {merges}
    assert not any(layer.merged for layer in layers)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


# ---- in int8 ----


def in_int8(max_rows: int, model: CausalLM) -> Groups:
    return draw(model, max_rows=max_rows, rollout_dtype="int8")


@pytest.mark.parametrize("max_rows", [1, 3])
def test_int8_rollouts_do_not_depend_on_who_else_is_written(max_rows: int) -> None:
    model = with_adapter(stopping_model())
    model.ordinary_ids = tuple(range(3, 60))
    together, apart = in_int8(64, model), in_int8(max_rows, model)
    assert ids_of(together) == ids_of(apart)
    assert ids_of(together) != ids_of(draw(model))


def test_the_gap_of_int8_rollouts_is_small_and_that_of_the_policy_s_own_is_none() -> None:
    model = with_adapter(stopping_model())
    model.ordinary_ids = tuple(range(3, 60))
    gaps = [
        rollout_gap(model, PROMPTS, draw(model, rollout_dtype=name, n=20), 10_000)
        for name in ("model", "int8")
    ]
    assert abs(gaps[0]) < 1e-5 < gaps[1] < 0.05
