"""Sealed file of groups of tensors: round trip, equal bytes, damage."""

import pytest
import torch

from decomp.data.formats.tensor_groups import read_groups, write_groups
from decomp.errors import FileError

GROUPS = {
    "weight": {"0.conv": torch.arange(6.0).view(2, 3), "1": torch.tensor(3)},
    "owner": {"0.conv": torch.zeros(2, 3, dtype=torch.uint8)},
}


def write(path, header=None, kind="decomp-x"):
    return write_groups(path, GROUPS, header or {"a": [1, 2.5]}, kind=kind, format_version=2)


def read(path, version=2):
    return read_groups(path, kind="decomp-x", format_version=version, fix="write it again")


def test_what_was_written_is_read_back(tmp_path):
    content = write(tmp_path / "a.safetensors")
    groups, header, found = read(tmp_path / "a.safetensors")
    assert header == {"format": "decomp-x", "format_version": 2, "a": [1, 2.5]} and found == content
    assert {group: set(members) for group, members in groups.items()} == {
        "weight": {"0.conv", "1"},
        "owner": {"0.conv"},
    }
    assert all(torch.equal(groups[g][n], value) for g, members in GROUPS.items() for n, value in members.items())


def test_equal_contents_give_equal_bytes_and_others_another_digest(tmp_path):
    first, second = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors")
    assert first == second and (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert write(tmp_path / "c.safetensors", {"a": [1, 2]}) != first


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(FileError, match="write it again|install the newer decomp"):
            read(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_refused_by_name(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    write(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileError, match=r"a\.safetensors: is damaged or no decomp-x file"):
        read(path)


def test_missing_foreign_and_newer_files_are_refused(tmp_path):
    with pytest.raises(FileError, match="the file does not exist; write it again"):
        read(tmp_path / "none.safetensors")
    write(tmp_path / "a.safetensors", kind="decomp-y")
    with pytest.raises(FileError, match="is no decomp-x file"):
        read(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors")
    with pytest.raises(FileError, match="up to format 1, got 2; install the newer decomp"):
        read(tmp_path / "b.safetensors", version=1)
