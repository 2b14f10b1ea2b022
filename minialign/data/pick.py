"""Chooses the few texts that carry a voice: typical of the person, and spread over topics and
lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minialign.data.alike import Array, topics, typicality

# Texts outside these numbers of words are taken only where there are too few others.
FEWEST_WORDS, MOST_WORDS = 20, 250
# What a text is worth: to be typical, to be about something else, to be of another length.
TYPICAL, TOPIC, LENGTH = 1.0, 1.0, 0.5


def pick(texts: Sequence[str], count: int) -> list[int]:
    """The places of `count` texts, or of all if there are no more, in their own order.

    One after another, each is the most typical one that differs most from those before it. The
    same texts always give the same choice.
    """
    if count >= len(texts):
        return list(range(len(texts)))
    words = np.array([len(text.split()) for text in texts])
    fitting = (words >= FEWEST_WORDS) & (words <= MOST_WORDS)
    about, lengths = topics(texts), np.log1p(words)
    worth = TYPICAL * typicality(texts) + 3.0 * fitting
    spread = max(float(np.ptp(lengths[fitting])) if fitting.any() else 0.0, 1e-9)
    topic, length = np.ones(len(texts)), np.ones(len(texts))
    chosen: list[int] = []
    while len(chosen) < count:
        value = worth + TOPIC * topic + LENGTH * length
        value[chosen] = -np.inf
        place = int(value.argmax())
        chosen.append(place)
        topic = np.minimum(topic, 1 - about @ about[place])
        length = np.minimum(length, _distance(lengths, place, spread))
    return sorted(chosen)


def _distance(lengths: Array, place: int, spread: float) -> Array:
    distance: Array = np.minimum(np.abs(lengths - lengths[place]) / spread, 1.0)
    return distance
