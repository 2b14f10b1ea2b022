"""C3PO: contextualised critiques with constrained preference optimization (Stephan et al. 2024,
arXiv 2402.10893, equation 5).

    L = L_DPO(in scope) + lambda_out NLL(out of scope) + lambda_near NLL(near scope)

Where the feedback applies, the model learns to prefer its own revised answer to its first one.
Where it does not, near the scope and far from it, the model keeps to what it said before. The
reference of DPO is the base model, which also wrote every text.

Where this differs from the paper or from the official code (austrian-code-wizard/c3po):

* There is no dropout (the code has .05 in its adapters): policy and reference are comparable, and
  DPO's first loss is ln 2 exactly.
* The three sets need not be equally long: each is dealt in shuffled epochs of its own, so that the
  shorter ones come round again. An epoch is one of the in-scope pairs.
* Means are taken over the step, not over a batch of one, whose tokens would weigh the more the
  fewer they are. DPO takes the sum over an answer's tokens and the constraints their mean, as the
  code does and as the published lambdas need; `constraint_reduction` has the alternatives.
* A constraint of weight 0 is not computed, and an answer that was cut off has no end token.
* The words with which a revised answer and its baseline both begin are computed once, as a part of
  the prompt: in DPO they cancel. `logps`, `rewards/chosen` and `rewards/rejected` are of what
  follows; `rewards/margins` are the same either way.
* `constraint = "kl"` is the paper's ablation: instead of the likelihood of the base model's answers
  the divergence from its distribution, along the same answers and at their own positions.

Its rivals in the paper's Table 2 are settings of the same loop (`in_scope_loss`, the lambdas): SFT
on the revised answers (SCD), the same with the constraints (SCD + negatives), and DPO alone.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from minialign.data.records import Sequence
from minialign.losses import C3POLoss, c3po_loss, sft_loss
from minialign.methods.knobs import C3POConfig
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import trainable_parameters
from minialign.policy.encode import FeedbackSequences
from minialign.policy.packing import distinct_tokens, micro_batches
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.score import divergence, score
from minialign.training.dealing import deal
from minialign.training.optimizer import Optimizer, cosine_with_warmup
from minialign.training.run import Run
from minialign.training.state import Parts

ADAPTER = "c3po"
BASE = None  # the reference: no adapter
T = TypeVar("T")


def train_c3po(
    model: CausalLM,
    data: FeedbackSequences,
    config: C3POConfig,
    run: Run,
    held_out: FeedbackSequences | None = None,
) -> None:
    """Trains the model's active adapter, a fresh one, in place.

    Metrics and what `--resume` needs are kept in `run`. The terms of the objective on held-out data
    are logged with the last step, as `eval/...`.
    """
    everything = Batch.of(data, config)
    reference = ReferenceScores(model, BASE)
    total_steps = config.steps(len(data.in_scope))
    optimizer = Optimizer(
        trainable_parameters(model),
        config.learning_rate,
        cosine_with_warmup,
        total_steps=total_steps,
        warmup_ratio=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    parts = Parts(model, optimizer, reference=reference)
    first = run.restore("c3po", parts) or 0
    model.eval()  # no dropout: the policy must be comparable with its reference
    for step in run.steps("c3po", first, total_steps, parts):
        batch = everything.draw(config.pairs_per_step, step, run.seed)
        with run.phase("train"):
            metrics = c3po_step(model, batch, reference, config, run.micro_batch_tokens)
            metrics |= optimizer.step(step)
        is_last = step + 1 == total_steps
        if is_last and held_out is not None:
            metrics |= _held_out_metrics(model, held_out, reference, config, run)
        run.log("c3po", step, metrics)
        if is_last:
            run.say("C3PO", _summary(total_steps, metrics), None)


# ---- what a step is made of ----


class Batch(NamedTuple):
    """A step's share of each scope; what has no weight is not there."""

    pairs: list[tuple[Sequence, ...]]  # (revised, baseline), or (revised,) alone for SFT
    out: list[Sequence]
    near: list[Sequence]

    @classmethod
    def of(cls, data: FeedbackSequences, config: C3POConfig) -> Batch:
        """Everything that the objective gives a weight to."""
        sft = config.in_scope_loss == "sft"
        return cls(
            [pair[:1] if sft else without_common_start(*pair) for pair in data.in_scope],
            list(data.out_of_scope) if config.lambda_out else [],
            list(data.near_scope) if config.lambda_near else [],
        )

    def draw(self, size: int, step: int, seed: int) -> Batch:
        """The share of a step, a function of (seed, step) alone; each scope has its own epochs."""
        return Batch(
            deal(self.pairs, size, step, f"{seed}/c3po/in_scope"),
            deal(self.out, size, step, f"{seed}/c3po/out_of_scope"),
            deal(self.near, size, step, f"{seed}/c3po/near_scope"),
        )

    def parts(self, max_tokens: int) -> Iterator[Batch]:
        """Parts of at most `max_tokens` where they can be, the pairs apart from the constraints.

        The reference scores pairs alone, and only in the policy's own layout do the two agree to
        the last bit while they are one.
        """
        for pairs in micro_batches(self.pairs, lambda pair: pair, max_tokens):
            yield Batch(pairs, [], [])
        answers = [("out", answer) for answer in self.out]
        answers += [("near", answer) for answer in self.near]
        for part in micro_batches(answers, lambda answer: answer[1:], max_tokens):
            scopes: dict[str, list[Sequence]] = {"out": [], "near": []}
            for scope, answer in part:
                scopes[scope].append(answer)
            yield Batch([], **scopes)


def without_common_start(chosen: Sequence, rejected: Sequence) -> tuple[Sequence, Sequence]:
    """The tokens with which both completions begin become a part of the prompt.

    Their log-probabilities cancel in DPO's margin, for the policy and for the reference. At least
    one token is left of each completion.
    """
    limit = min(len(chosen.completion_ids), len(rejected.completion_ids)) - 1
    matches = map(operator.eq, chosen.completion_ids[:limit], rejected.completion_ids)
    common = sum(1 for _ in itertools.takewhile(bool, matches))
    prompt = chosen.prompt_ids + chosen.completion_ids[:common]
    return (
        Sequence(prompt, chosen.completion_ids[common:]),
        Sequence(prompt, rejected.completion_ids[common:]),
    )


# ---- the objective ----


class PartLoss(NamedTuple):
    """Its share of the step's loss; the policy's (B,) log-probabilities in scope, for metrics."""

    terms: C3POLoss
    chosen_logps: Tensor
    rejected_logps: Tensor  # empty for SFT


def c3po_step(
    model: CausalLM,
    batch: Batch,
    reference: ReferenceScores,
    config: C3POConfig,
    micro_batch_tokens: int,
) -> dict[str, float]:
    """Accumulates the gradient of a step part by part, where gradients are on; returns metrics."""
    found: list[PartLoss] = []
    for part in batch.parts(micro_batch_tokens):
        terms, chosen_logps, rejected_logps = part_loss(model, part, batch, reference, config)
        if terms.loss.requires_grad:
            terms.loss.backward()
        terms = C3POLoss(*map(Tensor.detach, terms))
        found.append(PartLoss(terms, chosen_logps.detach(), rejected_logps.detach()))
    read = itertools.chain(*batch.pairs, batch.out, batch.near)
    return _metrics(found, batch, config) | {"tokens": distinct_tokens(read)}


def part_loss(
    model: CausalLM, part: Batch, step: Batch, reference: ReferenceScores, config: C3POConfig
) -> PartLoss:
    """The share that `part` has in the loss of `step`: equation 5, or SFT in place of DPO."""
    dpo = config.in_scope_loss == "dpo"
    in_scope = [s for column in zip(*part.pairs, strict=True) for s in column]  # revised ones first
    answers = part.out + part.near
    if config.constraint == "kl":
        in_scope_logps, kept = score(model, in_scope), -divergence(model, answers, BASE)
    else:
        sizes = [len(in_scope), len(answers)]
        in_scope_logps, kept = score(model, in_scope + answers).split(sizes)
    if config.constraint_reduction == "sequence_mean":
        kept = kept / torch.tensor([len(s.completion_ids) for s in answers], device=kept.device)
    out_logps, near_logps = kept.tensor_split([len(part.out)])
    cut = len(part.pairs)
    chosen_logps, rejected_logps = in_scope_logps[:cut], in_scope_logps[cut:]
    preference: tuple[Tensor, Tensor, Tensor, Tensor] = 4 * (chosen_logps[:0],)
    if dpo:
        reference_logps = reference(in_scope)
        preference = (chosen_logps, rejected_logps, reference_logps[:cut], reference_logps[cut:])
    terms = c3po_loss(
        *preference,
        out_logps,
        near_logps,
        pairs=len(step.pairs),
        out_total=_total(step.out, config),
        near_total=_total(step.near, config),
        beta=config.beta,
        lambda_out=config.lambda_out,
        lambda_near=config.lambda_near,
    )
    if not dpo:
        nll = sft_loss(chosen_logps, max(1, _revised_tokens(step)))
        terms = terms._replace(loss=terms.loss + nll)
    return PartLoss(terms, chosen_logps, rejected_logps)


def _total(answers: list[Sequence], config: C3POConfig) -> int:
    """What a constraint's sum is divided by."""
    if config.constraint_reduction == "token_mean":
        return sum(len(answer.completion_ids) for answer in answers)
    return len(answers)


def _revised_tokens(step: Batch) -> int:
    return sum(len(pair[0].completion_ids) for pair in step.pairs)


# ---- what is told of it ----


def _metrics(parts: list[PartLoss], step: Batch, config: C3POConfig) -> dict[str, float]:
    """Of a whole step. Terms are unweighted, and left out where they are not computed."""
    columns = zip(*(part.terms for part in parts), strict=True)
    loss, dpo, out, near, chosen_rewards, rejected_rewards = map(list, columns)
    found = {"loss": _sum(loss)}
    if config.in_scope_loss == "dpo":
        margins = torch.cat(chosen_rewards) - torch.cat(rejected_rewards)
        found |= {
            "dpo": _sum(dpo),
            "rewards/chosen": float(torch.cat(chosen_rewards).mean()),
            "rewards/rejected": float(torch.cat(rejected_rewards).mean()),
            "rewards/margins": float(margins.mean()),
            "rewards/accuracies": float((margins > 0).float().mean()),
            "logps/rejected": float(torch.cat([part.rejected_logps for part in parts]).mean()),
        }
    chosen_logps = torch.cat([part.chosen_logps for part in parts])
    found |= {
        "logps/chosen": float(chosen_logps.mean()),
        "nll/in_scope": -float(chosen_logps.sum()) / _revised_tokens(step),
    }
    if step.out:
        found[f"{config.constraint}/out"] = _sum(out)
    if step.near:
        found[f"{config.constraint}/near"] = _sum(near)
    return found


def _sum(shares: list[Tensor]) -> float:
    return float(torch.stack(shares).sum())


@torch.no_grad()
def _held_out_metrics(
    model: CausalLM,
    held_out: FeedbackSequences,
    reference: ReferenceScores,
    config: C3POConfig,
    run: Run,
) -> dict[str, float]:
    """The same terms on prompts that were not trained on."""
    batch = Batch.of(held_out, config)
    if not batch.pairs:
        return {}
    found = c3po_step(model, batch, reference, config, run.micro_batch_tokens)
    return {f"eval/{name}": value for name, value in found.items() if name != "tokens"}


def _summary(steps: int, metrics: dict[str, float]) -> str:
    """What a person wants to know of the training."""
    shown = {"loss": "loss", "rewards/margins": "margin", "eval/rewards/margins": "unseen margin"}
    figures = [f"{text} {metrics[name]:.2f}" for name, text in shown.items() if name in metrics]
    return f"{steps} steps; {', '.join(figures)}"
