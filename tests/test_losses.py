"""The losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from minialign.losses import dpo_loss, sft_loss, spin_loss


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_loss_equals_hand_derived_numbers() -> None:
    """beta = 1/2.

    Pair 1: chosen -3 against a reference of -5, rejected -7 against -5:
        r(chosen) = (-3 + 5)/2 = 1, r(rejected) = (-7 + 5)/2 = -1, margin 2,
        loss = -log sigmoid(2) = log(1 + e^-2) = 0.126928011042972...
    Pair 2: chosen -6 against -4, rejected -1 against -3:
        r(chosen) = -1, r(rejected) = 1, margin -2, loss = log(1 + e^2) = 2 + log(1 + e^-2).
    """
    found = dpo_loss(t(-3, -6), t(-7, -1), t(-5, -4), t(-5, -3), beta=0.5)
    torch.testing.assert_close(found.losses, t(0.126928011042972496, 2.126928011042972496))
    torch.testing.assert_close(found.chosen_rewards, t(1, -1))
    torch.testing.assert_close(found.rejected_rewards, t(-1, 1))


def test_label_smoothing_mixes_in_the_opposite_label() -> None:
    """Margin 2, s = 1/4: 3/4 log(1 + e^-2) + 1/4 log(1 + e^2) = log(1 + e^-2) + 2/4."""
    found = dpo_loss(t(-3), t(-7), t(-5), t(-5), beta=0.5, label_smoothing=0.25)
    torch.testing.assert_close(found.losses, t(0.126928011042972496 + 0.5))


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_at_the_reference_the_loss_is_ln_2_and_the_slopes_are_half_beta(
    beta: float, smoothing: float
) -> None:
    """d loss / d chosen = -beta (sigmoid(-m) - s) at m = 0: -beta (1/2 - s); rejected: the
    opposite.
    """
    logps = t(-3.5, -120, 0)
    chosen, rejected = logps.clone().requires_grad_(), (logps - 1).requires_grad_()
    found = dpo_loss(chosen, rejected, logps, logps - 1, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(found.losses.detach(), t(*3 * [math.log(2)]))
    found.losses.sum().backward()
    torch.testing.assert_close(chosen.grad, t(*3 * [-beta * (0.5 - smoothing)]))
    torch.testing.assert_close(rejected.grad, t(*3 * [beta * (0.5 - smoothing)]))


def test_losses_are_unreduced_and_rewards_carry_no_gradient() -> None:
    chosen, rejected = t(-1, -2, -3).requires_grad_(), t(-2, -2, -2).requires_grad_()
    found = dpo_loss(chosen, rejected, t(-2, -2, -2), t(-2, -2, -2), beta=1.0)
    assert [x.shape for x in found] == [(3,)] * 3
    assert found.losses.requires_grad
    assert not found.chosen_rewards.requires_grad and not found.rejected_rewards.requires_grad
    assert found.losses[0] < found.losses[1] < found.losses[2]  # each pair its own


def test_dpo_loss_stays_finite_far_from_the_reference() -> None:
    """log sigmoid(-10^4) is -10^4, where log(sigmoid()) would be -inf."""
    chosen = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = dpo_loss(chosen, *torch.zeros(3, 2), beta=1.0).losses
    assert losses.tolist() == [1e4, 0.0]
    losses.sum().backward()
    assert chosen.grad is not None and chosen.grad.tolist() == [-1.0, 0.0]


def test_sft_loss_is_the_negative_log_likelihood_per_token() -> None:
    logps = t(-6, -1).requires_grad_()
    loss = sft_loss(logps, 5)
    assert loss.item() == pytest.approx(7 / 5)
    loss.backward()
    torch.testing.assert_close(logps.grad, t(-1 / 5, -1 / 5))


def test_micro_batches_of_sft_add_up_to_the_whole_step() -> None:
    """With unequal lengths, where a mean of means would not."""
    logps = t(-6, -1, -0.5)
    parts = sft_loss(logps[:1], 12) + sft_loss(logps[1:], 12)
    torch.testing.assert_close(parts, sft_loss(logps, 12))


def test_spin_prefers_the_real_text_and_measures_against_the_opponent() -> None:
    """Real text -3 (opponent -5), generated -7 (opponent -5), lambda 1/2: margin 2, as in DPO.

    Exchanging the roles gives margin -2.
    """
    found = spin_loss(t(-3), t(-7), t(-5), t(-5), beta=0.5)
    torch.testing.assert_close(found.losses, t(0.126928011042972496))
    swapped = spin_loss(t(-7), t(-3), t(-5), t(-5), beta=0.5)
    torch.testing.assert_close(swapped.losses, t(2.126928011042972496))
    opponent = spin_loss(t(-3), t(-7), t(-4), t(-7), beta=0.5)  # only the real text's edge counts
    torch.testing.assert_close(opponent.chosen_rewards, t(0.5))
    torch.testing.assert_close(opponent.rejected_rewards, t(0))
