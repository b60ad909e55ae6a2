import json
import math

import pytest
import torch

from decomp.errors import UsageError
from decomp.execution.output_change import Outputs, divergence, kl_divergence, squared_difference
from decomp.execution.output_kinds import Output


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_divergence_is_the_sum_of_its_definition():
    output, target = normal(2, 6, 5)
    p, q = target.softmax(1), output.softmax(1)
    for i in range(6):
        naive = sum(p[i, c] * (p[i, c] / q[i, c]).log() for c in range(5))
        assert kl_divergence(target, output)[i].item() == pytest.approx(naive.item(), rel=1e-12)


def test_divergence_and_its_gradient_vanish_only_where_the_student_equals_the_teacher():
    target = normal(4, 5, seed=1).float()
    student = (target + 3.0).requires_grad_()  # a shift of all logits is the same softmax
    value = kl_divergence(target, student).mean()
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-6

    student = (target + torch.tensor([0.5, 0, 0, 0, 0])).requires_grad_()
    value = kl_divergence(target, student).mean()
    value.backward()
    assert value.item() > 1e-3
    # The first class is too likely in every row: its logit must come down, all others go up.
    assert (student.grad[:, 0] > 0).all() and (student.grad[:, 1:] < 0).all()
    torch.testing.assert_close(student.grad, (student.detach().softmax(1) - target.softmax(1)) / 4)


def test_probabilities_have_the_divergence_of_their_logits():
    wanted, got = normal(6, 5), normal(6, 5, seed=1)
    output = Output("p", "scores", (5,), probabilities=True)
    found = divergence(wanted.softmax(1), got.softmax(1), output)
    torch.testing.assert_close(found, kl_divergence(wanted, got))
    sure = torch.tensor([[1.0, 0.0]])
    assert divergence(sure, sure, output).item() == 0


def test_values_of_one_output_are_compared_by_their_squared_difference_over_their_variance():
    wanted = normal(8, 3, 4, 4, seed=2) + 5
    variance = (wanted - wanted.mean(0)).square().mean().item()
    outputs = Outputs((Output("maps", "values", (3, 4, 4), variance=variance),))
    mean = wanted.mean(dim=0, keepdim=True).expand_as(wanted)

    def change(got):
        return outputs.change({"maps": wanted}, {"maps": got})

    # The mean output of all images explains none of the variance.
    assert change(mean).mean().item() == pytest.approx(1)
    assert change((wanted + mean) / 2).mean().item() == pytest.approx(0.25)
    assert change(wanted).max() == 0
    one = wanted.clone()
    one[3] += 1
    assert change(one).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("factors", [(1.0, 1.0), (1.0, 640.0), (1e-4, 3.0)])
def test_several_outputs_count_the_same_whatever_their_numbers_and_sizes(factors):
    """A tenth of the spread lost by one output, and a fifth by the other, of three entries and of two hundred."""
    wanted = {"boxes": normal(50, 3) * factors[0], "maps": normal(50, 2, 10, 10, seed=1) * factors[1]}
    each = [
        Output(name, "values", tuple(y.shape[1:]), variance=y.var(0, unbiased=False).mean().item())
        for name, y in wanted.items()
    ]
    noise = {name: normal(*y.shape, seed=7) for name, y in wanted.items()}
    shares = {"boxes": 0.1, "maps": 0.2}
    got = {}
    for entry in each:
        size = (shares[entry.name] * entry.variance / noise[entry.name].square().mean()) ** 0.5
        got[entry.name] = wanted[entry.name] + size * noise[entry.name]
    found = Outputs(tuple(each)).change(wanted, got)
    assert found.shape == (50,) and found.mean().item() == pytest.approx(0.15)


def test_class_scores_among_several_outputs_count_by_their_information():
    logits, boxes = normal(40, 5) * 2, normal(40, 4, seed=1)
    p = logits.softmax(1)
    information = kl_divergence(logits, p.mean(0, keepdim=True).log().expand(40, 5)).mean().item()
    scores = Output("scores", "scores", (5,), information=information)
    outputs = Outputs((scores, Output("boxes", "values", (4,), variance=boxes.var(0, unbiased=False).mean().item())))
    wanted = {"scores": logits, "boxes": boxes}
    forgets_class = {"scores": p.mean(0, keepdim=True).log().expand(40, 5), "boxes": boxes}
    forgets_boxes = {"scores": logits, "boxes": boxes.mean(0, keepdim=True).expand(40, 4)}
    assert outputs.change(wanted, forgets_class).mean().item() == pytest.approx(0.5)
    assert outputs.change(wanted, forgets_boxes).mean().item() == pytest.approx(0.5)
    assert outputs.scores is None
    alone = Outputs((scores,))
    assert alone.scores is scores
    change = alone.change({"scores": logits}, {"scores": boxes.repeat(1, 2)[:, :5]})
    assert torch.equal(change, kl_divergence(logits, boxes.repeat(1, 2)[:, :5]))  # in nats


def test_the_difference_is_the_same_in_parts(monkeypatch):
    a, b = normal(9, 2, 3), normal(9, 2, 3, seed=1)
    expected = torch.stack([(x - y).square().mean() for x, y in zip(a, b)])
    monkeypatch.setattr("decomp.execution.output_change.ENTRIES_AT_A_TIME", 13)
    with torch.no_grad():
        torch.testing.assert_close(squared_difference(a, b), expected)


def test_outputs_of_other_names_or_shapes_are_refused():
    outputs = Outputs((Output("a", "values", (3,)), Output("b.0", "values", (1,))))
    a, b = normal(2, 3), normal(2)
    assert list(outputs.named({"a": a, "b": [b]}, 2)) == ["a", "b.0"]
    for other in ({"a": a}, {"b": [b], "c": a}, {"a": a[:, :2], "b": [b]}, a):
        with pytest.raises(UsageError, match="^the outputs: must be .* give the network that was frozen"):
            outputs.named(other)


def test_a_description_comes_back_from_its_record():
    outputs = Outputs((Output("a", "values", (3, 4), variance=0.5), Output("b", "scores", (7,), "as asked", True)))
    assert Outputs.from_json(json.loads(json.dumps(outputs.to_json()))) == outputs


@pytest.mark.parametrize(
    "change", [{"kind": "other"}, {"variance": 0.0}, {"variance": math.nan}, {"new": 1}, {"shape": 3}]
)
def test_a_broken_record_is_refused(change):
    (record,) = Outputs((Output("a", "values", (3, 4)),)).to_json()
    with pytest.raises((TypeError, ValueError)):
        Outputs.from_json([{**record, **change}])
    with pytest.raises(ValueError, match="no output"):
        Outputs.from_json([])


def test_only_an_assumed_kind_of_rows_is_noted():
    rows, column, maps = (Output(name, "values", shape) for name, shape in (("r", (4,)), ("c", (1,)), ("m", (4, 2, 2))))
    said = Output("s", "values", (4,), "as asked")
    (note,) = Outputs((rows, column, maps, said)).notes()
    assert note.startswith("r: rows of 4 numbers are taken as values") and 'outputs="scores"' in note
    assert Outputs((column, maps, said)).notes() == []


def test_the_loss_adds_the_change_of_scores_about_their_mean_over_their_variance():
    wanted, got = normal(2, 6, 5, seed=2)
    values = {"wanted": normal(6, 3, seed=3), "got": normal(6, 3, seed=4)}
    scores, others = Output("a", "scores", (5,), variance=0.5), Output("b", "values", (3,), variance=4.0)
    change = kl_divergence(wanted, got).mean()
    squares = ((wanted - wanted.mean(1, keepdim=True)) - (got - got.mean(1, keepdim=True))).square().mean() / 0.5
    assert Outputs((scores,)).loss({"a": wanted}, {"a": got}).item() == pytest.approx((change + squares).item())
    error = (values["wanted"] - values["got"]).square().mean() / 4
    assert Outputs((others,)).loss({"b": values["wanted"]}, {"b": values["got"]}).item() == pytest.approx(error.item())
    both = Outputs((scores, others)).loss({"a": wanted, "b": values["wanted"]}, {"a": got, "b": values["got"]})
    assert both.item() == pytest.approx(((change + squares + error) / 2).item())
