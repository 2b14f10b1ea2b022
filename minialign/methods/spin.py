"""SPIN: self-play fine-tuning (Chen et al. 2024, arXiv 2401.01335, Algorithm 1).

Each round, the model plays against what it was when the round began: the demonstrations are
preferred to that opponent's samples, and the opponent is the reference too, so that its samples
count for as much as the policy has moved since. There is no replay and nothing is compared between
models. SPIN is run after SFT, as the DITTO paper does (arXiv 2406.00888, section 4.1), and takes
DITTO's rounds, steps and samples, so that the two differ in nothing else.

With DITTO's vocabulary that is its loop with another mix and a reference that follows: the loss is
DPO's with the opponent as the reference (`losses.spin_loss`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as SequenceABC

from minialign.data.records import Sequence
from minialign.methods.anchors import Anchors
from minialign.methods.cards import DEMONSTRATION_METHODS
from minialign.methods.ditto import train_ditto
from minialign.methods.knobs import DittoConfig
from minialign.methods.sft import NO_ANCHORS
from minialign.model.transformer import CausalLM
from minialign.training.run import Run

ADAPTER = "spin"


def train_spin(
    model: CausalLM,
    demonstrations: SequenceABC[Sequence],
    config: DittoConfig,
    run: Run,
    held_out: SequenceABC[Sequence] = (),
    anchors: Anchors = NO_ANCHORS,
) -> None:
    """Trains a new adapter "spin" on a model whose active adapter is a fresh "sft"; in place."""
    train_ditto(model, demonstrations, as_spin(config), run, held_out, anchors, ADAPTER)


def as_spin(config: DittoConfig) -> DittoConfig:
    """The same knobs, with SPIN's comparisons and its reference."""
    return dataclasses.replace(config, **DEMONSTRATION_METHODS["spin"])
