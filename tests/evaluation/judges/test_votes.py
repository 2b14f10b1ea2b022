"""The person as a judge: rates, intervals by prompt, when there are enough, and who agrees."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from minialign.data.feedback import Response
from minialign.data.votes import CHOICES, Side, Vote
from minialign.evaluation.judges.verdicts import judgement_of
from minialign.evaluation.judges.votes import ByVotes, agreement, enough, texts_of

PROMPTS, EACH = 10, 4


def vote(prompt: int, answer: int, choice: str, rival: str = "base", own: str = "left") -> Vote:
    sides = [Side(n, Response(f"{n} {prompt} {answer}")) for n in ("ditto", rival)]
    left, right = sides if own == "left" else sides[::-1]
    messages = [{"role": "user", "content": f"prompt {prompt}"}]
    return Vote(messages, left, right, choice, "votes.jsonl, line 1")


def cast(choose: Any, prompts: int = PROMPTS, each: int = EACH) -> list[Vote]:
    """`choose(prompt, answer)`, on the left where the answer's number is even."""
    return [
        vote(p, i, choose(p, i), own=CHOICES[i % 2]) for p in range(prompts) for i in range(each)
    ]


def judged(votes: list[Vote]) -> Any:
    return judgement_of(ByVotes(votes), texts_of(votes, "ditto"))


def test_the_rate_is_that_of_the_votes() -> None:
    votes = [
        *(vote(p, 0, "left") for p in range(3)),
        vote(3, 0, "right"),
        vote(4, 0, "neither"),
        vote(5, 0, "right", own="right"),
    ]
    found = judged(votes)
    (win,) = found.wins
    assert (win.first, win.second, win.comparisons) == ("ditto", "base", 6)
    assert win.rate == pytest.approx(4.5 / 6) and win.ties == pytest.approx(1 / 6)
    assert win.low < 0.5 < win.high and found.can_judge
    assert "6 votes of a person, 1 for neither; 3 of 5 went to the left" in found.note


def test_a_prompt_counts_once_however_many_votes_it_has() -> None:
    votes = [*(vote(0, i, "left") for i in range(6)), vote(1, 0, "right"), vote(2, 0, "right")]
    (win,) = judged(votes).wins
    assert win.rate == pytest.approx(1 / 3) and win.comparisons == 8


def test_a_voter_at_random_is_told_so() -> None:
    """The interval of 40 coins holds a half in about 95 of 100 cases."""
    covered = []
    for seed in range(60):
        chance = random.Random(seed)
        (win,) = judged(cast(lambda p, i, c=chance: c.choice(CHOICES[:2]))).wins
        covered.append(win.low < 0.5 < win.high)
        assert 0.2 < win.high - win.low < 0.55 and abs(win.rate - 0.5) < 0.35
    assert sum(covered) >= 54


def test_enough_goes_by_the_width_and_not_by_the_leader() -> None:
    few = cast(lambda p, i: CHOICES[i % 2])[:20]
    assert "not enough votes yet: about" in judged(few).note
    (win,) = judged(few).wins
    more = math.ceil(20 * (((win.high - win.low) / 0.3) ** 2 - 1))
    assert f"about {more} more make every interval at most 30 points wide" in judged(few).note
    many = cast(lambda p, i: CHOICES[i % 2], prompts=60, each=2)
    assert "; enough votes are in" in judged(many).note
    assert "three prompts at least" in judged(cast(lambda p, i: "left", prompts=2)).note
    assert "three prompts" in enough([])


def test_the_contestant_who_is_asked_about_comes_last() -> None:
    votes = [vote(p, 0, "left", rival) for p in range(4) for rival in ("base", "sft")]
    assert list(texts_of(votes, "ditto")) == ["base", "sft", "ditto"]
    assert list(texts_of(votes, "elsewhere"))[-1] == "sft"
    wins = judged(votes).wins
    rates = {(w.first, w.second): w.rate for w in wins}
    assert rates[("ditto", "base")] == rates[("ditto", "sft")] == 1
    assert math.isnan(rates[("sft", "base")])


def test_votes_on_other_answers_do_not_count() -> None:
    votes = cast(lambda p, i: "left")
    texts = texts_of(votes, "ditto")
    texts["ditto"][0] = ["written anew"] * EACH
    judge = ByVotes(votes)
    ((_, outcomes),) = judge.compare(texts).items()
    assert int((~np.isnan(outcomes)).sum()) == (PROMPTS - 1) * EACH
    assert f"{EACH} are about other answers" in judge.describe()
    judge.compare({"base": [["x"]], "ditto": [["y"]]})
    assert not judge.can_judge


def evaluation(outcomes: Any, can_judge: bool = True, name: str = "style") -> dict[str, Any]:
    answers = {
        n: [[f"{n} {p} {i}" for i in range(EACH)] for p in range(PROMPTS)]
        for n in ("base", "ditto")
    }
    judge = {
        **{"name": name, "can_judge": can_judge, "outcomes": [outcomes]},
        "wins": [{"first": "ditto", "second": "base"}],
    }
    return {
        "prompts": [f"prompt {p}" for p in range(PROMPTS)],
        "contestants": {n: {"answers": a} for n, a in answers.items()},
        "judges": [judge],
    }


@pytest.mark.parametrize("crosswise", [True, False])
def test_agreement_is_of_the_very_same_pairs(crosswise: bool) -> None:
    """The judge sees ditto ahead on even prompts, on the diagonal alone."""
    outcomes = np.full((PROMPTS, EACH, EACH), np.nan)
    for prompt in range(PROMPTS):
        np.fill_diagonal(outcomes[prompt], float(prompt % 2 == 0))
    if not crosswise:
        outcomes = np.diagonal(outcomes, axis1=1, axis2=2)[:, :, None]
    votes = [vote(p, i, "left" if i else "neither") for p in range(PROMPTS) for i in range(EACH)]
    found = agreement(votes, evaluation(outcomes.tolist()))["style"]
    assert found.rate == 0.5 and found.comparisons == PROMPTS * (EACH - 1)
    assert found.low < 0.5 < found.high
    votes = [vote(p, 1, CHOICES[p % 2]) for p in range(PROMPTS)]
    found = agreement(votes, evaluation(outcomes.tolist()))["style"]
    assert found.rate == 1.0 and found.low > 0.5


def test_there_is_no_agreement_without_a_verdict() -> None:
    votes = cast(lambda p, i: "left")
    nothing = np.full((PROMPTS, EACH, EACH), None)
    ties = np.full((PROMPTS, EACH, EACH), 0.5)
    assert agreement(votes, evaluation(nothing.tolist())) == {}
    assert agreement(votes, evaluation(ties.tolist())) == {}
    assert agreement(votes, evaluation((ties * 2).tolist(), can_judge=False)) == {}
    assert agreement(votes, evaluation((ties * 2).tolist(), name="votes")) == {}
    assert agreement(votes, evaluation((ties * 2).tolist())) != {}
