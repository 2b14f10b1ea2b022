"""The cache: a text decoded token by token has the logits of the full forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from helpers.sequences import WINDOW, text
from torch import Tensor

from minialign.model.attention import PackedAttention
from minialign.model.cache import KVCache
from minialign.model.config import LayerSpec, ModelConfig
from minialign.model.segments import Segment
from minialign.model.transformer import CausalLM

CLOSE = 1e-4  # float32 rounding in another order of operations, on logits of the order of 10


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
            config.windows,
            rows,
            length,
            *heads,
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
        windows = self.model.config.windows
        attend = PackedAttention(segments, windows, torch.device("cpu"), record=True)
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


@pytest.mark.parametrize("windows", [(WINDOW, None), (3, WINDOW), (WINDOW, 1)])
def test_layers_of_unequal_windows_share_a_ring(
    windows: tuple[int, int | None],
    toy_config: ModelConfig,
    make_toy_model: Callable[..., CausalLM],
) -> None:
    specs = tuple(LayerSpec(window) for window in windows)
    model = make_toy_model(replace(toy_config, layer_specs=specs))
    ids = text(0, 4 * WINDOW)
    writer = Writer(model, rows=1)
    steps = [writer.read([ids[: WINDOW + 3]])]
    steps += [writer.feed([token]) for token in ids[WINDOW + 3 :]]
    assert_close(torch.cat(steps), full(model, ids))
    one = make_toy_model(replace(toy_config, sliding_window=windows[0]))
    assert (full(one, ids) - full(model, ids)).abs().max() > 0.1
