"""Networks that a Python caller gives."""

import pytest
import torch
from networks import block
from torch import nn

from decomp.errors import NumericalError, UsageError
from decomp.pipelines.recipes.in_memory import loaded_copy, module_of


def test_wrappers_are_taken_off_and_what_is_no_module_is_refused_with_a_way():
    model = block()
    assert module_of(nn.DataParallel(model)) is model
    for value, way in (
        (model.state_dict(), "load_state_dict"),
        ("zoo:a", "takes names"),
        (nn.ReLU, "nn.ReLU|ReLU\\(\\)"),
    ):
        with pytest.raises(UsageError, match=f"model: must be a torch.nn.Module.*({way})"):
            module_of(value)


def test_the_copy_is_in_float32_and_remembers_the_precision():
    model = block().half()
    loaded = loaded_copy(model)
    assert loaded.dtype == torch.float16 and next(loaded.module.parameters()).dtype == torch.float32
    assert next(model.parameters()).dtype == torch.float16 and loaded.name == "Block"


def test_weights_that_are_not_finite_are_refused():
    model = block()
    model.stem.weight.data[0] = float("nan")
    with pytest.raises(NumericalError):
        loaded_copy(model)
