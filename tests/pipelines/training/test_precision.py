"""Precision of a training: asked for, kept, or the faster one of two that are measured in turn."""

import re
from pathlib import Path

import pytest
import torch

from decomp.errors import UsageError
from decomp.pipelines.training import precision
from decomp.pipelines.training.precision import Precision, choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def never(name):
    raise AssertionError("nothing is measured")


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_precision_that_is_asked_for_is_not_measured(asked):
    chosen = choose_precision(asked, CPU, None, never)
    assert chosen == Precision(asked, asked=True) and chosen.words() == f"computed in {asked}, as asked"


def test_an_interrupted_training_keeps_its_precision():
    assert choose_precision("auto", CPU, "bfloat16", never).name == "bfloat16"


def test_without_a_measurement_a_cpu_computes_in_float32():
    assert choose_precision("auto", CPU) == Precision("float32") and Precision("float32").words() is None


@pytest.mark.parametrize("whole, half, name", [(2.0, 1.0, "bfloat16"), (1.1, 1.0, "float32"), (1.0, 3.0, "float32")])
def test_bfloat16_is_taken_where_its_steps_are_clearly_faster(whole, half, name):
    seconds = {"float32": whole, "bfloat16": half}
    chosen = choose_precision("auto", CPU, None, seconds.__getitem__)
    assert chosen == Precision(name, whole / half)
    assert chosen.words() == (
        f"computed in {name}: a step in bfloat16 is {whole / half:.2f} times as fast as in float32 here, and bfloat16 "
        "is taken from 1.15 times on"
    )


def test_the_guide_and_the_help_name_the_ratio_from_which_bfloat16_is_taken():
    checkout = Path(__file__).parents[3]
    for page in ("docs/train-the-result.md", "pipelines/commands/shared.py"):
        assert f"least {precision.FASTER:g} times as fast" in re.sub(r'[\s"]+', " ", (checkout / page).read_text())


def test_both_are_measured_in_turn_and_the_shorter_time_of_each_counts():
    seconds = iter([("float32", 9.0), ("bfloat16", 2.0), ("float32", 1.0), ("bfloat16", 4.0)])

    def measure(name):
        expected, value = next(seconds)
        assert name == expected
        return value

    assert choose_precision("auto", CPU, None, measure) == Precision("float32", 0.5)


def test_a_gpu_has_its_usual_precision_and_refuses_one_that_it_does_not_compute(monkeypatch):
    monkeypatch.setattr(precision, "full_name", lambda device: "Old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose_precision("auto", GPU, None, never).name == choose_precision("bfloat16", GPU).name == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose_precision("auto", GPU, None, never) == Precision("float32")
    with pytest.raises(
        UsageError, match="--precision bfloat16: the GPU must compute bfloat16, got Old GPU; give --pre"
    ):
        choose_precision("bfloat16", GPU)
