"""The change of a network's output: what it is, and the gradient by which a network follows another."""

import pytest
import torch

from decomp.execution.outputs import output_divergence


def test_divergence_is_the_sum_of_its_definition():
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    p, q = target.softmax(1), output.softmax(1)
    naive = sum(p[i, c] * (p[i, c] / q[i, c]).log() for i in range(6) for c in range(5)) / 6
    assert output_divergence(target, output).mean().item() == pytest.approx(naive.item(), rel=1e-12)


def test_divergence_and_its_gradient_vanish_only_where_the_student_equals_the_teacher():
    target = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    student = (target + 3.0).requires_grad_()  # a shift of all logits is the same softmax
    value = output_divergence(target, student).mean()
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-6

    student = (target + torch.tensor([0.5, 0, 0, 0, 0])).requires_grad_()
    value = output_divergence(target, student).mean()
    value.backward()
    assert value.item() > 1e-3
    # The first class is too likely in every row: its logit must come down, all others go up.
    assert (student.grad[:, 0] > 0).all() and (student.grad[:, 1:] < 0).all()
    expected = (student.detach().softmax(1) - target.softmax(1)) / 4
    torch.testing.assert_close(student.grad, expected)


def test_other_outputs_are_compared_by_their_squared_difference_over_their_variance():
    generator = torch.Generator().manual_seed(2)
    wanted = torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64) + 5
    mean = wanted.mean(dim=0, keepdim=True).expand_as(wanted)
    # Whoever always gives the mean output explains none of the variance.
    assert output_divergence(wanted, mean).mean().item() == pytest.approx(1)
    assert output_divergence(wanted, (wanted + mean) / 2).mean().item() == pytest.approx(0.25)
