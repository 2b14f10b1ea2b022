"""What stands in for DPO's loss, in value and slope, against numbers worked out by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minialign.losses import ipo_loss, orpo_loss, simpo_loss


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
