"""How far can a judge be trusted? Areas under the curve, their luck, and log-odds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minialign.errors import InputError
from minialign.evaluation.judges.corpus import KEPT, OWN, Array, Corpus, Indices, Mask

NEWTON_STEPS, PRIOR = 30, 1e-2  # of the calibration


def area_under_curve(positive: Sequence[float] | Array, negative: Sequence[float] | Array) -> float:
    """How often a positive is above a negative; ties count half. Raises InputError without both."""
    if len(positive) == 0 or len(negative) == 0:
        raise InputError("no area under the curve without scores on both sides: add texts")
    above, below = np.asarray(positive)[:, None], np.asarray(negative)
    return float(((above > below) + (above == below) / 2).mean())


def areas_over_folds(raw: Array, corpus: Corpus, folds: Indices) -> tuple[float, ...]:
    """One for each other group: how often a piece of the person's is above one of the group's.

    Pieces meet those that answer their prompt, or those of their fold where the group is not
    paired: one classifier has judged them both. Every text weighs the same. NaN for a group that
    meets nobody.
    """
    weights = 1 / np.bincount(corpus.text_of)[corpus.text_of]
    held, paired, found = folds[corpus.text_of] != KEPT, corpus.paired, []
    for group in range(OWN + 1, len(paired)):
        meeting = (corpus.prompts if paired[group] else folds)[corpus.text_of]
        won = met = 0.0
        for place in np.unique(meeting[held & corpus.owned]):
            here = held & (meeting == place)
            own = np.flatnonzero(here & corpus.owned)
            others = np.flatnonzero(here & (corpus.group_of == group))
            difference = raw[own][:, None] - raw[others]
            wins = weights[own] @ ((difference > 0) + (difference == 0) / 2) / weights[own].sum()
            won += float(wins @ weights[others])
            met += float(weights[others].sum())
        found.append(won / met if met else math.nan)
    return tuple(found)


def chance_error(folds: int, own: float, groups: Sequence[float]) -> float:
    """Standard error of the area over folds if both sides were alike.

    Within a fold that of Mann and Whitney (1947), over folds that learn from nearly the same texts
    that of Nadeau and Bengio (2003). The others count as many as groups of the same weight and
    these sizes are worth (Kish).
    """
    own_held, others_held = own / folds, len(groups) ** 2 / sum(1 / n for n in groups) / folds
    within = (own_held + others_held + 1) / (12 * own_held * others_held)
    return float(np.sqrt(within * (1 / folds + 1 / (folds - 1))))


def calibrated(raw: Array, owned: Mask, weights: Array) -> tuple[float, float]:
    """Slope and offset of the log-odds (Platt 1999): weighted logistic regression, his targets.

    Without a positive slope there is nothing to calibrate, and the raw values stand.
    """
    design = np.stack([raw, np.ones_like(raw)], axis=1)
    positives, negatives = owned.sum(), (~owned).sum()
    target = np.where(owned, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    solution = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        odds = 1 / (1 + np.exp(-np.clip(design @ solution, -30, 30)))
        gradient = design.T @ (weights * (target - odds)) - PRIOR * solution
        curvature = (design * (weights * odds * (1 - odds))[:, None]).T @ design
        solution += np.linalg.solve(curvature + PRIOR * np.eye(2), gradient)
    return (float(solution[0]), float(solution[1])) if solution[0] > 0 else (1.0, 0.0)
