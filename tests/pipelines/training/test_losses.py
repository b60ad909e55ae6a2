"""Losses of a fine-tuning against their formulas, and where gradients go."""

import pytest
import torch
from torch import nn

from decomp.pipelines.training.losses import loss_for


def test_losses_are_cross_entropy_divergence_or_the_mean_of_both():
    student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
    images, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    probabilities, target = student(images).softmax(1), teacher(images).softmax(1)
    entropy = -probabilities.log()[range(5), labels].mean()
    divergence = (target * (target / probabilities).log()).sum(1).mean()
    for options, targets, expected in (
        (("train", False, None), labels, entropy),
        (("none", False, teacher), None, divergence),
        (("train", True, teacher), labels, (entropy + divergence) / 2),
    ):
        loss = loss_for(*options)(student, images, targets)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_the_student_gets_gradients():
    student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
    loss_for("train", True, teacher)(student, torch.randn(5, 6), torch.zeros(5, dtype=torch.long)).backward()
    assert student.weight.grad.abs().sum() > 0 and teacher.weight.grad is None


def test_a_student_that_equals_the_teacher_has_no_divergence():
    teacher, images = nn.Linear(6, 4), torch.randn(5, 6)
    assert abs(loss_for("none", False, teacher)(teacher, images, None).item()) < 1e-6
