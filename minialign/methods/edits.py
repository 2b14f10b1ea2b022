"""Edits: what a person made of the model's answers, learned by the words that were changed.

A final text is preferred over its draft by DPO, on the span from their first difference to their
last alone: what the person left as it was says nothing against the draft. The final text's
likelihood is added, `nll_weight` times, so that DPO does not lower both. The reference is the
policy that the training starts from, which wrote the drafts.

It is C3PO's loop with settings that the card fixes. A text that was changed at its beginning and at
its end has one span, with all that lies between.
"""

from __future__ import annotations

import dataclasses

from minialign.methods import c3po
from minialign.methods.c3po import ADAPTER, Scoped
from minialign.methods.knobs import C3POConfig
from minialign.methods.lessons import Work
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import copy_adapter, train_only
from minialign.training.run import Run

# What the policy was when it wrote the drafts.
DRAFTER = "drafter"


def train(model: CausalLM, lessons: Scoped, knobs: C3POConfig, run: Run) -> None:
    """Trains the model's active adapter, a fresh one or that of `--init-adapter`, in place."""
    copy_adapter(model, ADAPTER, DRAFTER)
    train_only(model, ADAPTER)
    c3po.train(model, lessons, knobs, run, DRAFTER)


def work(lessons: Scoped, knobs: C3POConfig, tokens: int) -> Work:
    """`tokens` are those that a micro-batch may hold."""
    return dataclasses.replace(c3po.work(lessons, knobs, tokens), references=1)
