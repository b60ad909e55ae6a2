"""Stored activations: the same bits from memory and from files, within the limit of memory."""

import errno

import pytest
import torch

from decomp.data.formats import atomic
from decomp.errors import FileError
from decomp.pipelines.decomposition.spill_store import SpillStore


def some_values(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 5, 5, generator=generator)
    return {
        "map": x,
        "turned": x.permute(0, 2, 3, 1),
        "scalar": torch.tensor(float("-inf")),
        "wide": x.double(),
        "mask": x > 0,
        "half": x.to(torch.bfloat16),
        "none": x[:0],
        "size": 25,
    }


def size_of(values):
    return sum(value.nbytes for value in values.values() if isinstance(value, torch.Tensor))


ONE = size_of(some_values(0))


@pytest.mark.parametrize("memory", [0, ONE, 3 * ONE, 100 * ONE])
def test_values_come_back_bit_by_bit_and_memory_is_bounded(tmp_path, memory):
    store = SpillStore(memory, 100 * ONE, tmp_path / "spilled")
    for generation in (0, 10):  # the second in place of the first, as a replay does
        for index in range(5):
            store.put(index, some_values(generation + index))
        for index in range(5):
            wanted, got = some_values(generation + index), store.get(index)
            assert list(got) == list(wanted)
            for key, value in wanted.items():
                if not isinstance(value, torch.Tensor):
                    assert got[key] == value
                    continue
                assert got[key].dtype == value.dtype and got[key].shape == value.shape
                assert torch.equal(got[key], value)
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert store.most_in_memory <= memory
    assert store.most_on_disk == on_disk == 5 * ONE - min(5, memory // ONE) * ONE


@pytest.mark.parametrize("memory", [0, 10 * ONE])
def test_a_change_in_place_of_returned_values_leaves_the_stored_ones(tmp_path, memory):
    store = SpillStore(memory, 100 * ONE, tmp_path)
    store.put(0, some_values(0))
    store.get(0)["map"].zero_()
    assert torch.equal(store.get(0)["map"], some_values(0)["map"])


def test_clearing_removes_files_and_frees_memory(tmp_path):
    store = SpillStore(ONE, 100 * ONE, tmp_path)
    for index in range(4):
        store.put(index, some_values(index))
    assert len(list(tmp_path.iterdir())) == 3
    store.clear()
    assert list(tmp_path.iterdir()) == []
    for index in range(2):  # and there is room in memory again
        store.put(index, some_values(index))
    assert len(list(tmp_path.iterdir())) == 1 and store.most_in_memory == ONE


def test_free_disk_is_checked_before_values_are_admitted(tmp_path, monkeypatch):
    store = SpillStore(ONE, 100 * ONE, tmp_path)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3 * ONE}))
    assert store.admits(ONE) and store.admits(4 * ONE)
    assert not store.admits(101 * ONE)  # over the limit: not stored, and no error
    with pytest.raises(FileError, match="MiB of disk are needed, got 0 MiB free"):
        store.admits(5 * ONE)
    for index in range(3):
        store.put(index, some_values(index))
    assert store.admits(6 * ONE)  # two of them lie there already


def test_a_file_that_is_cut_short_is_an_error(tmp_path):
    store = SpillStore(0, 100 * ONE, tmp_path)
    store.put(0, some_values(0))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FileError, match="cut short; run the same command again"):
        store.get(0)


def test_a_disk_that_fills_up_meanwhile_is_an_error_of_the_system(tmp_path, monkeypatch):
    store = SpillStore(0, 100 * ONE, tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="No space left"):
        store.put(0, some_values(0))
