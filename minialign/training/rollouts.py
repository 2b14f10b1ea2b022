"""Answers, each process writing those to its share of the prompts."""

from __future__ import annotations

from collections.abc import Sequence as Sequence

from minialign.model.transformer import CausalLM
from minialign.policy.knobs import SamplingConfig
from minialign.policy.sample import Completion, OnToken, sample
from minialign.training import ranks
from minialign.training.run import Interrupted, Run


def rollouts(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    n: int,
    config: SamplingConfig,
    run: Run | None = None,
    *,
    seed: int,
    on_token: OnToken | None = None,
) -> list[list[Completion]]:
    """What `sample` writes. A prompt's answers do not depend on which process writes them.

    Raises Interrupted in all processes where one of them was asked to stop `run`.
    """
    places = list(ranks.own(range(len(prompts))))
    asked = [prompts[place] for place in places]
    try:
        groups = sample(model, asked, n, config, seed=seed, streams=places, on_token=on_token)
    except Interrupted:
        # The others wait for what was written.
        ranks.whole(None)
        raise
    found = ranks.whole([[(c.ids, c.logprob, c.finish_reason) for c in g] for g in groups])
    if found is None and run:
        run.stop()
    assert found is not None
    return [[Completion("", tuple(ids), *rest) for ids, *rest in group] for group in found]
