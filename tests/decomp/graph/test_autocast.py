import pytest
import torch

from decomp.graph.autocast import without_autocast

ENTERED = torch.autocast.__enter__


@torch.autocast("cpu", dtype=torch.bfloat16)
def product(x):
    return x @ x


def test_autocast_does_nothing_within_a_block_and_what_it_does_after_it():
    x = torch.randn(4, 4)
    with without_autocast() as passed_over:
        assert torch.equal(product(x), x @ x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
            assert (x @ x).dtype == torch.float32
    assert passed_over == ["cpu", "cpu"]
    assert product(x).dtype == torch.bfloat16 and torch.autocast.__enter__ is ENTERED


def test_an_autocast_around_the_block_is_there_again_after_one_within():
    x = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_autocast():
            assert product(x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_an_error_within_the_block_puts_autocast_back():
    with pytest.raises(ValueError), without_autocast():
        raise ValueError
    assert torch.autocast.__enter__ is ENTERED
