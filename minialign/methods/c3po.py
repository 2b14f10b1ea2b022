"""C3PO: contextualised critiques with constrained preference optimization (Stephan et al. 2024,
arXiv 2402.10893, equation 5).

    L = L_DPO(in scope) + lambda_out NLL(out of scope) + lambda_near NLL(near scope)

Where the feedback applies, the model learns to prefer its own revised answer to its first one.
Where it does not, near the scope and far from it, the model keeps to what it said before. The
reference of DPO is the base model, which also wrote every text.

Where this differs from the paper or from the official code (austrian-code-wizard/c3po):

* There is no dropout unless `lora_dropout` asks for it (the code has .05 in its adapters). The
  reference is scored without, and DPO's first loss is ln 2 exactly.
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
  the divergence from its distribution, along the same answers and at their own positions. The
  code's temperature, and its mix of both, are `kl_temperature` and `kl_share`.

Its rivals in the paper's Table 2 are settings of the same loop (`loss`, the lambdas): SFT on the
revised answers (SCD), the same with the constraints (SCD + negatives), and DPO alone. `loss` has
what came after DPO, too: IPO, and SimPO and ORPO, which need no reference.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minialign.data.records import Example
from minialign.losses import (
    C3POLoss,
    PreferenceLoss,
    c3po_loss,
    ipo_loss,
    orpo_loss,
    sft_loss,
    simpo_loss,
)
from minialign.methods.batches import Batch
from minialign.methods.knobs import C3POConfig
from minialign.methods.lessons import Lessons, Part, Work
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import trainable_parameters
from minialign.policy.encode import ScopedExamples
from minialign.policy.packing import distinct_tokens
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.score import divergence, score
from minialign.training import ranks
from minialign.training.optimizer import Optimizer, cosine_with_warmup
from minialign.training.run import Run
from minialign.training.state import Parts

ADAPTER = "c3po"
# The reference: no adapter.
BASE = None
Scoped = Lessons[ScopedExamples]


def train(
    model: CausalLM,
    lessons: Scoped,
    knobs: C3POConfig,
    run: Run,
    referred_to: str | None = BASE,
) -> None:
    """Trains the model's active adapter, a fresh one, in place.

    DPO's reference is the adapter `referred_to`, or the base model.
    Metrics and what `--resume` needs are kept in `run`. The terms of the objective on held-out data
    are logged with the last step, as `eval/...`.
    """
    everything = Batch.of(lessons.train, knobs)
    reference = ReferenceScores(model, referred_to)
    total_steps = knobs.steps(len(lessons.train.in_scope))
    optimizer = Optimizer(
        trainable_parameters(model),
        knobs.learning_rate,
        cosine_with_warmup,
        total_steps=total_steps,
        warmup_ratio=knobs.warmup_ratio,
        weight_decay=knobs.weight_decay,
        max_grad_norm=knobs.max_grad_norm,
    )
    parts = Parts(model, optimizer=optimizer, reference=reference)
    first = run.restore(ADAPTER, parts) or 0
    for step in run.steps(ADAPTER, first, total_steps, parts):
        batch = everything.draw(knobs.pairs_per_step, step, run.seed)
        # Dropout draws from torch's global generator. Without any, policy and reference are alike.
        seed = run.derive_seed(ADAPTER, step)
        model.train(knobs.lora.dropout > 0)
        with run.phase("train"):
            metrics = c3po_step(model, batch, reference, knobs, run.micro_batch_tokens, seed)
            metrics |= optimizer.step(step)
        model.eval()
        if run.is_last:
            metrics |= _held_out_metrics(model, lessons.held_out, reference, knobs, run)
        run.log(ADAPTER, step, metrics)
        if run.is_last:
            run.say("C3PO", _summary(step + 1, metrics), None)


# ---- the objective ----


class PartLoss(NamedTuple):
    """Its share of the step's loss; the policy's (B,) log-probabilities in scope, for metrics."""

    terms: C3POLoss
    chosen_logps: Tensor
    # empty for SFT
    rejected_logps: Tensor
    # the share of the whole revised answers' loss per token, a scalar
    learned: Tensor
    # the reference's, of chosen and rejected answers, where the loss has one
    reference_logps: Tensor


def c3po_step(
    model: CausalLM,
    batch: Batch,
    reference: ReferenceScores,
    knobs: C3POConfig,
    micro_batch_tokens: int,
    seed: int | None = None,
) -> dict[str, float]:
    """Accumulates the gradient of a step part by part, where gradients are on; returns metrics."""

    def learn(part: Batch) -> list[Tensor]:
        terms, *others = part_loss(model, part, batch, reference, knobs)
        if terms.loss.requires_grad:
            terms.loss.backward()
        return [tensor.detach() for tensor in (*terms, *others)]

    parts, terms = list(batch.parts(micro_batch_tokens)), len(C3POLoss._fields)
    divided = ranks.divided(learn, parts, seed)
    found = [PartLoss(C3POLoss(*numbers[:terms]), *numbers[terms:]) for numbers in divided]
    for part, loss in zip(parts, found, strict=True):
        if knobs.has_reference:
            reference.note(part.in_scope, loss.reference_logps)
    return _metrics(found, batch, knobs) | {"tokens": distinct_tokens(batch.texts)}


def part_loss(
    model: CausalLM, part: Batch, step: Batch, reference: ReferenceScores, knobs: C3POConfig
) -> PartLoss:
    """The share that `part` has in the loss of `step`: equation 5, or another loss than DPO."""
    in_scope = part.in_scope
    answers = part.out + part.near
    texts = [*in_scope, *part.learned]
    if knobs.constraint == "kl":
        text_logps, kept = score(model, texts), -_divergence(model, answers, knobs)
    else:
        text_logps, kept = score(model, texts + answers).split([len(texts), len(answers)])
    if knobs.constraint_reduction == "sequence_mean":
        kept = kept / _tokens(answers, kept)
    out_logps, near_logps = kept.tensor_split([len(part.out)])
    cut = len(part.pairs)
    chosen_logps, rejected_logps, learned_logps = text_logps.tensor_split([cut, len(in_scope)])
    policy, nothing = (chosen_logps, rejected_logps), chosen_logps[:0]
    reference_logps = nothing
    empty = (nothing, nothing, nothing, nothing)
    referred = empty
    if knobs.has_reference:
        reference_logps = reference(in_scope)
        referred = (*policy, reference_logps[:cut], reference_logps[cut:])
    terms = c3po_loss(
        *(referred if knobs.loss == "dpo" else empty),
        out_logps,
        near_logps,
        pairs=len(step.pairs),
        out_total=_total(step.out, knobs),
        near_total=_total(step.near, knobs),
        beta=knobs.beta,
        lambda_out=knobs.lambda_out,
        lambda_near=knobs.lambda_near,
    )
    learned = sft_loss(learned_logps, max(1, _completion_tokens(step.learned)))
    loss = terms.loss + knobs.nll_weight * learned
    if knobs.loss == "sft":
        loss = loss + sft_loss(chosen_logps, max(1, _revised_tokens(step)))
    elif knobs.loss != "dpo":
        lengths = _tokens(in_scope, chosen_logps).tensor_split([cut])
        losses, *rewards = _preference(policy, referred, lengths, knobs)
        share = losses.sum() / max(1, len(step.pairs))
        loss = loss + share
        terms = C3POLoss(loss, share.detach(), terms.nll_out, terms.nll_near, *rewards)
    terms = terms._replace(loss=loss)
    return PartLoss(terms, chosen_logps, rejected_logps, learned, reference_logps)


def _preference(
    policy: tuple[Tensor, Tensor],
    referred: tuple[Tensor, Tensor, Tensor, Tensor],
    lengths: Sequence[Tensor],
    knobs: C3POConfig,
) -> PreferenceLoss:
    """The losses that stand in for DPO's."""
    if knobs.loss == "ipo":
        return ipo_loss(*referred, beta=knobs.beta)
    if knobs.loss == "simpo":
        return simpo_loss(*policy, *lengths, beta=knobs.simpo_beta, gamma=knobs.simpo_gamma)
    return orpo_loss(*policy, *lengths, weight=knobs.orpo_weight)


def _divergence(model: CausalLM, answers: list[Example], knobs: C3POConfig) -> Tensor:
    """(len(answers),): the constraint by divergence, of which a share may be the likelihood."""
    temperature, share = knobs.kl_temperature, knobs.kl_share
    # Its gradient shrinks with the square (Hinton et al. 2015, arXiv 1503.02531).
    kl = temperature**2 * divergence(model, answers, BASE, temperature)
    return kl if share == 1 else share * kl - (1 - share) * score(model, answers)


def _tokens(answers: list[Example], like: Tensor) -> Tensor:
    return torch.tensor([len(s.completion_ids) for s in answers], device=like.device)


def _completion_tokens(answers: Sequence[Example]) -> int:
    return sum(len(answer.completion_ids) for answer in answers)


def _total(answers: list[Example], knobs: C3POConfig) -> int:
    """What a constraint's sum is divided by."""
    if knobs.constraint_reduction == "token_mean":
        return _completion_tokens(answers)
    return len(answers)


def _revised_tokens(step: Batch) -> int:
    return _completion_tokens([pair[0] for pair in step.pairs])


# ---- what is told of it ----


def _metrics(parts: list[PartLoss], step: Batch, knobs: C3POConfig) -> dict[str, float]:
    """Of a whole step. Terms are unweighted, and left out where they are not computed."""
    columns = zip(*(part.terms for part in parts), strict=True)
    loss, dpo, out, near, chosen_rewards, rejected_rewards = map(list, columns)
    found = {"loss": _sum(loss)}
    if knobs.loss != "sft":
        margins = torch.cat(chosen_rewards) - torch.cat(rejected_rewards)
        found |= {
            knobs.loss: _sum(dpo),
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
    if step.learned:
        found["nll/learned"] = _sum([part.learned for part in parts])
    if step.out:
        found[f"{knobs.constraint}/out"] = _sum(out)
    if step.near:
        found[f"{knobs.constraint}/near"] = _sum(near)
    return found


def _sum(shares: list[Tensor]) -> float:
    return float(torch.stack(shares).sum())


@torch.no_grad()
def _held_out_metrics(
    model: CausalLM,
    held_out: ScopedExamples,
    reference: ReferenceScores,
    knobs: C3POConfig,
    run: Run,
) -> dict[str, float]:
    """The same terms on prompts that were not trained on."""
    batch = Batch.of(held_out, knobs)
    if not batch.pairs:
        return {}
    found = c3po_step(model, batch, reference, knobs, run.micro_batch_tokens)
    return {f"eval/{name}": value for name, value in found.items() if name != "tokens"}


def _summary(steps: int, metrics: dict[str, float]) -> str:
    """What a person wants to know of the training."""
    shown = {"loss": "loss", "rewards/margins": "margin", "eval/rewards/margins": "unseen margin"}
    figures = [f"{text} {metrics[name]:.2f}" for name, text in shown.items() if name in metrics]
    return f"{steps} steps; {', '.join(figures)}"


# ---- what it will cost, and what it trains on ----


def work(lessons: Scoped, knobs: C3POConfig, tokens: int) -> Work:
    """`tokens` are those that a micro-batch may hold."""
    train, batch = lessons.train, Batch.of(lessons.train, knobs)
    read = round(knobs.epochs * _epoch_tokens(batch))
    texts = [text for pair in train.in_scope for text in pair]
    return Work(
        read=read,
        referred=sum(map(len, texts)) if knobs.has_reference else 0,
        largest=_tokens_in_flight(batch, knobs.pairs_per_step, tokens),
        probe=texts,
        stages=_rows(train, knobs),
        steps=knobs.steps(len(train.in_scope)),
        tokens=f"{read:,} tokens read",
        warnings=_equal_pairs(train, knobs),
        shown=_shown(*train.in_scope[0], batch),
    )


def _epoch_tokens(batch: Batch) -> int:
    """Every text that has a weight, once."""
    pairs = [
        (len(pair[0].prompt_ids), *(len(s.completion_ids) for s in pair)) for pair in batch.pairs
    ]
    return sum(map(sum, pairs)) + sum(map(len, (*batch.out, *batch.near, *batch.learned)))


def _tokens_in_flight(batch: Batch, size: int, budget: int) -> int:
    """Of the largest part of a step that deals the longest texts."""
    pairs = sorted(batch.pairs, key=distinct_tokens)[-size:]
    rest = [sorted(texts, key=len)[-size:] for texts in batch[1:]]
    return max(distinct_tokens(part.texts) for part in Batch(pairs, *rest).parts(budget))


def _rows(train: ScopedExamples, knobs: C3POConfig) -> list[tuple[str, str]]:
    """The knobs that decide most."""
    rows = []
    if train.out_of_scope:
        kept = (
            f"{knobs.constraint} x {knobs.lambda_out:g} out of scope ({len(train.out_of_scope)} "
            f"answers), x {knobs.lambda_near:g} near scope ({len(train.near_scope)})"
        )
        constrained = knobs.lambda_out or knobs.lambda_near
        rows = [
            ("in scope", f"{knobs.loss} on {len(train.in_scope)} revised answers"),
            ("kept", kept if constrained else "nothing: no constraint"),
        ]
    steps = (
        f"{knobs.steps(len(train.in_scope))} of {knobs.pairs_per_step} pairs, "
        f"learning rate {knobs.learning_rate:g}{_loss_knobs(knobs)}"
    )
    return [*rows, ("steps", steps)]


def _loss_knobs(knobs: C3POConfig) -> str:
    """What a loss is set by, as far as it reads it."""
    names = [name for name in ("beta", "simpo_beta", "simpo_gamma", "orpo_weight", "nll_weight")]
    read = [name for name in names if name not in knobs.unread and getattr(knobs, name)]
    return "".join(f", {name.replace('_', ' ')} {getattr(knobs, name):g}" for name in read)


def _equal_pairs(train: ScopedExamples, knobs: C3POConfig) -> list[str]:
    """A warning where there is nothing to prefer: both answers were cut before they part."""
    equal = sum(chosen == rejected for chosen, rejected in train.in_scope)
    if knobs.loss == "sft" or not equal:
        return []
    return [
        f"in {equal} of {len(train.in_scope)} pairs both answers are the same, cut or as they "
        f"stand: {knobs.loss.upper()} learns nothing from them"
    ]


def _shown(chosen: Example, rejected: Example, batch: Batch) -> list[Part]:
    """Both answers after the one prompt, and which part of each is trained on."""
    after, trained = len(chosen.prompt_ids), [*batch.pairs[0], None]
    return [
        Part("prompt", chosen.prompt_ids, 0, after),
        *_answer_parts("chosen", chosen, chosen if batch.learned else trained[0]),
        *_answer_parts("rejected", rejected, trained[1]),
    ]


def _answer_parts(name: str, answer: Example, trained: Example | None) -> list[Part]:
    """An answer up to where what is `trained` of it ends, and what is left."""
    ids, after = answer.completion_ids, len(answer.prompt_ids)
    never = after + len(ids)
    if trained is None:
        return [Part(name, ids, after, never)]
    end = len(trained)
    found = [Part(name, ids[: end - after], after, len(trained.prompt_ids))]
    return [*found, Part(name, ids[end - after :], end, never)] if end < never else found
