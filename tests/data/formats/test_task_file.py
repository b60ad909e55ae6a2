"""Task file: bits, round trip, sizes on the disk, damage."""

import pytest
import torch
from safetensors import safe_open

from decomp.data.formats.task_file import (
    TaskFile,
    file_name,
    pack_bits,
    read_task,
    task_paths,
    unpack_bits,
    write_task,
)
from decomp.errors import FileError


def task(n=1000, owned=100, number=2):
    used = torch.zeros(n, dtype=torch.bool)
    used[:owned] = True
    return TaskFile(
        number, "letters", 1.5, 3, {"0": used.view(10, n // 10), "head.1": torch.ones(3, 3, dtype=torch.bool)},
        {"0": torch.randn(owned), "head.1": torch.empty(0)}, {"bn.num_batches_tracked": torch.tensor(4)},
        {"images": torch.randn(2, 1, 4, 4), "labels": torch.tensor([0, 2]), "scores": torch.randn(2, 3)}, "e" * 64,
        {"goal": 0.9, "ladder": []},
    )  # fmt: skip


def test_bits_are_packed_highest_first_and_come_back():
    mask = torch.tensor([True, False, False, False, False, False, False, True, True])
    assert pack_bits(mask).tolist() == [129, 128]
    assert torch.equal(unpack_bits(pack_bits(mask.view(3, 3)), (3, 3)), mask.view(3, 3))


def test_bits_of_another_number_are_refused():
    with pytest.raises(ValueError, match="1 bytes of bits for 9 weights"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), (3, 3))


def test_what_was_written_is_read_back(tmp_path):
    before = task()
    content = write_task(tmp_path / "002.safetensors", before, "p" * 64)
    after = read_task(tmp_path / "002.safetensors", 2, "p" * 64)
    assert after.content == content and after.shapes == before.shapes == {"0": (10, 100), "head.1": (3, 3)}
    for name in ("used", "values", "private", "probe"):
        mine, read = getattr(before, name), getattr(after, name)
        assert mine.keys() == read.keys() and all(torch.equal(mine[key], read[key]) for key in mine)
    for name in ("number", "name", "width", "n_classes", "effective", "facts"):
        assert getattr(after, name) == getattr(before, name)


def test_sizes_on_the_disk_are_those_that_the_page_counts(tmp_path):
    write_task(tmp_path / "a.safetensors", task(80000, 0), "p" * 64)
    write_task(tmp_path / "b.safetensors", task(80000, 500), "p" * 64)
    sizes = [(tmp_path / name).stat().st_size for name in ("a.safetensors", "b.safetensors")]
    assert sizes[1] - sizes[0] == pytest.approx(4 * 500, abs=16)
    assert sizes[0] == pytest.approx(80000 / 8 + 1250, abs=300)
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert file.get_slice("used.0").get_shape() == [10000] and file.get_slice("used.0").get_dtype() == "U8"


def test_a_file_of_another_place_in_the_order_is_refused(tmp_path):
    write_task(tmp_path / "a.safetensors", task(), "p" * 64)
    with pytest.raises(FileError, match="must be task 3 after .* got task 2 after pppppppppppp; put a copy"):
        read_task(tmp_path / "a.safetensors", 3, "p" * 64)
    with pytest.raises(FileError, match="must be task 2 after the task with the digest qqqqqqqqqqqq"):
        read_task(tmp_path / "a.safetensors", 2, "q" * 64)


def test_files_are_found_in_the_order_of_their_numbers(tmp_path):
    for number, name in ((10, "a"), (2, "b"), (1, "c/../d")):
        (tmp_path / file_name(number, name)).write_bytes(b"")
    (tmp_path / "accuracy.json").write_text("{}")
    assert [path.name[:5] for path in task_paths(tmp_path)] == ["001_c", "002_b", "010_a"]
    assert task_paths(tmp_path / "none") == []
