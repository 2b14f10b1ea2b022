"""Anchors: what a model that learns a voice is to keep, everything else.

DITTO's authors name forgetting as its limitation, and point to C3PO (arXiv 2406.00888, section 7).
Here the base model answers prompts about anything else once, before the training, and every step
also holds the policy's distribution on a few of these answers to the base model's:

    loss + weight KL(base || policy),   nats per token of the anchors

That is C3PO's out-of-scope constraint in its exact form (`policy.score.divergence`), and unlike the
likelihood of so few answers it cannot be overfitted: where the policy has not moved it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence
from dataclasses import dataclass

from torch import Tensor

from minialign.data.general import general_prompts
from minialign.data.records import Example
from minialign.model.transformer import CausalLM
from minialign.policy.knobs import SamplingConfig
from minialign.policy.packing import micro_batches
from minialign.policy.reference import reference_policy
from minialign.policy.score import divergence
from minialign.training import ranks
from minialign.training.dealing import deal
from minialign.training.rollouts import rollouts
from minialign.training.run import Run

# Prompts that are asked, tokens of an answer, anchors in a step.
ANSWERS, TOKENS, PER_STEP = 48, 96, 4


@dataclass(frozen=True)
class Anchors:
    """The base model's answers, dealt in shuffled order; of weight 0 they cost nothing."""

    sequences: list[Example]
    weight: float

    @classmethod
    def written(cls, model: CausalLM, weight: float, max_length: int, run: Run) -> Anchors:
        """Lets the base model answer general prompts that are shorter than `max_length` tokens.

        The same run has the same anchors, resumed or not.
        """
        if not weight or run.tokenizer is None:
            return cls([], 0.0)
        texts = general_prompts(ANSWERS, run.seed, "anchors")
        prompts = [tuple(run.tokenizer.encode_prompt(text)) for text in texts]
        limit = min(max_length, model.config.max_position_embeddings - TOKENS)
        return cls.to(model, [p for p in prompts if len(p) < limit], weight, run)

    @classmethod
    def to(
        cls, model: CausalLM, prompts: Sequence[tuple[int, ...]], weight: float, run: Run
    ) -> Anchors:
        """The base model's answers to these prompts."""
        if not weight or not prompts:
            return cls([], 0.0)
        seed = run.derive_seed("anchors", 0)
        with run.phase("sample"), reference_policy(model, None):
            on_token = run.sampling_progress(0, len(prompts))
            groups = rollouts(
                model, prompts, 1, SamplingConfig(TOKENS), run, seed=seed, on_token=on_token
            )
        answers = zip(prompts, groups, strict=True)
        return cls([Example(prompt, group[0].ids) for prompt, group in answers], weight)

    def backward(self, model: CausalLM, stage: str, step: int, run: Run) -> dict[str, float]:
        """Adds their gradient to a step's; returns the divergence, unweighted, as a metric."""
        if not self.weight:
            return {}
        order = run.derive_seed(f"anchors/{stage}", 0)
        batch = deal(self.sequences, PER_STEP, step, f"{order}/sft")
        tokens = sum(len(sequence.completion_ids) for sequence in batch)

        def learn(part: list[Example]) -> tuple[Tensor]:
            loss = divergence(model, part, None).sum() / tokens
            (self.weight * loss).backward()
            return (loss.detach(),)

        training = model.training
        # The base is compared without dropout.
        model.eval()
        parts = micro_batches(batch, lambda sequence: (sequence,), run.micro_batch_tokens)
        found = ranks.divided(learn, parts)
        model.train(training)
        return {"kl/anchors": sum(float(loss) for (loss,) in found)}
