"""C3PO's loss against numbers worked out by hand, and against the paper's closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from minialign.losses import C3POLoss, c3po_loss, dpo_loss

EMPTY = torch.zeros(0, dtype=torch.float64)
NO_CONSTRAINT = {"lambda_out": 0.0, "lambda_near": 0.0, "out_total": 0, "near_total": 0}


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_logps(*sizes: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-20 * torch.rand(n, generator=generator, dtype=torch.float64) for n in sizes]


def test_c3po_loss_equals_hand_derived_numbers() -> None:
    """beta = 1/2, lambda_out = 1/5, lambda_near = 1/10.

    One pair: chosen -3 against -5, rejected -7 against -5: rewards 1 and -1, margin 2,
        L_DPO = log(1 + e^-2) = 0.126928011042972...
    Out of scope: log-probabilities -6 and -2 over 4 + 1 tokens: NLL 8/5.
    Near scope: -3 over 2 tokens: NLL 3/2.
        L = 0.126928011... + 1/5 x 8/5 + 1/10 x 3/2 = 0.126928011... + 0.32 + 0.15.
    """
    found = c3po_loss(
        *(t(-3), t(-7), t(-5), t(-5), t(-6, -2), t(-3)),
        **{"pairs": 1, "out_total": 5, "near_total": 2},
        **{"beta": 0.5, "lambda_out": 0.2, "lambda_near": 0.1},
    )
    torch.testing.assert_close(found.loss, torch.tensor(0.126928011042972496 + 0.47).double())
    torch.testing.assert_close(found.dpo, torch.tensor(0.126928011042972496).double())
    assert found.nll_out.item() == pytest.approx(8 / 5)
    assert found.nll_near.item() == pytest.approx(3 / 2)
    torch.testing.assert_close(found.chosen_rewards, t(1))
    torch.testing.assert_close(found.rejected_rewards, t(-1))


def test_the_defaults_are_the_papers() -> None:
    four, out, near = random_logps(3, 3, 3, 3), t(-7), t(-5)
    totals = {"pairs": 3, "out_total": 4, "near_total": 2}
    paper = {"beta": 0.1, "lambda_out": 0.2, "lambda_near": 0.1}
    default = c3po_loss(*four, out, near, **totals)
    for own, other in zip(default, c3po_loss(*four, out, near, **totals, **paper), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_without_constraints_it_is_dpo_to_the_last_bit_and_so_is_its_gradient(beta: float) -> None:
    four = [x.requires_grad_() for x in random_logps(5, 5, 5, 5)]
    ours = c3po_loss(*four, EMPTY, EMPTY, pairs=5, beta=beta, **NO_CONSTRAINT)
    theirs = dpo_loss(*four, beta=beta)
    assert torch.equal(ours.loss, theirs.losses.sum() / 5)
    assert torch.equal(ours.chosen_rewards, theirs.chosen_rewards)
    assert torch.equal(ours.rejected_rewards, theirs.rejected_rewards)
    ours_gradients = torch.autograd.grad(ours.loss, four)
    theirs_gradients = torch.autograd.grad(theirs.losses.sum() / 5, four)
    for own, other in zip(ours_gradients, theirs_gradients, strict=True):
        assert torch.equal(own, other)


def test_constraints_of_weight_0_change_no_bit_even_if_they_are_computed() -> None:
    four = random_logps(5, 5, 5, 5)
    without = c3po_loss(*four, EMPTY, EMPTY, pairs=5, **NO_CONSTRAINT)
    lambdas = {"lambda_out": 0.0, "lambda_near": 0.0}
    computed = c3po_loss(*four, t(-9), t(-8), pairs=5, out_total=3, near_total=4, **lambdas)
    assert torch.equal(computed.loss, without.loss)
    assert (computed.nll_out.item(), computed.nll_near.item()) == (3.0, 2.0)


def test_at_the_reference_the_preference_is_ln_2_and_a_perfect_model_has_nll_0() -> None:
    """The official code's own masked loss has 124.5 for a model that is certain and right."""
    chosen, rejected = random_logps(4, 4)
    pair = (chosen, rejected, chosen, rejected)
    totals = {"pairs": 4, "out_total": 50, "near_total": 70}
    found = c3po_loss(*pair, torch.zeros(2).double(), torch.zeros(3).double(), **totals)
    torch.testing.assert_close(found.dpo, torch.tensor(math.log(2)).double())
    assert found.nll_out == found.nll_near == 0
    assert found.loss == found.dpo


def test_each_lambda_weighs_its_own_scope() -> None:
    """d loss / d log pi of an answer is -lambda / total."""
    out, near = t(-6, -2).requires_grad_(), t(-3).requires_grad_()
    found = c3po_loss(
        *(4 * [EMPTY]), out, near, pairs=0, out_total=5, near_total=2, lambda_out=2, lambda_near=3
    )
    found.loss.backward()
    torch.testing.assert_close(out.grad, t(-2 / 5, -2 / 5))
    torch.testing.assert_close(near.grad, t(-3 / 2))
    assert found.dpo == 0


def test_terms_and_rewards_carry_no_gradient() -> None:
    inputs = [x.requires_grad_() for x in random_logps(2, 2, 2, 2, 3, 1)]
    found = c3po_loss(*inputs, pairs=2, out_total=9, near_total=5)
    tracked = {name for name, value in found._asdict().items() if value.requires_grad}
    assert tracked == {"loss"} < set(C3POLoss._fields)


def test_the_gradient_is_the_numerical_one() -> None:
    inputs = [x.requires_grad_() for x in random_logps(3, 3, 3, 3, 2, 4)]

    def loss(*logps: Tensor) -> Tensor:
        return c3po_loss(*logps, pairs=3, out_total=11, near_total=7, beta=0.3).loss

    assert torch.autograd.gradcheck(loss, inputs)


Cut = list[tuple[slice, slice, slice]]  # pairs, out, near of each micro-batch
NOTHING, ALL = slice(0, 0), slice(None)
CUTS: dict[str, Cut] = {
    "two halves": [
        (slice(0, 1), slice(0, 3), slice(0, 1)),
        (slice(1, 4), slice(3, 5), slice(1, 2)),
    ],
    "a scope each": [(ALL, NOTHING, NOTHING), (NOTHING, ALL, NOTHING), (NOTHING, NOTHING, ALL)],
    "one by one": [
        *((slice(i, i + 1), NOTHING, NOTHING) for i in range(4)),
        *((NOTHING, slice(i, i + 1), NOTHING) for i in range(5)),
        *((NOTHING, NOTHING, slice(i, i + 1)) for i in range(2)),
    ],
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_micro_batches_add_up_to_the_whole_step_in_loss_and_gradient(cut: Cut) -> None:
    step: dict[str, Any] = {"pairs": 4, "out_total": 23, "near_total": 31}
    inputs = [x.requires_grad_() for x in random_logps(4, 4, 4, 4, 5, 2)]
    whole = c3po_loss(*inputs, **step)
    shares = [
        c3po_loss(*(x[pairs] for x in inputs[:4]), inputs[4][out], inputs[5][near], **step)
        for pairs, out, near in cut
    ]
    for name in ("loss", "dpo", "nll_out", "nll_near"):
        total = sum(getattr(share, name) for share in shares)
        torch.testing.assert_close(total, getattr(whole, name))
    expected = torch.autograd.grad(whole.loss, inputs)
    found = torch.autograd.grad(sum(share.loss for share in shares), inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.25])
def test_the_best_policy_of_a_two_policy_bandit_is_the_papers(beta: float) -> None:
    """Equations 6 and 7: with every chosen text from pi+, every rejected one from pi-, and pi- as
    the reference, the optimum is proportional to (pi+ / pi-^(1 - beta))^(1 / beta).

    Three texts with pi+ = (1, 2, 5)/8 and pi- = (4, 2, 2)/8, in all 64 pairs. At beta = 1 the
    optimum is pi+ itself, at beta = 1/2 it is pi+^2 / pi- = (1/4, 2, 25/2)/59 x 4.
    """
    better, worse = [0, 1, 1, 2, 2, 2, 2, 2], [0, 0, 0, 0, 1, 1, 2, 2]
    chosen = torch.tensor([a for a in better for _ in worse])
    rejected = torch.tensor([b for _ in better for b in worse])
    plus, minus = t(1, 2, 5) / 8, t(4, 2, 2) / 8
    logits = minus.log().requires_grad_()  # as training does, it starts at the reference
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=0, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        policy, reference = logits.log_softmax(0), minus.log()
        four = (policy[chosen], policy[rejected], reference[chosen], reference[rejected])
        loss = c3po_loss(*four, EMPTY, EMPTY, pairs=64, beta=beta, **NO_CONSTRAINT).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (plus / minus ** (1 - beta)) ** (1 / beta)
    torch.testing.assert_close(
        logits.detach().softmax(0), expected / expected.sum(), rtol=1e-4, atol=1e-6
    )
    if beta == 0.5:
        torch.testing.assert_close(expected / expected.sum(), t(1 / 4, 2, 25 / 2) / 59 * 4)
