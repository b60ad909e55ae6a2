import dataclasses
import math
from collections import OrderedDict, namedtuple

import pytest
import torch

from decomp.errors import UsageError
from decomp.execution.outputs import as_tensor, difference, named_tensors, output_divergence, same_outputs


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


Pair = namedtuple("Pair", ["scores", "boxes"])


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


A, B, C = normal(3, 4), normal(3, 2, 5, 5, seed=1), normal(3, 6, seed=2)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (A, ["output"]),
        ({"scores": A, "boxes": B}, ["scores", "boxes"]),
        ({"boxes": B, "scores": A}, ["boxes", "scores"]),
        ((A, B), ["0", "1"]),
        ([A, [B, {"maps": C}]], ["0", "1.0", "1.1.maps"]),
        ([{"maps": A}, None, {"maps": B}], ["0.maps", "2.maps"]),
        (Pair(A, B), ["scores", "boxes"]),
        (Result(A), ["logits"]),
        ({0: A, 1: {"p": Pair(B, None)}}, ["0", "1.p.scores"]),
        (OrderedDict(logits=A, stride=8, size=(4, 4)), ["logits"]),
    ],
)
def test_outputs_are_named_by_keys_fields_and_places(output, names):
    found = named_tensors(output, 3)
    assert list(found) == names
    assert all(any(value is given for given in (A, B, C)) for value in found.values())


def test_one_number_an_image_is_a_column():
    flat = normal(5)
    assert torch.equal(named_tensors({"age": flat}, 5)["age"], flat[:, None])


@pytest.mark.parametrize(
    ("output", "rule"),
    [
        (torch.arange(3), "net: must be real numbers .*, got int64 .as of an argmax.; leave the last step out"),
        ({"hit": A > 0, "scores": A}, "net, output hit: .*got bool .*; leave the last step out"),
        ([A, torch.tensor(1.0)], "net, output 1: .*first axis must run over the images, got one number a batch; leave"),
        (torch.ones(1), "net: .*one number a batch; leave the last step out"),
        ([A, torch.zeros(4, 3)], r"net, output 1: .*got shape \(4, 3\) for 3 images"),
        ({"net": object()}, "net: must return tensors.* got net of class object"),
        ({}, "net: must return at least one tensor, got a dict without a tensor"),
        (None, "net: must return at least one tensor, got None"),
        ({"a": {"b": A}, "a.b": A}, "net: must give each of its outputs a name of its own, got a.b twice"),
    ],
)
def test_outputs_that_are_not_numbers_of_each_image_are_refused(output, rule):
    with pytest.raises(UsageError, match=f"^{rule}"):
        named_tensors(output, 3, "net")


def test_the_difference_is_the_worst_of_all_tensors_each_by_its_own_largest_number():
    wanted = {"scores": torch.tensor([[1.0, -4.0]]), "boxes": [torch.tensor([[640.0]]), None, 7]}
    got = {"scores": torch.tensor([[1.0, -4.2]]), "boxes": (torch.tensor([[672.0]]), None, 7)}
    assert difference(wanted, got) == pytest.approx(0.05)
    assert difference(wanted["boxes"], got["boxes"]) == pytest.approx(0.05)
    got["boxes"][0].fill_(640)
    got["scores"][0, 1] = -4.04
    assert difference(wanted, got) == pytest.approx(0.01)
    assert same_outputs(wanted, got, 0.011) and not same_outputs(wanted, got, 0.009) and not same_outputs(wanted, got)
    assert same_outputs(wanted, wanted)


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ({"a": A}, {"b": A}),
        ({"a": A}, A),
        ([A, B], [A]),
        (A, A[:, :3]),
        (A, A[:1]),
        ({"a": A, "n": 3}, {"a": A, "n": 4}),
        ({"a": A, "n": None}, {"a": A, "n": A}),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan])),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.0, 2.0])),
        (torch.tensor([math.nan]), torch.tensor([0.0])),
    ],
)
def test_outputs_of_other_forms_are_never_the_same(wanted, got):
    assert difference(wanted, got) == difference(got, wanted) == math.inf
    assert not same_outputs(wanted, got, 1e9)


def test_masks_and_whole_numbers_are_compared_too():
    mask = torch.tensor([0.0, -math.inf, math.nan])
    assert same_outputs([mask, torch.tensor([3, 4])], [mask.clone(), torch.tensor([3, 4])])
    assert difference(torch.tensor([3, 4]), torch.tensor([3, 5])) == pytest.approx(0.25)
    assert difference(torch.zeros(2), torch.zeros(2)) == 0
    assert difference(torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)) > 1
