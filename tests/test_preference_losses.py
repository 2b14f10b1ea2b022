"""What stands in for DPO's loss, and a teacher's divergence, against numbers worked out by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minialign.losses import ipo_loss, orpo_loss, simpo_loss, top_divergence


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_ipo_is_the_squared_distance_from_its_margin() -> None:
    """beta = 1/2, so the margin that is asked for is 1 nat.

    Pair 1: chosen 2 above its reference, rejected 1.5 below: h = 3.5, loss 2.5^2, slopes +-5.
    Pair 2: h = 1, as asked for: loss and slopes 0.
    """
    chosen, rejected = t(-3, -4).requires_grad_(), t(-7, -9).requires_grad_()
    found = ipo_loss(chosen, rejected, t(-5, -4), t(-5.5, -8), beta=0.5)
    torch.testing.assert_close(found.losses.detach(), t(6.25, 0))
    torch.testing.assert_close(found.chosen_rewards, t(1, 0))
    torch.testing.assert_close(found.rejected_rewards, t(-0.75, -0.5))
    found.losses.sum().backward()
    torch.testing.assert_close(chosen.grad, t(5, 0))
    torch.testing.assert_close(rejected.grad, t(-5, 0))


def test_simpo_compares_means_over_tokens() -> None:
    """beta = 2, gamma = 1/2: -3 over 6 tokens is a reward of -1, -4 over 4 tokens one of -2.

    loss = -log sigmoid(-1 + 2 - 1/2) = log(1 + e^-1/2), with slope -sigmoid(-1/2) in the margin,
    times 2/6 for the chosen log-probability and -2/4 for the rejected one.
    """
    chosen, rejected = t(-3).requires_grad_(), t(-4).requires_grad_()
    found = simpo_loss(chosen, rejected, t(6), t(4), beta=2.0, gamma=0.5)
    torch.testing.assert_close(found.losses.detach(), t(0.474076984180107))
    torch.testing.assert_close(found.chosen_rewards, t(-1))
    torch.testing.assert_close(found.rejected_rewards, t(-2))
    found.losses.sum().backward()
    torch.testing.assert_close(chosen.grad, t(-0.377540668798145 / 3))
    torch.testing.assert_close(rejected.grad, t(0.377540668798145 / 2))


def test_orpo_is_a_likelihood_and_a_ratio_of_odds() -> None:
    """weight = 1/4: tokens of 4/5 have odds of 4, tokens of 1/2 odds of 1.

    loss = -log 4/5 - 1/4 log sigmoid(log 4) = 5/4 log 5/4.
    With m = log p, d log odds / dm = 1 / (1 - p): 5 and 2; d loss / d ratio = -1/4 * 1/5. So
    d loss / dm = -1 - 1/4 and 1/10, over 2 tokens and over 3.
    """
    chosen = t(2 * math.log(0.8)).requires_grad_()
    rejected = t(3 * math.log(0.5)).requires_grad_()
    found = orpo_loss(chosen, rejected, t(2), t(3), weight=0.25)
    torch.testing.assert_close(found.losses.detach(), t(1.25 * math.log(1.25)))
    torch.testing.assert_close(found.chosen_rewards, t(math.log(4) / 4))
    torch.testing.assert_close(found.rejected_rewards, t(0))
    found.losses.sum().backward()
    torch.testing.assert_close(chosen.grad, t(-0.625))
    torch.testing.assert_close(rejected.grad, t(0.1 / 3))


def test_a_text_that_is_certain_has_no_infinite_odds() -> None:
    chosen = t(0).requires_grad_()
    found = orpo_loss(chosen, t(-3), t(2), t(2), weight=0.1)
    found.losses.sum().backward()
    assert found.losses.isfinite().all() and chosen.grad is not None
    assert chosen.grad.tolist() == [-0.5]


def test_a_divergence_of_all_tokens_and_of_the_likeliest() -> None:
    """The student has (1/2, 1/4, 1/4), the teacher (1/4, 1/4, 1/2).

    All: 1/2 log 2 + 0 + 1/4 log 1/2 = 1/4 log 2, with slopes q (log q/p - kl) in the logits.
    The likeliest: 1/2 log 2 + 1/2 log(1/2 : 3/4) = 1/2 log 4/3; with d kl / dQ = log 2 - log 2/3
    and dQ / dz = (1/4, -1/8, -1/8).
    """
    teacher = t(0.25, 0.25, 0.5).log()[None].requires_grad_()
    two, three = math.log(2), math.log(3)
    for top, value, slopes in (
        (3, two / 4, (3 / 8 * two, -two / 16, -5 / 16 * two)),
        (20, two / 4, (3 / 8 * two, -two / 16, -5 / 16 * two)),
        (1, math.log(4 / 3) / 2, (three / 4, -three / 8, -three / 8)),
    ):
        logits = (t(0.5, 0.25, 0.25).log() + 7)[None].requires_grad_()
        found = top_divergence(logits, teacher, top)
        torch.testing.assert_close(found.detach(), t(value), rtol=1e-6, atol=1e-6)
        found.sum().backward()
        torch.testing.assert_close(logits.grad, t(*slopes)[None], rtol=1e-6, atol=1e-6)
    assert teacher.grad is None
