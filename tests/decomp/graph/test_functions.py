import math
import operator

import pytest
import torch
from torch.nn import functional as F

from decomp.graph.functions import full_name, function_of, name_of


@pytest.mark.parametrize("function", [
    torch.arange, torch.zeros, torch.ones, torch.full, torch.linspace, torch.eye, torch.tensor, torch.meshgrid,
    torch.zeros_like, torch.fft.rfft2, torch.linalg.vector_norm, torch.special.expit, torch.cat, F.interpolate,
    torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence,
    F.scaled_dot_product_attention, math.ceil, math.sqrt, operator.abs, operator.getitem, round, max, len,
])  # fmt: skip
def test_a_function_comes_back_by_its_name(function):
    assert function_of(name_of(function)) is function


@pytest.mark.parametrize("function", [
    eval, open, __import__, torch.load, torch.save, torch.empty, torch.rand, math.factorial, operator.methodcaller,
])  # fmt: skip
def test_what_opens_files_runs_code_or_gives_other_numbers_each_time_has_no_name(function):
    assert name_of(function) is None and function_of(full_name(function)) is None


def test_the_name_in_a_message_has_no_address_in_memory():
    assert full_name(torch.empty).endswith("empty") and full_name(math.factorial) == "math.factorial"
    assert "0x" not in full_name(torch.empty)
