import dataclasses
import math
from collections import OrderedDict, namedtuple

import pytest
import torch

from decomp.errors import UsageError
from decomp.execution.outputs import difference, named_tensors


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
        (Pair(A, B), ["0", "1"]),  # by place: a traced network returns a plain tuple
        (Result(A), ["logits"]),
        ({0: A, 1: {"p": Pair(B, None)}}, ["0", "1.p.0"]),
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
    assert difference(wanted, wanted) == 0


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


def test_masks_and_whole_numbers_are_compared_too():
    mask = torch.tensor([0.0, -math.inf, math.nan])
    assert difference([mask, torch.tensor([3, 4])], [mask.clone(), torch.tensor([3, 4])]) == 0
    assert difference(torch.tensor([3, 4]), torch.tensor([3, 5])) == pytest.approx(0.25)
    assert difference(torch.zeros(2), torch.zeros(2)) == 0
    assert difference(torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)) > 1
