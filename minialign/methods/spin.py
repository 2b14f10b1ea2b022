"""SPIN: self-play fine-tuning (Chen et al. 2024, arXiv 2401.01335, Algorithm 1).

Each round, the model plays against what it was when the round began: the demonstrations are
preferred to that opponent's samples, and the opponent is the reference too, so that its samples
count for as much as the policy has moved since. There is no replay and nothing is compared between
models. SPIN is run after SFT, as the DITTO paper does (arXiv 2406.00888, section 4.1), and takes
DITTO's rounds, steps and samples, so that the two differ in nothing else.

With DITTO's vocabulary that is its loop with another mix and a reference that follows: the loss is
DPO's with the opponent as the reference (`losses.spin_loss`). The card fixes these knobs.
"""

from __future__ import annotations

import dataclasses

from minialign.data.records import DEMONSTRATIONS
from minialign.methods import ditto
from minialign.methods.anchors import Anchors
from minialign.methods.cards import card_of
from minialign.methods.knobs import DittoConfig
from minialign.methods.lessons import Work
from minialign.methods.sft import Demonstrated
from minialign.model.transformer import CausalLM
from minialign.training.run import Run

ADAPTER = "spin"


def train(
    model: CausalLM,
    lessons: Demonstrated,
    knobs: DittoConfig,
    run: Run,
    anchors: Anchors | None = None,
) -> None:
    """Trains a new adapter "spin" on a model whose active adapter is a fresh "sft"; in place."""
    ditto.train(model, lessons, as_spin(knobs), run, anchors, ADAPTER)


def work(lessons: Demonstrated, knobs: DittoConfig, tokens: int) -> Work:
    """`tokens` are those that a micro-batch may hold."""
    return ditto.work(lessons, as_spin(knobs), tokens, "SPIN")


def as_spin(knobs: DittoConfig) -> DittoConfig:
    """The same knobs, with SPIN's comparisons and its reference."""
    return dataclasses.replace(knobs, **card_of(ADAPTER, DEMONSTRATIONS).fixed)
