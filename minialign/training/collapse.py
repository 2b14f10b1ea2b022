"""Signs that a training collapses, read from its lines of metrics alone.

Four rules, each of which warns once a stage:

* the texts to learn cost more in each of the last `STEPS` steps than in each of the `STEPS` before,
  and on the average `COST_RISE` nats per token more: the chosen log-probability falls;
* the held-out loss stands `UNSEEN_RISE` nats per token above its lowest, twice in a row;
* of the answers that the model writes, fewer than half as many end by themselves as at first, and
  `ENDED_FALL` of all fewer;
* of the answers' `IN_A_ROW` tokens in a row, `REPEATED_RISE` more stood in the answer before than
  at first.

Answers are counted in lots of at least `LOT`; the first lot of a stage is "at first". What was seen
follows from the lines, so a resumed run reads them again and has no other state.

This module imports nothing heavy: a report reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

# The metric of texts that were not trained on, and of the state that was kept in the end.
UNSEEN = "eval/nats_per_token"
KEPT_UNSEEN = f"kept/{UNSEEN}"
# What a line says in words: warnings, and how a stage ended.
WARNINGS, NOTE = "warnings", "note"
# What the texts to learn cost, in nats per token: the first of these that a step logs.
COSTS = ("nll/demonstrations", "nll/in_scope", "loss")
STEPS, COST_RISE = 6, 0.2
UNSEEN_RISE = 0.05
LOT, IN_A_ROW = 20, 4
ENDED_FALL, REPEATED_RISE = 0.25, 0.2


class Written(Protocol):
    """An answer, as the sampler hands it over."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def finish_reason(self) -> str: ...


def answer_figures(answers: Sequence[Written]) -> dict[str, float]:
    """What a line of metrics says of answers: their number, and two shares that the rules read."""
    ended = sum(answer.finish_reason == "stop" for answer in answers)
    return {
        "answers": len(answers),
        "ended": ended / len(answers),
        "repeated": sum(repeated(answer.ids) for answer in answers) / len(answers),
    }


def repeated(ids: Sequence[int]) -> float:
    """The share of an answer's `IN_A_ROW` tokens in a row that stood in it before."""
    runs = [tuple(ids[place : place + IN_A_ROW]) for place in range(len(ids) - IN_A_ROW + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


# ---- the rules: what is wrong with a series, in words; empty where nothing is ----


def cost_rises(nats: Sequence[float]) -> str:
    """Of a step each."""
    before, last = nats[-2 * STEPS : -STEPS], nats[-STEPS:]
    if len(before) < STEPS:
        return ""
    first, now = _mean(before), _mean(last)
    if min(last) > max(before) and now - first >= COST_RISE:
        return f"the texts to learn cost more and more: {first:.2f} -> {now:.2f} nats per token"
    return ""


def unseen_rises(nats: Sequence[float]) -> str:
    """Of a measurement each."""
    lowest = min(nats, default=0.0)
    if len(nats) < 3 or min(nats[-2:]) - lowest < UNSEEN_RISE:
        return ""
    return f"the held-out loss rises: {lowest:.2f} -> {nats[-1]:.2f} nats per token"


def endings_lost(shares: Sequence[float]) -> str:
    """Of a lot of answers each."""
    if not shares or shares[-1] >= shares[0] / 2 or shares[0] - shares[-1] < ENDED_FALL:
        return ""
    return f"answers no longer end by themselves: {shares[0]:.0%} -> {shares[-1]:.0%} of them"


def repetition_rises(shares: Sequence[float]) -> str:
    """Of a lot of answers each."""
    if not shares or shares[-1] - shares[0] < REPEATED_RISE:
        return ""
    return f"answers repeat themselves: {shares[0]:.0%} -> {shares[-1]:.0%} of their runs of tokens"


RULES: dict[str, Callable[[Sequence[float]], str]] = {
    "cost": cost_rises,
    "unseen": unseen_rises,
    "ended": endings_lost,
    "repeated": repetition_rises,
}


class Watch:
    """Reads a run's lines of metrics in their order."""

    def __init__(self) -> None:
        self._begin("")

    def see(self, line: dict[str, Any]) -> list[str]:
        """The warnings that this line brings."""
        if line["stage"] != self._stage:
            self._begin(line["stage"])
        if "step" in line and (found := next((name for name in COSTS if name in line), None)):
            self._costs.setdefault(found, []).append(line[found])
            self._series["cost"] = self._costs[found]
        if line.get(UNSEEN) is not None:
            self._series["unseen"].append(line[UNSEEN])
        if "answers" in line:
            self._count(line["answers"], line["ended"], line["repeated"])
        texts = {name: rule(self._series[name]) for name, rule in RULES.items()}
        new = [name for name, text in texts.items() if text and name not in self._warned]
        self._warned.update(new)
        return [texts[name] for name in new]

    def _begin(self, stage: str) -> None:
        self._stage, self._warned = stage, set[str]()
        self._series: dict[str, list[float]] = {name: [] for name in RULES}
        self._costs: dict[str, list[float]] = {}
        self._lot = (0.0, 0.0, 0.0)

    def _count(self, answers: float, ended: float, repeated: float) -> None:
        number, stopped, again = self._lot
        self._lot = (number + answers, stopped + answers * ended, again + answers * repeated)
        if self._lot[0] >= LOT:
            number, stopped, again = self._lot
            self._series["ended"].append(stopped / number)
            self._series["repeated"].append(again / number)
            self._lot = (0.0, 0.0, 0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
