import pytest
import torch

from decomp.errors import UsageError
from decomp.execution.outputs import as_tensor, output_divergence


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_divergence_is_the_sum_of_its_definition():
    output, target = normal(2, 6, 5)
    p, q = target.softmax(1), output.softmax(1)
    for i in range(6):
        naive = sum(p[i, c] * (p[i, c] / q[i, c]).log() for c in range(5))
        assert output_divergence(target, output)[i].item() == pytest.approx(naive.item(), rel=1e-12)


def test_divergence_and_its_gradient_vanish_only_where_the_student_equals_the_teacher():
    target = normal(4, 5, seed=1).float()
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
    torch.testing.assert_close(student.grad, (student.detach().softmax(1) - target.softmax(1)) / 4)


def test_other_outputs_are_compared_by_their_squared_difference_over_their_variance():
    wanted = normal(8, 3, 4, 4, seed=2) + 5
    mean = wanted.mean(dim=0, keepdim=True).expand_as(wanted)
    # The mean output of all images explains none of the variance.
    assert output_divergence(wanted, mean).mean().item() == pytest.approx(1)
    assert output_divergence(wanted, (wanted + mean) / 2).mean().item() == pytest.approx(0.25)
    assert output_divergence(wanted, wanted).max() == 0
    one = wanted.clone()
    one[3] += 1
    assert output_divergence(wanted, one).nonzero().flatten().tolist() == [3]


def test_a_constant_output_does_not_divide_by_zero():
    wanted = torch.ones(3, 2, 2)
    assert output_divergence(wanted, wanted).tolist() == [0, 0, 0]


def test_several_tensors_have_equal_weight_whatever_their_size():
    small, large = normal(4, 3), normal(4, 2, 10, 10, seed=1)
    whole = as_tensor({"boxes": small, "maps": [large]})
    assert whole.shape == (4, 1, 3 + 200)
    # The mean square of each tensor adds up to the square of the row.
    wanted = small.square().mean(1) + large.square().flatten(1).mean(1)
    assert torch.allclose(whole.square().sum((1, 2)), wanted)
    assert as_tensor(small) is small
    assert torch.equal(as_tensor((small,))[:, 0], small / 3**0.5)


@pytest.mark.parametrize(
    ("output", "rule"),
    [
        (5, "must return tensors, or dicts or lists of tensors, got int"),
        ([torch.zeros(2, 3), "x"], "must return tensors, or dicts or lists of tensors, got str"),
        ([torch.tensor(1.0)], "must return tensors, or dicts or lists of tensors, got Tensor"),
        ([torch.zeros(2, 3), torch.zeros(4, 3)], "first axis runs over the images, got list"),
        ({}, "first axis runs over the images, got dict"),
    ],
)
def test_outputs_that_are_not_tensors_of_one_image_each_are_refused(output, rule):
    with pytest.raises(UsageError, match=f"^net: .*{rule}"):
        as_tensor(output, "net")
