"""Options of finetune: defaults that go by others, and options that exclude each other."""

import pytest

from decomp.errors import UsageError
from decomp.pipelines.console.finetune_options import FinetuneOptions


def test_epochs_and_batches_have_their_defaults_where_nothing_else_decides():
    assert (FinetuneOptions().epochs, FinetuneOptions().batch_size) == (5, 128)
    assert (FinetuneOptions(labels="none").epochs, FinetuneOptions(labels="none").batch_size) == (5, 32)
    assert FinetuneOptions(minutes=2).epochs is None
    assert FinetuneOptions(labels="none", batch_size=7).batch_size == 7
    assert FinetuneOptions().precision == "auto"


def test_a_record_without_the_newer_options_means_the_same():
    assert FinetuneOptions().differences({"epochs": 5, "batch_size": 128, "labels": "train"}) == []
    assert FinetuneOptions(minutes=2).differences({"epochs": 5}) == [("epochs", 5, None), ("minutes", None, 2.0)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 2, "minutes": 1}, "--minutes: decides the number of epochs, got --epochs 2 beside it; leave one"),
        ({"minutes": 0}, "--minutes: must be a number above 0"),
        ({"data": "digits"}, "--data: is for training without labels; .*got digits; give --labels none"),
        ({"n_images": 7}, "--images: is for training without labels"),
        ({"n_images": 0, "labels": "none"}, "--images: must be a whole number from 1"),
        ({"precision": "float16"}, "--precision: must be one of auto, float32, bfloat16, got 'float16'"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(options, message):
    with pytest.raises(UsageError, match=message):
        FinetuneOptions(**options)
