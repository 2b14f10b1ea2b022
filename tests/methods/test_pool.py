"""DITTO's ranking as comparisons: how many of which kind, and which texts may meet."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minialign.data.records import Example
from minialign.methods.knobs import DittoConfig
from minialign.methods.pool import Comparison, ComparisonPool, shares
from minialign.policy.sample import Completion

PAPER_MIX = DittoConfig().mix
P, Q = (1, 5), (1, 6)
Round = list[list[tuple[int, ...]]]  # demonstration -> samples' ids


def make_pool(demonstrations: list[Example], *rounds: Round) -> ComparisonPool:
    pool = ComparisonPool(demonstrations)
    for groups in rounds:
        pool.add_round([[Completion("", ids, -1.0, "stop") for ids in group] for group in groups])
    return pool


def numbered_pool(prompts: list[tuple[int, ...]], rounds: int, each: int) -> ComparisonPool:
    """Every text is different: demonstration i is (i, 2), its samples end in it too."""
    demonstrations = [Example(prompt, (i, 2)) for i, prompt in enumerate(prompts)]
    written = [
        [[(1000 + 100 * r + s, i, 2) for s in range(each)] for i in range(len(prompts))]
        for r in range(rounds)
    ]
    return make_pool(demonstrations, *written)


def texts(pairs: list[Comparison], kind: str | None = None) -> set[tuple]:
    chosen = [p for p in pairs if kind in (None, p.kind)]
    return {(p.demonstration, p.chosen.completion_ids, p.rejected.completion_ids) for p in chosen}


def kinds(pairs: list[Comparison]) -> Counter:
    return Counter(pair.kind for pair in pairs)


def everything(pool: ComparisonPool, kind: str) -> list[Comparison]:
    mix = {name: float(name == kind) for name in PAPER_MIX}
    return pool.draw(10_000, mix, random.Random(0))


# ---- how many ----


@pytest.mark.parametrize(
    ("count", "fractions", "expected"),
    [
        (24, (0.7, 0.2, 0.1), [17, 5, 2]),
        (10, (0.7, 0.2, 0.1), [7, 2, 1]),
        (13, (0.7, 0.2, 0.1), [9, 3, 1]),  # 9.1, 2.6, 1.3
        (1, (0.7, 0.2, 0.1), [1, 0, 0]),
        (3, (1 / 3, 1 / 3, 1 / 3), [1, 1, 1]),
        (5, (0.0, 0.0, 1.0), [0, 0, 5]),
        (0, (0.7, 0.2, 0.1), [0, 0, 0]),
    ],
)
def test_shares_are_whole_and_proportional(
    count: int, fractions: tuple[float, ...], expected: list[int]
) -> None:
    assert shares(count, fractions) == expected


@given(st.integers(0, 500), st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any))
def test_shares_add_up_and_are_never_off_by_one_or_more(count: int, weights: list[int]) -> None:
    fractions = [weight / sum(weights) for weight in weights]
    found = shares(count, fractions)
    assert sum(found) == count
    for own, fraction in zip(found, fractions, strict=True):
        assert abs(own - count * fraction) < 1


def test_round_0_has_only_expert_pairs_and_is_not_filled_up() -> None:
    pool = numbered_pool([P, Q, P], 1, 10)
    assert kinds(pool.draw(24, PAPER_MIX, random.Random(0))) == {"expert": 17}


@pytest.mark.parametrize("rounds", [2, 3, 4])
def test_later_rounds_have_17_5_and_2_of_24(rounds: int) -> None:
    pairs = numbered_pool([P, Q, P], rounds, 10).draw(24, PAPER_MIX, random.Random(0))
    assert kinds(pairs) == {"expert": 17, "replay": 5, "inter_model": 2}


# ---- which ----


def test_candidates_are_the_hand_enumerated_ones() -> None:
    """One demonstration (9), rounds (10 11), (20), (30 31)."""
    pool = make_pool([Example(P, (9,))], [[(10,), (11,)]], [[(20,)]], [[(30,), (31,)]])
    assert texts(everything(pool, "expert")) == {(0, (9,), (30,)), (0, (9,), (31,))}
    assert texts(everything(pool, "replay")) == {(0, (9,), (x,)) for x in (10, 11, 20)}
    newer_older = [(20, 10), (20, 11), (30, 10), (30, 11), (31, 10), (31, 11), (30, 20), (31, 20)]
    assert texts(everything(pool, "inter_model")) == {(0, (a,), (b,)) for a, b in newer_older}


def test_both_texts_answer_the_demonstration_s_own_prompt() -> None:
    pool = numbered_pool([P, Q], 2, 2)
    for pair in pool.draw(100, PAPER_MIX, random.Random(0)):
        assert pair.chosen.prompt_ids == pair.rejected.prompt_ids == (P, Q)[pair.demonstration]


def test_identical_texts_are_left_out_and_repeated_ones_count_once() -> None:
    pool = make_pool([Example(P, (9,))], [[(9,), (10,), (10,)]], [[(10,), (9,), (20,), (20,)]])
    assert texts(everything(pool, "expert")) == {(0, (9,), (10,)), (0, (9,), (20,))}
    assert len(everything(pool, "expert")) == 2
    assert texts(everything(pool, "replay")) == {(0, (9,), (10,))}
    assert len(everything(pool, "replay")) == 1
    # newer (10 9 20 20) over older (9 10 10), but 9 is the demonstration: nothing is better
    expected = {((9,), (10,)), ((20,), (10,))}
    assert {pair[1:] for pair in texts(everything(pool, "inter_model"))} == expected
    assert len(everything(pool, "inter_model")) == 2


def test_no_demonstration_is_ever_the_worse_text() -> None:
    """The model may write one demonstration by heart in answer to another with the same prompt."""
    pool = make_pool([Example(P, (8,)), Example(P, (9,))], [[(9,), (10,)], [(8,), (11,)]])
    expected = {(0, (8,), (10,)), (1, (9,), (11,))}
    assert texts(everything(pool, "expert")) == expected


def test_a_round_that_only_repeats_the_demonstration_offers_nothing() -> None:
    pool = make_pool([Example(P, (9,))], [[(9,), (9,)]])
    assert pool.draw(24, PAPER_MIX, random.Random(0)) == []


def test_one_demonstration_is_enough() -> None:
    pairs = numbered_pool([P], 2, 10).draw(24, PAPER_MIX, random.Random(0))
    assert kinds(pairs) == {"expert": 10, "replay": 5, "inter_model": 2}  # ten samples, no more


def test_two_demonstrations_of_one_prompt_keep_their_own_samples_and_both_are_chosen() -> None:
    pool = numbered_pool([P, P], 1, 4)
    pairs = pool.draw(
        6, PAPER_MIX | {"expert": 1.0, "replay": 0, "inter_model": 0}, random.Random(0)
    )
    assert Counter(pair.chosen.completion_ids for pair in pairs) == {(0, 2): 3, (1, 2): 3}
    assert all(pair.rejected.completion_ids[1] == pair.demonstration for pair in pairs)


def test_fifty_demonstrations_take_turns() -> None:
    """A step of 24 meets 17 of them; over the steps of a round, all."""
    pool = numbered_pool([(1, i) for i in range(50)], 1, 10)
    met: set[int] = set()
    for step in range(10):
        pairs = pool.draw(24, PAPER_MIX, random.Random(step))
        counts = Counter(pair.demonstration for pair in pairs)
        assert len(counts) == 17 and max(counts.values()) == 1
        met |= counts.keys()
    assert len(met) > 45


@pytest.mark.parametrize("kind", PAPER_MIX)
def test_every_candidate_is_drawn_in_time(kind: str) -> None:
    pool = numbered_pool([P, Q], 2, 4)
    mix = {name: float(name == kind) for name in PAPER_MIX}
    drawn = {pair for step in range(200) for pair in pool.draw(2, mix, random.Random(step))}
    assert drawn == set(everything(pool, kind))


@pytest.mark.parametrize(
    "mix",
    [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.0), (0.2, 0.2, 0.6)],
)
def test_the_mix_decides_what_is_drawn(mix: tuple[float, ...]) -> None:
    pairs = numbered_pool([P, Q, P], 3, 10).draw(
        10, dict(zip(PAPER_MIX, mix, strict=True)), random.Random(0)
    )
    found = kinds(pairs)
    assert [found[kind] for kind in PAPER_MIX] == [round(10 * share) for share in mix]


def test_draws_follow_the_generator_alone() -> None:
    pool = numbered_pool([P, Q, P], 3, 10)
    first = pool.draw(24, PAPER_MIX, random.Random("a"))
    random.seed(5)
    random.random()
    assert pool.draw(24, PAPER_MIX, random.Random("a")) == first
    assert pool.draw(24, PAPER_MIX, random.Random("b")) != first


def test_the_state_holds_every_round() -> None:
    pool = numbered_pool([P, Q], 3, 2)
    again = ComparisonPool(pool.demonstrations)
    again.load_state(pool.state())
    assert again.rounds == pool.rounds
    assert again.draw(24, PAPER_MIX, random.Random(0)) == pool.draw(24, PAPER_MIX, random.Random(0))


def test_a_round_must_answer_every_demonstration() -> None:
    with pytest.raises(ValueError):
        make_pool([Example(P, (9,)), Example(Q, (8,))], [[(10,)]])


pools = st.builds(
    lambda prompts, rounds: make_pool(
        [Example(prompt, (i % 3, 2)) for i, prompt in enumerate(prompts)],
        *(
            [[(token, 2) for token in group] for group in groups[: len(prompts)]]
            for groups in rounds
        ),
    ),
    st.lists(st.sampled_from([P, Q]), min_size=1, max_size=4),
    st.lists(
        st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=4, max_size=4),
        min_size=1,
        max_size=4,
    ),
)


@settings(max_examples=150, deadline=None)
@given(pools, st.integers(1, 40), st.integers(0, 10**6))
def test_whatever_the_samples_every_comparison_is_legal(
    pool: ComparisonPool, count: int, seed: int
) -> None:
    pairs = pool.draw(count, PAPER_MIX, random.Random(seed))
    assert len(set(pairs)) == len(pairs)
    wanted = dict(zip(PAPER_MIX, shares(count, list(PAPER_MIX.values())), strict=True))
    for kind in PAPER_MIX:
        available = everything(pool, kind)
        assert kinds(pairs)[kind] == min(wanted[kind], len(available))
        assert {p for p in pairs if p.kind == kind} <= set(available)
    last = len(pool.rounds) - 1
    written = {(s.round, s.demonstration, s.sequence) for s in pool.samples}  # some in many rounds
    for pair in pairs:
        assert pair.chosen != pair.rejected

        def rounds_of(sequence: Example, who: int = pair.demonstration) -> list[int]:
            return [r for r in range(last + 1) if (r, who, sequence) in written]

        rejected = rounds_of(pair.rejected)
        if pair.kind == "inter_model":
            assert max(rounds_of(pair.chosen)) > min(rejected)
        else:
            assert pair.chosen == pool.demonstrations[pair.demonstration]
            assert last in rejected if pair.kind == "expert" else min(rejected) < last
