"""A loss of any outputs without labels."""

import pytest
import torch

from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.measure.own_loss import loss_of

SCORES = Outputs((Output("output", "scores", (3,), "as asked"),))


def test_the_squared_derivative_for_scores_is_the_fisher_information():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    chances, loss, n = logits.softmax(1)[0], loss_of(SCORES, 0), 4000
    rows = logits.repeat(n, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(rows, None), rows)
    torch.testing.assert_close(gradient.square().mean(0), chances * (1 - chances), rtol=0.1, atol=0.01)


def test_every_output_counts_by_its_spread():
    outputs = Outputs((
        Output("0", "values", (2,), "as asked", variance=4.0), Output("1", "values", (2,), "as asked", variance=1.0),
    ))  # fmt: skip
    maps = [torch.zeros(5, 2, requires_grad=True) for _ in range(2)]
    gradients = torch.autograd.grad(loss_of(outputs, 0)(tuple(maps), None), maps)
    assert gradients[0].abs().unique().tolist() == [0.5] and gradients[1].abs().unique().tolist() == [1.0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_draws_are_those_of_the_seed(seed):
    rows = torch.zeros(20, 3)
    assert loss_of(SCORES, seed)(rows + torch.arange(3.0), None) == loss_of(SCORES, seed)(
        rows + torch.arange(3.0), None
    )
    assert loss_of(SCORES, 0)(rows + torch.arange(3.0), None) != loss_of(SCORES, 1)(rows + torch.arange(3.0), None)
