"""Resources of a stage from its arguments."""

import pytest
import torch

from decomp.errors import UsageError
from decomp.pipelines.measure.memory import GIB
from decomp.pipelines.measure.resources import Resources


def test_the_arguments_of_a_stage_become_a_device_bytes_and_a_number():
    assert Resources.of("cpu", "2GiB", 7) == Resources(torch.device("cpu"), 2 * GIB, 7)
    assert Resources.of("cpu") == Resources(torch.device("cpu"), None, 100)
    assert Resources.of("cpu", GIB).memory == GIB


@pytest.mark.parametrize(
    "arguments, line",
    [
        (("gpu",), "--device: must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (("cpu", "much"), "--memory: must be"),
        (("cpu", None, 0), "batch_size: must be a whole number from 1, got 0"),
        (("cpu", None, "some"), "batch_size: must be a whole number from 1, got 'some'"),
    ],
)
def test_what_is_no_device_amount_or_number_is_refused(arguments, line):
    with pytest.raises(UsageError, match=f"^{line}"):
        Resources.of(*arguments)
