"""Who sees whom: packed sequences and the cache against one plain forward pass per sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minialign.data.records import Sequence
from minialign.model import block_attention
from minialign.model.attention import PackedAttention
from minialign.model.cache import KVCache
from minialign.model.config import ModelConfig
from minialign.model.segments import Segment, causal_mask
from minialign.model.transformer import CausalLM
from minialign.policy.score import score

WINDOW = 8
CLOSE = 1e-4  # float32 rounding in another order of operations, on logits of the order of 10


@pytest.fixture(params=[None, WINDOW], ids=["no window", "window 8"])
def model(
    request: pytest.FixtureRequest,
    toy_config: ModelConfig,
    make_toy_model: Callable[..., CausalLM],
) -> CausalLM:
    return make_toy_model(replace(toy_config, sliding_window=request.param))


def text(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (length,), generator=generator).tolist()


def full(model: CausalLM, ids: list[int]) -> Tensor:
    """(T, V): the reference, a forward pass of this text alone."""
    with torch.no_grad():
        return model.logits(torch.tensor([ids]))[0]


class Writer:
    """Reads prompts into a cache and then feeds its rows tokens of our choice."""

    def __init__(self, model: CausalLM, rows: int, length: int = 40) -> None:
        config = model.config
        heads = (config.num_key_value_heads, config.head_dim)
        self.model = model
        self.cache = KVCache(
            config.num_hidden_layers,
            rows,
            length,
            *heads,
            window=config.sliding_window,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )

    @torch.no_grad()
    def read(self, prompts: list[list[int]], copies: int = 1) -> Tensor:
        """(sum of the prompts' lengths, V)."""
        ids = [token for prompt in prompts for token in prompt]
        stops = torch.tensor([len(prompt) for prompt in prompts]).cumsum(0).tolist()
        segments = [
            Segment(stop - len(prompt), stop) for prompt, stop in zip(prompts, stops, strict=True)
        ]
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
        window = self.model.config.sliding_window
        attend = PackedAttention(segments, window, torch.device("cpu"), record=True)
        hidden = self.model(torch.tensor(ids), positions, attend)
        for segment, prompt in zip(segments, prompts, strict=True):
            own = slice(segment.start, segment.stop)
            recorded = [(k[own], v[own]) for k, v in attend.recorded]
            self.cache.add(recorded, len(prompt), copies)
        return self.model.lm_head(hidden)

    @torch.no_grad()
    def feed(self, ids: list[int]) -> Tensor:
        """One token for each live row -> (B, V)."""
        assert len(ids) == len(self.cache)
        positions, attend = self.cache.step()
        return self.model.lm_head(self.model(torch.tensor(ids), positions, attend))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max() < CLOSE


def test_the_mask_is_causal_and_its_window_counts_the_token_itself() -> None:
    positions = torch.arange(4)
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]).bool()
    assert torch.equal(causal_mask(positions, positions, 2), expected)
    assert torch.equal(causal_mask(positions, positions, None), torch.ones(4, 4).tril().bool())


@pytest.mark.parametrize("prompt_length", [1, 5, WINDOW, WINDOW + 3])
@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_a_text_decoded_token_by_token_has_the_logits_of_the_full_forward(
    model: CausalLM, prompt_length: int, length: int
) -> None:
    ids = text(0, length)
    writer = Writer(model, rows=1)
    steps = [writer.read([ids[:prompt_length]])]
    steps += [writer.feed([token]) for token in ids[prompt_length:]]
    assert_close(torch.cat(steps)[:length], full(model, ids))


def test_rows_of_unequal_lengths_do_not_disturb_one_another(model: CausalLM) -> None:
    texts = [text(seed, 22) for seed in range(4)]
    prompt_lengths = [1, 7, 13, WINDOW]
    writer = Writer(model, rows=4)
    read = writer.read([ids[:n] for ids, n in zip(texts, prompt_lengths, strict=True)])
    expected = [full(model, ids) for ids in texts]
    heads = [rows[:n] for rows, n in zip(expected, prompt_lengths, strict=True)]
    assert_close(read, torch.cat(heads))
    for step in range(9):
        at = [n + step for n in prompt_lengths]
        logits = writer.feed([ids[i] for ids, i in zip(texts, at, strict=True)])
        assert_close(logits, torch.stack([e[i] for e, i in zip(expected, at, strict=True)]))


def test_samples_of_one_prompt_share_its_reading_and_then_go_their_own_ways(
    model: CausalLM,
) -> None:
    prompts = [text(0, 9), text(1, 4)]
    tails = [text(10 + row, 12) for row in range(6)]
    writer = Writer(model, rows=6)
    writer.read(prompts, copies=3)
    texts = [prompts[row // 3] + tails[row] for row in range(6)]
    expected = [full(model, ids) for ids in texts]
    for step in range(12):
        logits = writer.feed([tail[step] for tail in tails])
        at = [len(prompts[row // 3]) + step for row in range(6)]
        assert_close(logits, torch.stack([e[i] for e, i in zip(expected, at, strict=True)]))


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_removed_row_leaves_the_others_right_and_its_place_to_a_new_one(
    model: CausalLM, removed: int
) -> None:
    texts = [text(seed, 30) for seed in range(4)]
    at = [3, 14, 6]  # tokens that each row has seen
    writer = Writer(model, rows=3)
    writer.read([texts[row][: at[row]] for row in range(3)])
    live = [0, 1, 2]

    def feed_and_check() -> None:
        logits = writer.feed([texts[row][at[row]] for row in live])
        assert_close(logits, torch.stack([full(model, texts[row])[at[row]] for row in live]))
        for row in live:
            at[row] += 1

    feed_and_check()
    writer.cache.remove(removed)
    live[removed] = live[-1]
    live.pop()
    feed_and_check()
    feed_and_check()
    writer.read([texts[3][:2]])  # short: what a longer row left behind it must stay unseen
    live.append(3)
    at.append(2)
    for _ in range(4):
        feed_and_check()


# ---- the ring ----

PROMPT_LENGTHS = [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW]


@pytest.fixture
def windowed(toy_config: ModelConfig, make_toy_model: Callable[..., CausalLM]) -> CausalLM:
    return make_toy_model(replace(toy_config, sliding_window=WINDOW))


def places(writer: Writer) -> tuple[int, int]:
    return writer.cache.keys.shape[2], writer.cache.values.shape[2]


def test_the_cache_has_as_many_places_as_can_be_seen_and_no_more(
    windowed: CausalLM, toy_model: CausalLM
) -> None:
    assert places(Writer(windowed, 1, length=100)) == (WINDOW, WINDOW)
    assert places(Writer(windowed, 1, length=WINDOW - 1)) == (WINDOW - 1, WINDOW - 1)
    assert places(Writer(toy_model, 1, length=100)) == (100, 100)


@pytest.mark.parametrize("prompt_length", PROMPT_LENGTHS)
def test_a_ring_that_is_overwritten_many_times_has_the_logits_of_the_full_forward(
    windowed: CausalLM, prompt_length: int
) -> None:
    """Two layers see further back than one window, so a stale or missing place would show."""
    ids = text(0, prompt_length + 4 * WINDOW + 3)
    writer = Writer(windowed, rows=1, length=len(ids))
    steps = [writer.read([ids[:prompt_length]])]
    steps += [writer.feed([token]) for token in ids[prompt_length:]]
    assert_close(torch.cat(steps), full(windowed, ids))
    assert places(writer) == (WINDOW, WINDOW)


def test_a_token_that_has_left_the_window_is_forgotten(
    toy_config: ModelConfig, make_toy_model: Callable[..., CausalLM]
) -> None:
    """One layer, so nothing reaches further than a window: other old tokens change not a bit."""
    model = make_toy_model(replace(toy_config, sliding_window=WINDOW, num_hidden_layers=1))
    same = text(0, WINDOW)
    seen = []
    for seed in (1, 2):
        writer = Writer(model, rows=1)
        writer.read([text(seed, WINDOW + 2)])
        seen += [torch.cat([writer.feed([token]) for token in same])]
    assert torch.equal(seen[0][-1], seen[1][-1])
    assert not torch.equal(seen[0][-2], seen[1][-2])


@pytest.mark.parametrize("removed", range(4))
def test_rows_leave_and_join_while_the_rings_are_full(windowed: CausalLM, removed: int) -> None:
    texts = [text(seed, 60) for seed in range(6)]
    at = dict(enumerate(PROMPT_LENGTHS))  # tokens that each row has seen
    writer = Writer(windowed, rows=4, length=60)
    writer.read([texts[row][:length] for row, length in at.items()])
    expected = [full(windowed, ids) for ids in texts]
    live = list(at)

    def feed_and_check(steps: int) -> None:
        for _ in range(steps):
            logits = writer.feed([texts[row][at[row]] for row in live])
            assert_close(logits, torch.stack([expected[row][at[row]] for row in live]))
            for row in live:
                at[row] += 1

    def remove(place: int) -> None:
        writer.cache.remove(place)
        live[place] = live[-1]
        live.pop()

    feed_and_check(WINDOW + 3)
    remove(removed)
    feed_and_check(WINDOW + 1)
    for row, length in ((4, 2), (5, 2 * WINDOW + 1)):  # into the places of full rings
        writer.read([texts[row][:length]])
        live.append(row)
        at[row] = length
        feed_and_check(2)
        remove(0)
    feed_and_check(5)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh memory that nobody wrote to holds NaN, as it may by chance."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_cache_never_reads_memory_that_nobody_wrote_to(
    model: CausalLM, poisoned_memory: None
) -> None:
    writer = Writer(model, rows=3)
    short, long = text(0, 6), text(1, 20)
    writer.read([short[:2], long[:16]])
    logits = writer.feed([short[2], long[16]])
    assert_close(logits, torch.stack([full(model, short)[2], full(model, long)[16]]))


# ---- packed scoring against sequences one by one ----


def separate_scores(model: CausalLM, sequences: list[Sequence]) -> Tensor:
    """The definition: log_softmax of the plain logits, gathered sequence by sequence."""
    sums = []
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
        logps = model.logits(ids)[0].log_softmax(-1)[len(sequence.prompt_ids) - 1 : -1]
        picked = logps.gather(1, torch.tensor(sequence.completion_ids)[:, None])
        sums.append(picked.sum())
    return torch.stack(sums)


def gradients(
    model: CausalLM, scores: Tensor, weights: Tensor, without_head: bool
) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert ("lm_head.weight" in named) is not without_head
    found = torch.autograd.grad((scores * weights).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("frozen_head", [True, False], ids=["frozen head", "trainable head"])
def test_completions_packed_behind_one_prompt_score_and_learn_as_if_alone(
    model: CausalLM, frozen_head: bool
) -> None:
    shared, other = tuple(text(0, 11)), tuple(text(1, 3))
    sequences = [
        Sequence(shared, tuple(text(2, 1))),
        Sequence(other, tuple(text(3, 20))),
        Sequence(shared, tuple(text(4, 7))),
        Sequence(shared, tuple(text(5, 15))),
        Sequence(other[:1], tuple(text(6, 2))),
    ]
    weights = torch.tensor([1.0, -0.5, 0.25, 2.0, -1.0])
    model.requires_grad_(True)
    model.lm_head.requires_grad_(not frozen_head)
    packed, separate = score(model, sequences), separate_scores(model, sequences)
    # sums of up to 20 log-probabilities of about -6, rounded in float32
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-3)
    expected = gradients(model, separate, weights, frozen_head)
    for name, gradient in gradients(model, packed, weights, frozen_head).items():
        largest = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() < 1e-4 * largest, name


tokens = st.integers(3, 300)
prompts = st.lists(tokens, min_size=1, max_size=12).map(tuple)
completions = st.lists(tokens, min_size=1, max_size=12).map(tuple)
prompt_groups = st.lists(
    st.tuples(prompts, st.lists(completions, min_size=1, max_size=3)), min_size=1, max_size=4
)


@settings(max_examples=40)
@given(groups=prompt_groups, window=st.sampled_from([None, 1, 5]), order=st.randoms())
def test_any_mixture_of_prompts_and_completions_scores_as_sequence_by_sequence(
    groups: list, window: int | None, order: object, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue("toy_config")
    model = request.getfixturevalue("make_toy_model")(replace(config, sliding_window=window))
    sequences = [Sequence(prompt, own) for prompt, group in groups for own in group]
    order.shuffle(sequences)  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = separate_scores(model, sequences)
        torch.testing.assert_close(score(model, sequences), expected, rtol=1e-5, atol=1e-3)


# ---- blocks of queries against the simple way ----


def attention_case(
    dtype: torch.dtype, window: int | None, *lengths: tuple[int, int, int]
) -> tuple[PackedAttention, list[torch.Tensor], torch.Tensor]:
    """Prompts with two completions each: (prompt, first, second) tokens."""
    segments: list[Segment] = []
    for prompt, *completions in lengths:
        start = segments[-1].stop if segments else 0
        prefix = (start, start + prompt) if prompt else None
        if prompt:
            segments.append(Segment(start, start + prompt))
        for length in completions:
            stop = segments[-1].stop if segments else 0
            segments.append(Segment(stop, stop + length, prefix))
    generator = torch.Generator().manual_seed(len(segments))
    total = segments[-1].stop
    q, k, v, factors = (
        torch.randn(total, heads, 8, generator=generator, dtype=torch.float64).to(dtype)
        for heads in (4, 2, 2, 4)
    )
    attend = PackedAttention(segments, window, torch.device("cpu"))
    return attend, [x.requires_grad_() for x in (q, k, v)], factors


def with_gradients(function: Any, inputs: list[torch.Tensor], factors: Any) -> list[torch.Tensor]:
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad((out * factors).sum(), inputs)]


@pytest.mark.parametrize("window", [None, 1, 50, 64, 65])
@pytest.mark.parametrize(
    "lengths",
    [(0, 1, 63), (0, 64, 65), (3, 1, 200), (70, 63, 130), (200, 64, 5)],
    ids=str,
)
def test_blocks_equal_the_simple_way_in_values_and_gradients(
    lengths: tuple[int, int, int], window: int | None
) -> None:
    attend, inputs, factors = attention_case(torch.float64, window, lengths, (5, 2, 66))
    found = with_gradients(lambda *qkv: attend(0, *qkv), inputs, factors)
    expected = with_gradients(attend.simple, inputs, factors)
    for own, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_blocks_in_other_types_stay_near_float64(dtype: torch.dtype, tolerance: float) -> None:
    attend, inputs, factors = attention_case(dtype, 80, (70, 63, 130))
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found = with_gradients(lambda *qkv: attend(0, *qkv), inputs, factors)
    for own, truth in zip(found, with_gradients(attend.simple, exact, factors), strict=True):
        assert own.dtype == dtype
        assert (own.double() - truth).norm() <= tolerance * truth.norm()


def test_blocks_pass_gradcheck_across_their_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_attention, "BLOCK", 3)
    attend, inputs, _ = attention_case(torch.float64, 5, (4, 7, 2))
    assert torch.autograd.gradcheck(lambda *qkv: attend(0, *qkv), inputs)


def test_a_sum_of_attention_has_the_right_gradient() -> None:
    """The gradient of a plain sum is one number seen at every place, not a tensor of its own."""
    attend, inputs, _ = attention_case(torch.float64, None, (70, 63, 130))
    own = torch.autograd.grad(attend(0, *inputs).sum(), inputs)
    for found, truth in zip(
        own, torch.autograd.grad(attend.simple(*inputs).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
