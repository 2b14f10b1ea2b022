"""The best of several answers: by style among the fluent, whole and uncopied, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers.toys import EOS, byte_tokenizer, naive_score, small_model, with_adapter

from minialign.data.records import Demonstration, Example
from minialign.evaluation.best import Pick, fit_judge, pick
from minialign.evaluation.judges.panel import PanelJudge
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import set_adapter
from minialign.policy.knobs import SamplingConfig
from minialign.policy.sample import Completion, FinishReason

PROMPT = (5, 6, 7)
OWN = "one two three four five six seven eight"
LEARNED = [Demonstration([{"role": "user", "content": "a"}], OWN, "")]
WORDS = ("kind", "regards", "hello", "soup", "shed", "cat")


class Fixed:
    """A judge whose scores are known."""

    def __init__(self, values: Sequence[float], can_judge: bool = True) -> None:
        self.values, self.can_judge = values, can_judge

    def scores(self, texts: Sequence[str]) -> Any:
        return np.array(self.values[: len(texts)])


def answers(*texts: str, reason: FinishReason = "stop") -> list[Completion]:
    ids = [tuple(20 + (7 * i + k) % 90 for k in range(6 + i)) for i in range(len(texts))]
    return [Completion(t, (*own, EOS), 0.0, reason) for t, own in zip(texts, ids, strict=True)]


def chosen(
    values: Sequence[float], given: list[Completion], model: CausalLM | None = None, **how: Any
) -> Pick:
    judge = cast(PanelJudge, Fixed(values, **how))
    return pick(model or small_model(), judge, LEARNED, PROMPT, given)


def test_the_surprise_is_the_base_models_whatever_adapter_is_active() -> None:
    model = small_model()
    given = answers(*WORDS)
    plain = chosen(range(6), given, model).surprise
    with_adapter(model)
    assert chosen(range(6), given, model).surprise == pytest.approx(plain, rel=1e-5)
    set_adapter(model, None)
    with torch.no_grad():
        expected = [-float(naive_score(model, Example(PROMPT, a.ids))) / len(a.ids) for a in given]
    assert plain == pytest.approx(expected, rel=1e-4)


def test_the_most_like_the_person_of_the_fluent_half_wins() -> None:
    given = answers(*WORDS)
    surprise = chosen(range(6), given).surprise
    half = sorted(range(6), key=surprise.__getitem__)[:3]
    for best in half:
        values = [10.0 * (i not in half) + (i == best) for i in range(6)]
        found = chosen(values, given)
        assert found.place == best and found.eligible == sorted(half)
        assert found.surprise[found.place] <= np.median(found.surprise)


def test_an_answer_that_is_cut_off_copied_or_empty_wins_only_where_all_are() -> None:
    given = answers(*WORDS)
    bad = [
        answers("cut", reason="length")[0],
        Completion(OWN, given[1].ids, 0.0, "stop"),
        answers(" ")[0],
    ]
    found = chosen([9.0, 8.0, 7.0, 1.0, 2.0], [*bad, *given[3:5]])
    assert set(found.eligible) <= {3, 4}
    assert chosen([9.0, 8.0, 7.0], bad).place in chosen([9.0, 8.0, 7.0], bad).eligible


def test_a_judge_that_cannot_judge_leaves_it_to_fluency() -> None:
    given = answers(*WORDS)
    found = chosen(range(6), given, can_judge=False)
    assert found.place == int(np.argmin(found.surprise))
    assert "the most fluent of the 3" in found.why()


def test_why_says_the_figures() -> None:
    why = Pick(1, [0.5, 2.0, 1.5], [3.0, 2.5, 2.0], [1, 2], True).why()
    assert why == (
        "answer 2 of 3: most like the person of the 2 that are fluent, whole and not copied; "
        "style +2.00, the others' mean +1.00; nats per token under the base model 2.50, the "
        "others' mean 2.50"
    )


def test_the_judge_learns_from_the_person_the_base_model_and_others() -> None:
    learned = [
        Demonstration([{"role": "user", "content": f"p{i}"}], f"Right then {WORDS[i]}, Maud.", "")
        for i in range(3)
    ]
    judge = fit_judge(small_model(), byte_tokenizer(), learned, SamplingConfig(8), 0)
    assert judge.own_texts == 3 and judge.other_texts > 10
