"""The charts of a run's report and of a comparison, stage by stage.

This module imports nothing heavy: a report reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minialign.data.records import PAIRS
from minialign.training.collapse import UNSEEN


@dataclass(frozen=True)
class Curve:
    """A chart of one stage: a line for each (metric, its name, its colour)."""

    title: str
    unit: str
    lines: tuple[tuple[str, str, int], ...]
    undecided: bool = False  # with a dashed line at ln 2, where neither text is preferred
    percent: bool = False


@dataclass(frozen=True)
class Overlay:
    """A chart in which the comparison page lays one metric of many runs over one another.

    Overlays of one title and unit are one chart, whichever stages they come from.
    """

    metric: str
    title: str
    unit: str


@dataclass(frozen=True)
class PairKind:
    """A kind of comparison that a step learns from; metrics.jsonl counts it as pairs/`name`."""

    name: str
    label: str
    said: str  # what it compares, for the caption
    color: int


@dataclass(frozen=True)
class Stage:
    """A part of the training, with an adapter of its own name.

    `curves` and `overlays` are asked with the run's knobs, as config.json has them, and what it
    learned from.
    """

    name: str
    title: str
    curves: Callable[[dict[str, Any], str], tuple[Curve, ...]]
    overlays: Callable[[dict[str, Any], str], tuple[Overlay, ...]]
    steps: tuple[str, ...] = ()  # the knob that says how many there are at most, if one does
    pair_kinds: tuple[PairKind, ...] = ()


# ---- the curves of the stages ----

Json = dict[str, Any]


def sft_curves(knobs: Json, source: str) -> tuple[Curve, ...]:
    lines = (("loss", "demonstrations", 1), (UNSEEN, "unseen texts", 3))
    return (Curve("loss", "nats per token", lines),)


def sft_overlays(knobs: Json, source: str) -> tuple[Overlay, ...]:
    return (Overlay("loss", "SFT loss", "nats per token"),)


def preference_curves(knobs: Json, source: str) -> tuple[Curve, ...]:
    return (
        Curve("loss", "of preferences", (("loss", "loss", 2),), undecided=True),
        Curve(
            "nats per token",
            "lower is better",
            (("nll/demonstrations", "demonstrations", 2), (UNSEEN, "unseen texts", 3)),
        ),
        Curve(
            "rewards",
            "against the reference",
            (("rewards/chosen", "chosen", 2), ("rewards/rejected", "rejected", 5)),
        ),
        Curve("margins", "chosen minus rejected", (("rewards/margins", "margin", 2),)),
        Curve(
            "accuracies",
            "pairs in the right order",
            (("rewards/accuracies", "accuracy", 2),),
            percent=True,
        ),
    )


def preference_overlays(knobs: Json, source: str) -> tuple[Overlay, ...]:
    return (
        Overlay("loss", "Preference loss", "of pairs"),
        Overlay("rewards/margins", "Margins", "chosen minus rejected"),
        Overlay(UNSEEN, "Unseen texts", "nats per token"),
    )


def distil_curves(knobs: Json, source: str) -> tuple[Curve, ...]:
    return (
        Curve("loss", "nats per token", (("loss", "divergence from the teacher", 2),)),
        Curve("unseen texts", "nats per token", ((UNSEEN, "unseen texts", 3),)),
        Curve("ended", "answers that ended by themselves", (("ended", "ended", 1),), percent=True),
    )


def distil_overlays(knobs: Json, source: str) -> tuple[Overlay, ...]:
    return (Overlay("loss", "Divergence from the teacher", "nats per token"),)


PAIR_KINDS = (
    PairKind("expert", "expert", "demonstration over newest answer", 2),
    PairKind("replay", "replay", "demonstration over older answer", 1),
    PairKind("inter_model", "inter-model", "newer answer over older one", 3),
)


def _constraint_unit(knobs: Json) -> str:
    """What a constraint is measured in."""
    return "nats an answer" if knobs.get("constraint_reduction") == "sum" else "nats per token"


def scoped_curves(knobs: Json, source: str) -> tuple[Curve, ...]:
    better, worse = ("chosen", "rejected") if source == PAIRS else ("revised", "first answer")
    differing = ", from where the two differ" if knobs.get("loss") in ("dpo", "ipo") else ""
    unit = _constraint_unit(knobs)

    def seen(metric: str, name: str = "trained on") -> tuple[tuple[str, str, int], ...]:
        return ((metric, name, 2), (f"eval/{metric}", "unseen prompts", 3))

    def outside(kind: str) -> tuple[tuple[str, str, int], ...]:
        return ((f"{kind}/near", "near its scope", 6), (f"{kind}/out", "far from its scope", 4))

    rewards = (("rewards/chosen", better, 2), ("rewards/rejected", worse, 5))
    return (
        Curve("loss", "all terms, weighted", seen("loss", "loss")),
        Curve("DPO", f"{better} over {worse}", seen("dpo", "DPO"), undecided=True),
        Curve("IPO", f"{better} over {worse}", seen("ipo", "IPO")),
        Curve("SimPO", f"{better} over {worse}", seen("simpo", "SimPO")),
        Curve("ORPO", f"{better} over {worse}", seen("orpo", "ORPO")),
        Curve("kept answers", unit, outside("nll")),
        Curve("divergence", f"KL from the base model, {unit}", outside("kl")),
        Curve(f"{better} answers", f"nats per token{differing}", seen("nll/in_scope")),
        Curve(f"{better} answers, whole", "nats per token", seen("nll/learned")),
        Curve("rewards", f"against the base model{differing}", rewards),
        Curve("margins", f"{better} minus {worse}", seen("rewards/margins")),
        Curve("accuracies", "pairs in the right order", seen("rewards/accuracies"), percent=True),
        Curve("learning rate", "", (("lr", "learning rate", 0),)),
    )


def scoped_overlays(knobs: Json, source: str) -> tuple[Overlay, ...]:
    unit = _constraint_unit(knobs)
    return (
        Overlay("loss", "Loss from feedback", "all terms, weighted"),
        Overlay("rewards/margins", "Margins", "chosen minus rejected"),
        Overlay("nll/near", "Kept answers near the scope", unit),
        Overlay("kl/near", "Divergence near the scope", f"KL from the base model, {unit}"),
    )
