"""Losses of a fine-tuning against their formulas, and where gradients go."""

import pytest
import torch
from torch import nn

from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.training.losses import loss_for
from decomp.pipelines.training.targets import as_rows

SCORES = Outputs((Output("output", "scores", (4,), variance=0.5),))


def test_losses_are_cross_entropy_divergence_or_the_mean_of_both():
    student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
    images, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    probabilities, target = student(images).softmax(1), teacher(images).softmax(1)
    entropy = -probabilities.log()[range(5), labels].mean()
    divergence = (target * (target / probabilities).log()).sum(1).mean()
    centred = [scores - scores.mean(1, keepdim=True) for scores in (student(images), teacher(images))]
    scores = (centred[0] - centred[1]).square().mean() / 0.5
    for options, targets, expected in (
        (("train", False, None), labels, entropy),
        (("none", False, teacher), None, divergence + scores),
        (("train", True, teacher), labels, (entropy + divergence) / 2),
    ):
        loss = loss_for(*options, SCORES)(student, images, targets)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_the_student_gets_gradients():
    student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
    loss_for("train", True, teacher, SCORES)(student, torch.randn(5, 6), torch.zeros(5, dtype=torch.long)).backward()
    assert student.weight.grad.abs().sum() > 0 and teacher.weight.grad is None


def test_a_student_that_equals_the_teacher_has_no_divergence():
    teacher, images = nn.Linear(6, 4), torch.randn(5, 6)
    assert abs(loss_for("none", False, teacher, SCORES)(teacher, images, None).item()) < 1e-6


def test_answers_that_were_kept_give_the_loss_of_those_computed_now():
    student, teacher, images = nn.Linear(6, 4), nn.Linear(6, 4), torch.randn(5, 6)
    loss = loss_for("none", False, teacher, SCORES)
    expected = loss(student, images, None).item()
    rows = as_rows({"output": teacher(images).detach()}, SCORES)
    with torch.no_grad():
        teacher.weight.zero_()  # not asked again
    assert loss(student, images, rows).item() == expected
    assert loss(student, images, rows.flip(0)).item() != expected


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x):
        return {"a": self.a(x), "b": [self.b(x) * 640, None]}


def test_without_labels_each_output_counts_by_its_own_spread():
    torch.manual_seed(0)
    student, teacher, images = Two(), Two(), torch.randn(5, 6)
    outputs = Outputs((Output("a", "values", (4,), variance=0.5), Output("b.0", "values", (2,), variance=4e4)))
    value = loss_for("none", False, teacher, outputs)(student, images, None)
    wanted, got = teacher(images), student(images)
    a = (wanted["a"] - got["a"]).square().mean() / 0.5
    b = (wanted["b"][0] - got["b"][0]).square().mean() / 4e4
    assert value.item() == pytest.approx(((a + b) / 2).item(), rel=1e-5)
    value.backward()
    assert student.a.weight.grad.abs().sum() > 0 and student.b.weight.grad.abs().sum() > 0


def test_labels_train_the_logarithms_of_probabilities():
    network = nn.Sequential(nn.Linear(6, 4), nn.Softmax(1))
    images, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    outputs = Outputs((Output("output", "scores", (4,), probabilities=True),))
    value = loss_for("train", False, None, outputs)(network, images, labels)
    assert value.item() == pytest.approx(-network(images).log()[range(5), labels].mean().item(), rel=1e-5)
