"""Block files."""

import pytest
import torch
from safetensors.torch import save_file

from decomp.data.formats.block_file import read_block, write_block
from decomp.errors import FileError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
REPORT = {"kept": True, "error_after": 0.25, "layers": ["a"]}


def written(path, parent="p" * 64, weights=WEIGHTS):
    write_block(path, "relu", weights, REPORT, parent)
    return path


def test_weights_and_report_come_back(tmp_path):
    weights, report = read_block(written(tmp_path / "000.safetensors"), "relu", "p" * 64)
    assert report == REPORT and weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], value) for name, value in WEIGHTS.items())


def test_a_block_that_stayed_has_no_weights(tmp_path):
    assert read_block(written(tmp_path / "b", weights={}), "relu", "p" * 64) == ({}, REPORT)


def test_equal_blocks_are_equal_bytes(tmp_path):
    first, second = (written(tmp_path / name).read_bytes() for name in "ab")
    assert first == second
    assert written(tmp_path / "c", parent="q" * 64).read_bytes() != first


def test_a_file_of_another_block_or_origin_is_refused(tmp_path):
    path = written(tmp_path / "b")
    with pytest.raises(FileError, match="was made from pppppppppppp, got qqqqqqqqqqqq; run decompose again"):
        read_block(path, "relu", "q" * 64)
    with pytest.raises(FileError, match="must hold the block that ends with add, got relu"):
        read_block(path, "add", "p" * 64)


@pytest.mark.parametrize("place", [0.3, 0.97])
def test_a_damaged_file_is_refused(tmp_path, place):
    path = written(tmp_path / "b")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match="run decompose again with --redo"):
        read_block(path, "relu", "p" * 64)


def test_a_foreign_file_is_refused(tmp_path):
    save_file(WEIGHTS, str(tmp_path / "b"))
    with pytest.raises(FileError, match="is not a block file of format 1"):
        read_block(tmp_path / "b", "relu", "p" * 64)
    (tmp_path / "c").write_text("nothing")
    with pytest.raises(FileError, match="is not a readable block file"):
        read_block(tmp_path / "c", "relu", "p" * 64)
