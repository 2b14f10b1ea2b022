"""The losses: pure functions over summed log-probabilities, a few lines of ordinary, differentiable
code each.

They take what `score` returns and know nothing of models, batches or devices. Mathematics only:
torch and nothing else.

Shape letters: B sequences or pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class PreferenceLoss(NamedTuple):
    """losses (B,), unreduced and differentiable; the implicit rewards (B,) carry no gradient."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


class C3POLoss(NamedTuple):
    """`loss` is a differentiable scalar; its three terms, unweighted scalars, and the implicit
    rewards (B,) carry no gradient.
    """

    loss: Tensor
    dpo: Tensor
    nll_out: Tensor
    nll_near: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def sft_loss(logps: Tensor, total_tokens: int) -> Tensor:
    """The negative log-likelihood per token: -sum(logps) / total_tokens, a scalar.

    Every token weighs the same. `total_tokens` counts the trained tokens (the end token included)
    of the *whole* step, so that the losses of its micro-batches add up to the loss of the step,
    however it was cut.

    Args:
        logps: (B,) summed log-probabilities of the completions.
    """
    return -logps.sum() / total_tokens


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

        r(y) = beta [log pi(y|x) - log pi_ref(y|x)]
        m    = r(chosen) - r(rejected)
        loss = -(1 - s) log sigmoid(m) - s log sigmoid(-m)

    with label smoothing s (conservative DPO: the share of labels taken to be wrong). All
    log-probabilities are *summed* over the completion, (B,). At policy = reference the loss is ln 2
    and its derivative in the margin is -(1/2 - s).
    """
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    losses = -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(
        -margins
    )
    return PreferenceLoss(losses, chosen_rewards.detach(), rejected_rewards.detach())


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Identity preference optimization (Azar et al. 2023, arXiv 2310.12036, equation 17).

        h    = log pi(chosen)/pi_ref(chosen) - log pi(rejected)/pi_ref(rejected)
        loss = (h - 1 / (2 beta))^2

    Where DPO widens a margin without end, this one stops at 1 / (2 beta) nats. Arguments and
    rewards are those of `dpo_loss`; beta is the paper's tau.
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    losses = (chosen - rejected - 1 / (2 * beta)) ** 2
    return PreferenceLoss(losses, beta * chosen.detach(), beta * rejected.detach())


def simpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    *,
    beta: float,
    gamma: float,
) -> PreferenceLoss:
    """Simple preference optimization (Meng et al. 2024, arXiv 2405.14734, equation 6).

        r(y) = beta log pi(y|x) / |y|
        loss = -log sigmoid(r(chosen) - r(rejected) - gamma)

    There is no reference, and a text's length gives it no advantage.

    Args:
        chosen_logps, rejected_logps: (B,) summed log-probabilities.
        chosen_tokens, rejected_tokens: (B,) lengths |y| of the completions.
    """
    chosen = beta * chosen_logps / chosen_tokens
    rejected = beta * rejected_logps / rejected_tokens
    losses = -F.logsigmoid(chosen - rejected - gamma)
    return PreferenceLoss(losses, chosen.detach(), rejected.detach())


def orpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    *,
    weight: float,
) -> PreferenceLoss:
    """Odds ratio preference optimization (Hong et al. 2024, arXiv 2403.07691, equations 3 to 7).

        p(y) = exp(log pi(y|x) / |y|),   odds(y) = p / (1 - p)
        loss = -log p(chosen) - weight log sigmoid(log odds(chosen) - log odds(rejected))

    SFT on the chosen texts and a preference in one, without a reference. The rewards are weight
    times the log odds. Arguments are those of `simpo_loss`; `weight` is the paper's lambda.
    """
    chosen = chosen_logps / chosen_tokens
    chosen_odds, rejected_odds = _log_odds(chosen), _log_odds(rejected_logps / rejected_tokens)
    losses = -chosen - weight * F.logsigmoid(chosen_odds - rejected_odds)
    return PreferenceLoss(losses, weight * chosen_odds.detach(), weight * rejected_odds.detach())


def _log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)), of log p."""
    # A text that is certain would have infinite odds.
    logps = logps.clamp(max=-1e-7)
    return logps - (-logps.expm1()).log()


def top_divergence(logits: Tensor, teacher_logits: Tensor, top: int) -> Tensor:
    """KL(student || teacher) over the student's likeliest tokens, all others counting as one.

        kl = sum_(v in top) q_v log(q_v / p_v) + Q log(Q / P),   Q, P: what is left of each

    For on-policy distillation (arXiv 2601.19897). It is at most the whole divergence, and equal to
    it where `top` holds the whole vocabulary.

    Args:
        logits, teacher_logits: (N, V); the teacher's get no gradient.
        top: how many tokens stand for themselves.
    Returns: (N,), differentiable in `logits`.
    """
    log_q, log_p = logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1)
    places = log_q.topk(min(top, log_q.shape[-1]), -1).indices
    log_q, log_p = log_q.gather(-1, places), log_p.gather(-1, places)
    # Nothing is left where all tokens are among the likeliest, but for rounding.
    rest_q, rest_p = ((1 - x.exp().sum(-1)).clamp(min=1e-7) for x in (log_q, log_p))
    kl: Tensor = (log_q.exp() * (log_q - log_p)).sum(-1)
    return kl + rest_q * (rest_q / rest_p).log()


def spin_loss(
    policy_real_logps: Tensor,
    policy_generated_logps: Tensor,
    opponent_real_logps: Tensor,
    opponent_generated_logps: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Self-play fine-tuning (Chen et al. 2024, arXiv 2401.01335, equation 4.7).

    With the logistic loss and lambda = beta.

    DPO's mathematics with other roles: the human text is chosen over the text that the *opponent*,
    the policy of the round before, wrote itself, and that opponent is also the reference. DITTO
    differs in keeping its reference frozen.
    """
    return dpo_loss(
        policy_real_logps,
        policy_generated_logps,
        opponent_real_logps,
        opponent_generated_logps,
        beta=beta,
    )


def c3po_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    out_logps: Tensor,
    near_logps: Tensor,
    *,
    pairs: int,
    out_total: int,
    near_total: int,
    beta: float = 0.1,
    lambda_out: float = 0.2,
    lambda_near: float = 0.1,
) -> C3POLoss:
    """Constrained preference optimization (Stephan et al. 2024, arXiv 2402.10893, equation 5).

        L    = 1 / pairs sum L_DPO(revised > baseline) + lambda_out NLL_out + lambda_near NLL_near
        NLL  = -1 / total sum log pi(y|x),   y the base model's own answer

    In scope the base model is both the reference and the author of the rejected texts; out of scope
    and near it the policy keeps to what the base model says. `pairs` and both totals count the
    *whole* step, so that the losses of its micro-batches add up to the loss of the step, however it
    was cut. The published lambdas (official code: sigma_soft .2, sigma_hard .1) belong to a mean
    over tokens: let the totals count the answers' tokens, end tokens included. A term that is left
    out has empty tensors and total 0; with both lambdas 0 this is DPO.

    Args:
        policy_chosen_logps and the next three: (B,) summed log-probabilities, as in `dpo_loss`.
        out_logps, near_logps: (B_out,), (B_near,) the policy's, of the base model's answers; for a
            constraint by divergence, minus the summed divergences.
    """
    preference = dpo_loss(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta=beta,
    )
    dpo = preference.losses.sum() / max(1, pairs)
    nll_out = sft_loss(out_logps, max(1, out_total))
    nll_near = sft_loss(near_logps, max(1, near_total))
    loss = dpo + lambda_out * nll_out + lambda_near * nll_near
    return C3POLoss(
        loss,
        dpo.detach(),
        nll_out.detach(),
        nll_near.detach(),
        preference.chosen_rewards,
        preference.rejected_rewards,
    )
