"""One card a method: all that the rest of the package knows of it.

A card says what a method learns from, which knobs it has and which of them it fixes or never reads,
its stages in their order, and which curves its report shows. The method's file, `module`, offers
`train(model, lessons, knobs, run)` and `work(lessons, knobs, tokens)`; lessons.py says what these
are handed. Where a finished run can be continued, it offers `prolonged(knobs)`, `work_of_more`
(as `work`) and `take_over(model, lessons, knobs, run, finished)` too. From these come the flags,
the checks, the plan, the resume order, the sweep, the report and the contestants: no other file
compares with a method's name.

A new method is a file beside this one and a card in CARDS (or `register`, from outside).

This module imports nothing heavy: `--help` and a report read it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from minialign.data.knobs import config_from_flags, flags_of, nearest, require
from minialign.data.records import DEMONSTRATIONS, EDITS, FEEDBACK, PAIRS
from minialign.errors import InputError
from minialign.methods.curves import (
    PAIR_KINDS,
    UNSEEN,
    Curve,
    Overlay,
    PairKind,
    Stage,
    distil_curves,
    distil_overlays,
    preference_curves,
    preference_overlays,
    scoped_curves,
    scoped_overlays,
    sft_curves,
    sft_overlays,
)
from minialign.methods.knobs import (
    C3PO_RECIPES,
    DISTIL_RECIPES,
    DPO_RECIPES,
    EDITS_RECIPES,
    RECIPES,
    DittoConfig,
    MethodKnobs,
)
from minialign.methods.steering_knobs import STEERING_RECIPES

__all__ = ["UNSEEN", "Card", "Curve", "Overlay", "PairKind", "Stage"]
FLAGS = {DEMONSTRATIONS: "--demos", FEEDBACK: "--data", PAIRS: "--data", EDITS: "--edits"}


@dataclass(frozen=True)
class Card:
    """A method, seen from outside."""

    name: str
    title: str
    help: str  # a few words behind its name in --help
    learns_from: tuple[str, ...]
    recipes: dict[str, Any]  # name -> knobs
    stages: tuple[Stage, ...]  # the last one's adapter is the result
    module: str
    fixed: dict[str, Any] = field(default_factory=dict)  # knobs that make it what it is
    unread: tuple[str, ...] = ()  # flags of knobs that it never looks at
    scoped: bool = False  # whether it needs prompts outside the scope as well
    starts_from_adapter: bool = False  # whether --init-adapter is for it
    continues: bool = False  # whether --continue is for it
    color: int = 5

    @property
    def knobs_class(self) -> type:
        return type(next(iter(self.recipes.values())))

    def recipe(self, name: str) -> MethodKnobs:
        """The knobs of a recipe, with those that the method fixes."""
        return dataclasses.replace(self.recipes[name], **self.fixed)

    def with_flags(self, recipe: MethodKnobs, given: dict[str, Any]) -> MethodKnobs:
        """`recipe` with the flags that were given.

        Raises InputError for a knob that the method fixes or never reads, which would be given in
        vain, and for one that is not there or has a value that it cannot have.
        """
        for name in given:
            flag = "--" + name.replace("_", "-")
            usual = default_card(self.learns_from[0]).name
            require(
                name not in self.fixed,
                f"--method {self.name} fixes {flag}: use --method {usual}",
            )
            require(
                name not in self.unread,
                f"--method {self.name} makes no use of {flag}: leave it out",
            )
        knobs = config_from_flags(recipe, given)
        for name in given:
            flag, why = "--" + name.replace("_", "-"), knobs.unread.get(name, "")
            require(not why, f"{why} makes no use of {flag}: leave it out")
        return knobs

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)


# ---- the methods ----

SFT = Stage("sft", "SFT", sft_curves, sft_overlays, ("sft", "max_steps"))
READ_BY_SFT = ("anchors", "max_grad_norm", "weight_decay", "max_length")


def _preferences(name: str, title: str) -> Stage:
    steps = ("max_steps",)
    return Stage(name, title, preference_curves, preference_overlays, steps, PAIR_KINDS)


def _scoped(title: str) -> Stage:
    """C3PO's loop, whose settings its baselines are; its stage and adapter keep their name."""
    return Stage("c3po", title, scoped_curves, scoped_overlays)


def _distilled(name: str, title: str) -> Stage:
    return Stage(name, title, distil_curves, distil_overlays, ("max_steps",))


def _from_feedback(name: str, title: str, help: str, **settings: Any) -> Card:
    common = {"learns_from": (FEEDBACK, PAIRS), "module": "minialign.methods.c3po"}
    return Card(
        **{
            **common,
            **{"name": name, "title": title, "help": help, "recipes": C3PO_RECIPES},
            **{"stages": (_scoped(title),), "starts_from_adapter": True, **settings},
        }
    )


_NO_CONSTRAINT = {"lambda_out": 0.0, "lambda_near": 0.0}
_HOW_CONSTRAINED = ("constraint", "constraint_reduction", "kl_temperature", "kl_share")

CARDS: list[Card] = [  # the first one of a source is its usual method
    Card(
        name="ditto",
        title="DITTO",
        help="SFT, then rounds of sampling and DPO",
        learns_from=(DEMONSTRATIONS,),
        recipes=RECIPES,
        stages=(SFT, _preferences("ditto", "DITTO")),
        module="minialign.methods.ditto",
        continues=True,
        color=2,
    ),
    Card(
        name="sft",
        title="SFT",
        help="its first part alone",
        learns_from=(DEMONSTRATIONS,),
        recipes=RECIPES,
        stages=(SFT,),
        module="minialign.methods.sft",
        unread=tuple(
            flag.name
            for flag in flags_of(DittoConfig)
            if not flag.name.startswith(("lora_", "sft_")) and flag.name not in READ_BY_SFT
        ),
        color=1,
    ),
    Card(
        name="spin",
        title="SPIN",
        help="self-play",
        learns_from=(DEMONSTRATIONS,),
        recipes=RECIPES,
        stages=(SFT, _preferences("spin", "SPIN")),
        module="minialign.methods.spin",
        fixed={
            "expert_fraction": 1.0,
            "replay_fraction": 0.0,
            "inter_model_fraction": 0.0,
            "update_reference": True,
        },
        color=4,
    ),
    Card(
        name="sdft",
        title="SDFT",
        help="the model's own answers, held to those that it would give if shown the texts",
        learns_from=(DEMONSTRATIONS,),
        recipes=DISTIL_RECIPES,
        stages=(_distilled("sdft", "SDFT"),),
        module="minialign.methods.sdft",
        color=6,
    ),
    Card(
        name="stylevector",
        title="StyleVector",
        help="a vector that is added in the middle of the model; nothing is trained",
        learns_from=(DEMONSTRATIONS,),
        recipes=STEERING_RECIPES,
        stages=(Stage("stylevector", "StyleVector", sft_curves, lambda knobs, source: ()),),
        module="minialign.methods.stylevector",
        color=3,
    ),
    _from_feedback(
        "c3po",
        "C3PO",
        "preferences in scope, constraints near it and out of it",
        learns_from=(FEEDBACK,),
        scoped=True,
        color=2,
    ),
    _from_feedback(
        "dpo",
        "DPO",
        "no constraint",
        recipes=DPO_RECIPES,
        module="minialign.methods.dpo",
        fixed=_NO_CONSTRAINT,
        unread=_HOW_CONSTRAINED,
        color=4,
    ),
    _from_feedback(
        "sft",
        "SFT",
        "revised answers alone",
        fixed={"loss": "sft", **_NO_CONSTRAINT},
        unread=("beta", *_HOW_CONSTRAINED),
        color=1,
    ),
    _from_feedback(
        "sft-weighted",
        "SFT with constraints",
        "revised answers, with the constraints",
        learns_from=(FEEDBACK,),
        fixed={"loss": "sft"},
        unread=("beta",),
        scoped=True,
        color=6,
    ),
    _from_feedback(
        "edits",
        "Edits",
        "final over draft where they differ",
        # Once it is read, a file of edits is a file of pairs.
        learns_from=(PAIRS, EDITS),
        recipes=EDITS_RECIPES,
        module="minialign.methods.edits",
        fixed={"loss": "dpo", "changed_span": True, **_NO_CONSTRAINT},
        unread=_HOW_CONSTRAINED,
        color=3,
    ),
    Card(
        name="context-distillation",
        title="Context distillation",
        help="the sentence from the prompt into the weights",
        learns_from=(FEEDBACK,),
        recipes=DISTIL_RECIPES,
        stages=(_distilled("context-distillation", "Context distillation"),),
        module="minialign.methods.context_distillation",
        unread=("shown",),
        color=3,
    ),
]


def register(card: Card) -> None:
    """Adds a method from outside the package. Raises InputError for a name that is taken."""
    taken = [c for c in CARDS if c.name == card.name and set(c.learns_from) & set(card.learns_from)]
    require(not taken, f"there is a method called {card.name} already: choose another name")
    CARDS.append(card)


def default_card(source: str) -> Card:
    """The usual method for what is learned from."""
    return next(card for card in CARDS if source in card.learns_from)


def card_of(name: str, source: str) -> Card:
    """A method by its name; without one, the usual method.

    Raises InputError, saying what the method learns from, where it cannot learn from `source`.
    """
    if not name:
        return default_card(source)
    for card in CARDS:
        if card.name == name and source in card.learns_from:
            return card
    others = [card for card in CARDS if card.name == name]
    if others:
        can = ", ".join(card.name for card in CARDS if source in card.learns_from)
        wanted = " or ".join(f"{kind} ({FLAGS[kind]})" for kind in others[0].learns_from)
        raise InputError(
            f"--method {name} learns from {wanted}, not from {source}: choose one of {can}"
        )
    raise InputError(f"--method {name}: there is no such method{nearest(name, method_names())}")


def method_names(source: str | None = None) -> list[str]:
    """All of them, or those that learn from `source`; each once."""
    cards = [card for card in CARDS if source is None or source in card.learns_from]
    return list(dict.fromkeys(card.name for card in cards))


def warm_starts() -> list[str]:
    """Methods that others begin with: the rivals that a result is compared with first."""
    first = [stage.name for card in CARDS for stage in card.stages[:-1]]
    return list(dict.fromkeys(first))


def title_of(name: str) -> str:
    """A method's or stage's name for a person; another name is returned as it is."""
    titles = {stage.name: stage.title for card in reversed(CARDS) for stage in card.stages}
    titles |= {card.name: card.title for card in reversed(CARDS)}
    return titles.get(name, name)


def color_of(name: str) -> int | None:
    return next((card.color for card in CARDS if card.name == name), None)
